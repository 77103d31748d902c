"""What an instruction field is, and where it lies in the instruction word."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

INSTRUCTION_WIDTH = 512  #: bits
INSTRUCTION_BYTES = INSTRUCTION_WIDTH // 8
OPCODE_WIDTH = 8


@dataclass(frozen=True)
class Field:
    """One field: ``width`` bits from bit ``offset`` of the little-endian instruction word, unsigned."""

    name: str
    offset: int
    width: int
    minimum: int
    unit: str
    doc: str
    values: tuple[tuple[int, str], ...]  #: names of the values, when the field is an enumeration

    @property
    def maximum(self) -> int:
        return self.values[-1][0] if self.values else (1 << self.width) - 1


def field(width: int, unit: str, doc: str, *, minimum: int = 0, values: Any = None, default: int | None = None) -> Any:
    """Declare an instruction field in a dataclass body; ``values`` is an IntEnum, if any."""
    names = tuple((int(v), v.name.lower()) for v in values) if values is not None else ()
    metadata = {"width": width, "unit": unit, "doc": doc, "minimum": minimum, "values": names}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Base of all instructions. Subclasses set ``opcode`` and ``retires`` and declare their fields."""

    opcode: ClassVar[int]
    retires: ClassVar[bool]  #: counts in the retired count that ``wait`` fields refer to

    @classmethod
    @cache
    def fields(cls) -> tuple[Field, ...]:
        """The fields with their bit positions, in order, from just above the opcode."""
        out, offset = [], OPCODE_WIDTH
        for f in dataclasses.fields(cls):
            m = f.metadata
            out.append(Field(f.name, offset, m["width"], m["minimum"], m["unit"], m["doc"], m["values"]))
            offset += m["width"]
        assert offset <= INSTRUCTION_WIDTH, f"{cls.__name__} is {offset} bits long"
        return tuple(out)

    @classmethod
    def mnemonic(cls) -> str:
        name = cls.__name__
        return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()

    def items(self) -> Iterator[tuple[Field, int]]:
        """Each field with its value."""
        for f in self.fields():
            yield f, int(getattr(self, f.name))
