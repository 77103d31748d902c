"""Instructions to bytes and back, with every range checked."""

from collections.abc import Iterable, Sequence

from moevit.errors import EncodingError
from moevit.isa.fields import INSTRUCTION_BYTES, OPCODE_WIDTH, Instruction
from moevit.isa.formats import FORMATS

_BY_OPCODE = {f.opcode: f for f in FORMATS}


def encode(instruction: Instruction) -> bytes:
    """The ``INSTRUCTION_BYTES`` bytes of an instruction. Raises EncodingError naming the field out of range."""
    word = instruction.opcode
    for field, value in instruction.items():
        if not field.minimum <= value <= field.maximum:
            raise EncodingError(
                f"{instruction.mnemonic()}.{field.name} = {value} is outside {field.minimum} … {field.maximum}",
            )
        word |= value << field.offset
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(data: bytes) -> Instruction:
    """Inverse of :func:`encode`. Raises EncodingError for an unknown opcode, a value out of range or stray bits."""
    if len(data) != INSTRUCTION_BYTES:
        raise EncodingError(f"an instruction has {INSTRUCTION_BYTES} bytes, not {len(data)}")
    word = int.from_bytes(data, "little")
    opcode = word & ((1 << OPCODE_WIDTH) - 1)
    if opcode not in _BY_OPCODE:
        raise EncodingError(f"unknown opcode {opcode}")
    kind = _BY_OPCODE[opcode]
    values = {f.name: (word >> f.offset) & ((1 << f.width) - 1) for f in kind.fields()}
    instruction = kind(**values)
    if encode(instruction) != data:
        raise EncodingError(f"{kind.mnemonic()}: bits outside its fields are set")
    return instruction


def encode_program(instructions: Iterable[Instruction]) -> bytes:
    """Concatenated encodings."""
    return b"".join(encode(i) for i in instructions)


def decode_program(data: bytes) -> Sequence[Instruction]:
    """Inverse of :func:`encode_program`; the error says which instruction."""
    if len(data) % INSTRUCTION_BYTES:
        raise EncodingError(f"a program's length is a multiple of {INSTRUCTION_BYTES} bytes, not {len(data)}")
    out = []
    for start in range(0, len(data), INSTRUCTION_BYTES):
        try:
            out.append(decode(data[start : start + INSTRUCTION_BYTES]))
        except EncodingError as error:
            raise EncodingError(error.what, where=f"instruction {start // INSTRUCTION_BYTES}") from error
    return out
