"""Where the rows of a queue lie: the addresses of its tokens' rows, ahead of their reader."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from moevit.hw.interfaces import QueueEntry
from moevit.hw.units import arithmetic
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY
from moevit.isa.formats import ADDRESS, COUNT, STRIDE

ROWS_DEPTH = 8  #: rows that may be on their way
_ADDRESS_LATENCY = MULTIPLY_LATENCY + 1
QUEUE_ROW_LATENCY = _ADDRESS_LATENCY + 2  #: cycles from an entry to its row's address
assert ROWS_DEPTH & (ROWS_DEPTH - 1) == 0, "its top bit says that it is full"


class QueueRow(data.Struct):
    """A row that is to be loaded: where it is, and whose it is."""

    address: ADDRESS
    entry: QueueEntry


class QueueRows(wiring.Component):
    """Takes the entries of a queue and gives for each the address of the row to load.

    Members
    -------
    start, count : In(1), In(COUNT): takes that many entries, at least one; only when all rows before have been taken
    base, stride, gather : of the instruction; constant from the cycle after ``start`` to the last row. Row i is at
        base + token * stride with ``gather``, else at base + i * stride
    i_entries : stream of QueueEntry
    o_rows : stream of QueueRow, in the same order

    Numerics: addresses are modulo 2**ADDRESS. Latency: QUEUE_ROW_LATENCY cycles from an entry to its row.
    Throughput: one row per cycle.
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "count": In(COUNT),
                "base": In(ADDRESS),
                "stride": In(STRIDE),
                "gather": In(1),
                "i_entries": In(stream.Signature(QueueEntry)),
                "o_rows": Out(stream.Signature(QueueRow)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        active, left, index = Signal(), Signal(COUNT), Signal(COUNT)
        held = Signal(range(ROWS_DEPTH + 1))
        taken, given = Signal(), Signal()
        m.d.comb += [
            self.i_entries.ready.eq(active & ~held[-1]),
            taken.eq(self.i_entries.valid & self.i_entries.ready),
            given.eq(self.o_rows.valid & self.o_rows.ready),
        ]
        m.d.sync += held.eq(held + taken - given)
        with m.If(self.start):
            m.d.sync += [active.eq(1), left.eq(self.count), index.eq(0)]
        with m.Elif(taken):
            m.d.sync += [active.eq(left != 1), left.eq(left - 1), index.eq(index + 1)]

        entry = self.i_entries.payload
        product = arithmetic.multiply(m, Mux(self.gather, entry.token, index), self.stride, name="offset")
        row = Signal(QueueRow)
        m.d.comb += [
            row.address.eq(arithmetic.delay(m, (product + self.base)[:ADDRESS], 1, name="address")),
            row.entry.eq(arithmetic.delay(m, entry, _ADDRESS_LATENCY, name="entry")),
        ]
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=len(Value.cast(row)), depth=ROWS_DEPTH)
        m.d.comb += [
            fifo.w_data.eq(row),
            fifo.w_en.eq(arithmetic.delay(m, taken, _ADDRESS_LATENCY, name="taken", reset=True)),
            fifo.r_en.eq(self.o_rows.ready),
            self.o_rows.valid.eq(fifo.r_rdy),
            self.o_rows.payload.eq(fifo.r_data),
        ]
        return m
