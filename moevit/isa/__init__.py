"""The instruction set: each instruction a dataclass whose fields carry width, unit and meaning.

:mod:`moevit.isa.formats` is the only place where a field is defined; the encoder, the decoder, the RTL's
layouts, the simulators and the generated page ``docs/isa.md`` all come from it.
"""

from moevit.isa.codec import decode, decode_program, encode, encode_program
from moevit.isa.fields import INSTRUCTION_BYTES, INSTRUCTION_WIDTH, Field, Instruction
from moevit.isa.formats import (
    FORMATS,
    ISA_VERSION,
    Attention,
    Begin,
    DmaIn,
    DmaOut,
    End,
    Linear,
    NormMode,
    OutputType,
    Retiring,
    Stream,
)

__all__ = [
    "FORMATS", "INSTRUCTION_BYTES", "INSTRUCTION_WIDTH", "ISA_VERSION", "Attention", "Begin", "DmaIn", "DmaOut",
    "End", "Field", "Instruction", "Linear", "NormMode", "OutputType", "Retiring", "Stream", "decode", "decode_program",
    "encode", "encode_program",
]  # fmt: skip
