"""An asynchronous serial line: eight data bits, no parity, one stop bit."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

DATA_BITS = 8


class Receiver(wiring.Component):
    """Bytes from a line.

    Parameters
    ----------
    divisor : cycles of a bit, at least 4

    Members
    -------
    line : In(1), asynchronous; high when idle
    valid : Out(1), for one cycle with each byte
    data : Out(8)
    broken : Out(1), for one cycle instead of ``valid`` when the stop bit is low

    Latency: ``valid`` comes half a bit into the stop bit, and 4 cycles.
    """

    def __init__(self, divisor: int):
        if divisor < 4:
            raise ValueError(f"a bit needs 4 cycles or more, not {divisor}")
        self.divisor = divisor
        super().__init__({"line": In(1, init=1), "valid": Out(1), "data": Out(DATA_BITS), "broken": Out(1)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.line, line, init=1)
        timer = Signal(range(self.divisor + self.divisor // 2))
        left = Signal(range(DATA_BITS + 1))  # data bits that are to come
        m.d.sync += [self.valid.eq(0), self.broken.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(~line):
                    # To the middle of the first data bit.
                    m.d.sync += [timer.eq(self.divisor + self.divisor // 2 - 1), left.eq(DATA_BITS)]
                    m.next = "BITS"
            with m.State("BITS"):
                m.d.sync += timer.eq(timer - 1)
                with m.If(timer == 0):
                    m.d.sync += [timer.eq(self.divisor - 1), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.d.sync += [self.valid.eq(line), self.broken.eq(~line)]
                        m.next = "HIGH"
                    with m.Else():
                        m.d.sync += self.data.eq(Cat(self.data[1:], line))
            with m.State("HIGH"):  # half a bit is left of a good stop bit; of a broken byte, as long as it is low
                with m.If(line):
                    m.next = "IDLE"
        return m


class Transmitter(wiring.Component):
    """Bytes to a line.

    Parameters
    ----------
    divisor : cycles of a bit, at least 4

    Members
    -------
    i_data : In(stream.Signature(8))
    line : Out(1), a register; high when idle

    Throughput: a byte every 10 bits.
    """

    def __init__(self, divisor: int):
        if divisor < 4:
            raise ValueError(f"a bit needs 4 cycles or more, not {divisor}")
        self.divisor = divisor
        super().__init__({"i_data": In(stream.Signature(DATA_BITS)), "line": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        bits = Signal(DATA_BITS + 1)  # the next ones, the stop bit last
        left = Signal(range(DATA_BITS + 3))  # bits that begin or are on the line
        timer = Signal(range(self.divisor))
        m.d.comb += self.i_data.ready.eq(left == 0)
        with m.If(left == 0):
            m.d.sync += timer.eq(self.divisor - 1)
            with m.If(self.i_data.valid):
                m.d.sync += [self.line.eq(0), bits.eq(Cat(self.i_data.payload, 1)), left.eq(DATA_BITS + 2)]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
            with m.If(timer == 0):
                m.d.sync += [
                    timer.eq(self.divisor - 1),
                    left.eq(left - 1),
                    self.line.eq(bits[0]),
                    bits.eq(Cat(bits[1:], 1)),
                ]
        return m
