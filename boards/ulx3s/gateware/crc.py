"""The CRC of a frame, a byte a cycle."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moevit.frames import CRC_POLYNOMIAL, CRC_START

WIDTH = 16


def advance(crc: Value, byte: Value) -> Value:
    """The CRC after one more byte, most significant bit first."""
    bits = list(crc)
    for i in reversed(range(8)):
        carry = bits[-1] ^ byte[i]
        bits = [C(0), *bits[:-1]]
        bits = [bit ^ carry if CRC_POLYNOMIAL >> n & 1 else bit for n, bit in enumerate(bits)]
    return Cat(bits)


class Crc(wiring.Component):
    """CRC-16/CCITT as :func:`moevit.frames.crc` has it.

    Members
    -------
    start : In(1), back to the start value
    valid, data : In, one byte
    value : Out(16), a register; 0 after data and their CRC, most significant byte first
    """

    start: In(1)
    valid: In(1)
    data: In(8)
    value: Out(WIDTH, init=CRC_START)

    def elaborate(self, platform):
        m = Module()
        with m.If(self.start):
            m.d.sync += self.value.eq(CRC_START)
        with m.Elif(self.valid):
            m.d.sync += self.value.eq(advance(self.value, self.data))
        return m
