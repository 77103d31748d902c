"""Instructions as text, and back."""

import re

from moevit.errors import EncodingError
from moevit.isa.fields import Instruction
from moevit.isa.formats import FORMATS

_BY_NAME = {f.mnemonic(): f for f in FORMATS}


def disassemble(instruction: Instruction) -> str:
    """One line: mnemonic and ``field=value`` pairs; enumerations by name, fields at their default left out."""
    parts = [instruction.mnemonic()]
    defaults = {name: f.default for name, f in type(instruction).__dataclass_fields__.items()}
    for field, value in instruction.items():
        if value != defaults[field.name]:
            parts.append(f"{field.name}={dict(field.values).get(value, value)}")
    return " ".join(parts)


def assemble(line: str) -> Instruction:
    """Inverse of :func:`disassemble`. Raises EncodingError for an unknown name or value."""
    mnemonic, *parts = line.split()
    if mnemonic not in _BY_NAME:
        raise EncodingError(f"unknown instruction {mnemonic!r}")
    kind = _BY_NAME[mnemonic]
    fields = {f.name: f for f in kind.fields()}
    values = {}
    for part in parts:
        match = re.fullmatch(r"(\w+)=(\w+)", part)
        if not match or match[1] not in fields:
            raise EncodingError(f"{mnemonic}: cannot read {part!r}")
        names = {name: v for v, name in fields[match[1]].values}
        try:
            values[match[1]] = names[match[2]] if match[2] in names else int(match[2], 0)
        except ValueError as error:
            raise EncodingError(f"{mnemonic}: cannot read {part!r}") from error
    try:
        return kind(**values)
    except TypeError as error:
        raise EncodingError(f"{mnemonic}: {error}") from error
