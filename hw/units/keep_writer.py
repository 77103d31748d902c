"""Writes normalised rows back to the activation memory, for those that read them again."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import ActivationWriteSignature
from moevit.isa.formats import ADDRESS, STRIDE

KEEP_DEPTH = 32  #: words that may be on their way; more than the normaliser's pipeline and the FIFO have cycles
KEEP_LATENCY = 2  #: cycles from a word to its write
assert KEEP_DEPTH & (KEEP_DEPTH - 1) == 0, "its top bit says that it is full"


class KeepWriter(wiring.Component):
    """Writes words at rising addresses, row after row at a stride, as the activation memory lets it.

    The words come out of a pipeline that cannot be stalled, so whoever feeds that pipeline asks first: each
    word is counted from when it enters the pipeline until it is written, and ``hold`` is high while there is
    room for no more.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    start, base : In(1), In(ADDRESS): the next row is written at ``base``; only while ``busy`` is low
    stride : words between rows, constant while ``busy``
    hold : Out(1), no word may enter the pipeline in this cycle
    entered : In(1), a word enters the pipeline
    i_valid, i_data : it comes out of it
    i_last, i_filled : last word of a row, of a tile
    act_write : ActivationWriteSignature, one half of a pair at a time
    filled : Out(1), the cycle after a tile's last word has been written
    busy : Out(1), there are words that have entered and are not written

    Numerics: none. Latency: KEEP_LATENCY cycles from ``i_valid`` to its write, when nothing is before it.
    Throughput: one word per cycle, when the memory takes them and they come at most KEEP_DEPTH - KEEP_LATENCY - 1
    cycles after they have entered.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "base": In(ADDRESS),
                "stride": In(STRIDE),
                "hold": Out(1),
                "entered": In(1),
                "i_valid": In(1),
                "i_data": In(config.columns * 8),
                "i_last": In(1),
                "i_filled": In(1),
                "act_write": Out(ActivationWriteSignature(config)),
                "filled": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, write = self._config.columns, self.act_write
        row_address, address = Signal(ADDRESS), Signal(ADDRESS)
        next_row = row_address + self.stride
        with m.If(self.start):
            m.d.sync += [row_address.eq(self.base), address.eq(self.base)]
        with m.Elif(self.i_valid):
            with m.If(self.i_last):
                m.d.sync += [row_address.eq(next_row), address.eq(next_row)]
            with m.Else():
                m.d.sync += address.eq(address + 1)

        layout = data.StructLayout({"address": ADDRESS, "data": columns * 8, "filled": 1})
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=layout.size, depth=KEEP_DEPTH)
        word, head = Signal(layout), data.View(layout, fifo.r_data)
        m.d.comb += [
            word.address.eq(address),
            word.data.eq(self.i_data),
            word.filled.eq(self.i_filled),
            fifo.w_data.eq(word),
            fifo.w_en.eq(self.i_valid),
            fifo.r_en.eq(write.ready),
            write.valid.eq(fifo.r_rdy),
            write.pair.eq(head.address[1:]),
            write.data.eq(Cat(head.data, head.data)),
            write.mask.eq(Mux(head.address[0], ((1 << columns) - 1) << columns, (1 << columns) - 1)),
        ]

        pending = Signal(range(KEEP_DEPTH + 1))  # entered and not written
        written = fifo.r_rdy & write.ready
        m.d.comb += [self.hold.eq(pending[-1]), self.busy.eq(pending != 0)]
        m.d.sync += [
            pending.eq(pending + self.entered - written),
            self.filled.eq(written & head.filled),
        ]
        return m
