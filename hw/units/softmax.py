"""The scores' side of softmax: running maximum of each row and 8-bit probabilities against it."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import COLUMN_WIDTH, StagedSignature
from moevit.hw.units.arithmetic import delay, maximum_tree, saturate, shift_latency, shift_right, tree_latency
from moevit.isa.formats import COUNT
from moevit.numerics import fixed
from moevit.numerics import softmax as numerics

_EXPONENT_WIDTH = numerics.SCORE_WIDTH - numerics.SCORE_FRACTION
_DROP_WIDTH = 4  # shifts of 2**4 - 1 and above leave nothing of an entry


def latency(config: AcceleratorConfig) -> int:
    """Cycles from ``valid`` to ``o_staged.valid``."""
    return 1 + tree_latency(config.columns) + 3 + shift_latency(_DROP_WIDTH) + 1


class Softmax(wiring.Component):
    """Running maximum and probabilities of one row of a key tile.

    Rows of one query tile come tile after tile of keys; ``column`` 0 starts a row anew. A row may follow
    itself in the next cycle.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column

    Members
    -------
    valid, unit, row, column, last : In, a row of scores; ``last``: it completes the unit
    n_keys : In(COUNT), lanes with a key index beyond it get probability 0 and no part in the maximum
    mid : In(signed MID_WIDTH each lane), saturated to SCORE_WIDTH here
    o_staged : Out(StagedSignature)

    Numerics: the loop body of ``numerics.softmax.softmax`` (``tile_maximum``, ``probability``).
    Latency: ``latency(config)`` cycles. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "unit": In(1),
                "row": In(range(config.rows)),
                "column": In(COLUMN_WIDTH),
                "last": In(1),
                "n_keys": In(COUNT),
                "mid": In(data.ArrayLayout(signed(fixed.MID_WIDTH), config.columns)),
                "o_staged": Out(StagedSignature(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes, depth = range(self.config.columns), tree_latency(self.config.columns)
        keep = self._keep(m)
        scores = [delay(m, saturate(self.mid[i], numerics.SCORE_WIDTH), 1, name=f"score_{i}") for i in lanes]

        lowest = C(-(1 << (_EXPONENT_WIDTH - 1)), signed(_EXPONENT_WIDTH))
        exponents = [Mux(keep[i], scores[i][numerics.SCORE_FRACTION :].as_signed(), lowest) for i in lanes]
        largest = maximum_tree(m, exponents, name="largest")
        maximum = self._running_maximum(m, largest, at=1 + depth)

        m.submodules.table = table = Memory(
            shape=numerics.TABLE_WIDTH,
            depth=len(numerics.TABLE),
            init=numerics.TABLE.tolist(),
        )
        keep = delay(m, keep, latency(self.config) - 2, name="keep")
        for i in lanes:
            score = delay(m, scores[i], depth + 1, name=f"score_{i}_late")
            m.d.comb += self.o_staged.data.word_select(i, 8).eq(
                self._probability(m, i, score, maximum, keep[i], table.read_port())
            )

        total = latency(self.config)
        m.d.comb += [
            self.o_staged.valid.eq(delay(m, self.valid, total, name="valid_late", reset=True)),
            self.o_staged.unit.eq(delay(m, self.unit, total, name="unit_late")),
            self.o_staged.row.eq(delay(m, self.row, total, name="row_late")),
            self.o_staged.tile.eq(
                delay(m, self.column[: len(self.o_staged.tile)], total, name="column_late")
            ),
            self.o_staged.last.eq(delay(m, self.last, total, name="last_late")),
            self.o_staged.maximum.eq(delay(m, maximum, total - depth - 2, name="maximum_late")),
        ]
        return m

    def _keep(self, m) -> Signal:
        """One bit per lane, a cycle after the row: its key exists."""
        columns = self.config.columns
        log2 = columns.bit_length() - 1
        partial = self.column == self.n_keys[log2:]
        keep = Signal(columns, reset_less=True)
        m.d.sync += keep.eq(Cat(~partial | (self.n_keys[:log2] > i) for i in range(columns)))
        return keep

    def _running_maximum(self, m, largest, *, at: int) -> Signal:
        """The row's maximum after this tile, a register at ``at + 1``; ``largest`` is there at ``at``.

        The stored value is fetched a cycle ahead, with the row just ahead forwarded.
        """
        shape = signed(numerics.MAX_WIDTH)
        valid = delay(m, self.valid, at, name="valid_max", reset=True)
        row_ahead = delay(m, self.row, at - 1, name="row_ahead")
        first_ahead = delay(m, self.column == 0, at - 1, name="first_ahead")
        row = delay(m, row_ahead, 1, name="row_max")
        stored = Array(Signal(shape, name=f"stored_{i}", reset_less=True) for i in range(self.config.rows))
        fetched, maximum = Signal(shape, reset_less=True), Signal(shape, reset_less=True)
        tile, new = Signal(shape), Signal(shape)
        m.d.comb += [tile.eq(largest + 1), new.eq(Mux(tile > fetched, tile, fetched))]
        with m.If(valid):
            m.d.sync += stored[row].eq(new)
        m.d.sync += [
            maximum.eq(new),
            fetched.eq(
                Mux(first_ahead, numerics.MAX_EMPTY, Mux(valid & (row == row_ahead), new, stored[row_ahead]))
            ),
        ]
        return maximum

    def _probability(self, m, i, score, maximum, keep, port):
        """Four registers and the shifter after ``maximum``; ``keep`` belongs to the last of them."""
        fraction = numerics.SCORE_FRACTION
        distance = delay(
            m,
            (Cat(C(0, fraction), maximum).as_signed() - score)[: numerics.SCORE_WIDTH + 1],
            1,
            name=f"distance_{i}",
        )
        m.d.comb += port.addr.eq(distance[:fraction])
        beyond = distance[fraction + _DROP_WIDTH :].any()
        drop = delay(
            m,
            distance[fraction : fraction + _DROP_WIDTH] | beyond.replicate(_DROP_WIDTH),
            1,
            name=f"drop_{i}",
        )
        # one bit below the point for the rounding, as in arithmetic.round_shift
        entry = shift_right(m, port.data[numerics.PROBABILITY_SHIFT - 1 :], drop, name=f"entry_{i}")
        return delay(
            m, Mux(keep, ((entry + 1) >> 1)[: numerics.PROBABILITY_WIDTH], 0), 1, name=f"probability_{i}"
        )
