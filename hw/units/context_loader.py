"""Finishes the softmax while it loads an A tile of probabilities for P.V."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import OPERAND_READ_LATENCY, RowScaleSignature, TileWriteSignature
from moevit.hw.units import arithmetic
from moevit.hw.units.probability_buffer import PROBABILITY_READ_LATENCY, ProbabilityReadSignature
from moevit.hw.units.reciprocal import ROW_SCALE_LATENCY, RowScale
from moevit.numerics import fixed, reciprocal

CONTEXT_LATENCY = PROBABILITY_READ_LATENCY + 4  #: cycles from a word's address to its tile write
_ARRAY_LATENCY = (
    OPERAND_READ_LATENCY + 3
)  #: least cycles from the last step of a column to POST's use of the scale


def scale_latency(config: AcceleratorConfig) -> int:
    """Cycles from the tile write of a row's last word to the row's scale."""
    return arithmetic.tree_latency(config.columns) + 1 + ROW_SCALE_LATENCY


def cover_steps(config: AcceleratorConfig) -> int:
    """Steps of a column of P.V that hide the scale's latency: with more, a tile does not wait for it."""
    return max(scale_latency(config) - _ARRAY_LATENCY, 0)


class ContextLoader(wiring.Component):
    """Reads a unit's probabilities, brings each to its row's final maximum, writes them, and sums each row.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    start : In(1), begins a tile; only while ``busy`` is low
    unit, last_row, last_tile, buffer : its parity, last row, last key tile and A-tile buffer, taken with
        ``start``
    mult, shift : of the instruction; constant until ``idle``
    covered : the instruction's passes have more than ``cover_steps`` steps a column; constant until ``idle``
    read : ProbabilityReadSignature, to the probability buffer
    o_tile : A-tile writes
    filled : with the last write of the tile, or, unless ``covered``, with its last row scale
    o_scale : each row's scale
    busy : from ``start`` until ``filled``
    idle : no tile and no row scale is under way

    Numerics: ``numerics.softmax``: ``rescale_probability`` and ``row_scale``.
    Latency: CONTEXT_LATENCY + 1 cycles from ``start`` to the first write; a row's scale ``scale_latency``
    after the row's last write, which is before POST can need it. Throughput: one word per cycle; a tile takes
    rows * key tiles + CONTEXT_LATENCY + 1 cycles from ``start`` to ``filled``, that included, if covered.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "unit": In(1),
                "last_row": In(range(config.rows)),
                "last_tile": In(range(config.max_key_tiles)),
                "buffer": In(1),
                "mult": In(fixed.MULT_WIDTH),
                "shift": In(fixed.SHIFT_WIDTH),
                "covered": In(1),
                "read": Out(ProbabilityReadSignature(config)),
                "o_tile": Out(TileWriteSignature(config)),
                "filled": Out(1),
                "o_scale": Out(RowScaleSignature(config)),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        meta_layout = data.StructLayout(
            {
                "unit": 1,
                "row": range(config.rows),
                "tile": range(config.max_key_tiles),
                "buffer": 1,
                "first": 1,
                "last": 1,
                "last_row": 1,
            }
        )
        valid, meta = self._address(m, meta_layout)
        valid = arithmetic.delay(m, valid, CONTEXT_LATENCY, name="valid", reset=True)
        meta = arithmetic.delay(m, meta, CONTEXT_LATENCY, name="meta")
        lanes = self._rescale(m)
        m.d.comb += [
            self.o_tile.valid.eq(valid),
            self.o_tile.buffer.eq(meta.buffer),
            self.o_tile.row.eq(meta.row),
            self.o_tile.word.eq(meta.tile),
            self.o_tile.data.eq(Cat(lanes)),
        ]

        scaled_tile = self._scale(m, lanes, valid, meta)
        written_tile = valid & meta.last & meta.last_row
        scaling = Signal(3)  # tiles whose scales are not all out; a covered tile may start before
        m.d.sync += scaling.eq(scaling + self.start - scaled_tile)
        m.d.comb += [
            self.filled.eq(Mux(self.covered, written_tile, scaled_tile)),
            self.idle.eq(~self.busy & (scaling == 0)),
        ]
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(self.filled):
            m.d.sync += self.busy.eq(0)
        return m

    def _address(self, m: Module, meta_layout):
        """Counts through the tile's words; returns (valid, meta) of the address given in this cycle."""
        valid, last_row, last_tile = Signal(), Signal.like(self.last_row), Signal.like(self.last_tile)
        meta = Signal(meta_layout)
        m.d.comb += [
            meta.first.eq(meta.tile == 0),
            meta.last.eq(meta.tile == last_tile),
            meta.last_row.eq(meta.row == last_row),
            self.read.unit.eq(meta.unit),
            self.read.row.eq(meta.row),
            self.read.tile.eq(meta.tile),
        ]
        counters = {
            name: Signal.like(getattr(meta, name), name=f"at_{name}")
            for name in ("unit", "row", "tile", "buffer")
        }
        m.d.comb += [getattr(meta, name).eq(counter) for name, counter in counters.items()]
        with m.If(self.start):
            m.d.sync += [
                valid.eq(1),
                last_row.eq(self.last_row),
                last_tile.eq(self.last_tile),
                counters["unit"].eq(self.unit),
                counters["buffer"].eq(self.buffer),
                counters["row"].eq(0),
                counters["tile"].eq(0),
            ]
        with m.Elif(meta.last):
            m.d.sync += [counters["tile"].eq(0), counters["row"].eq(meta.row + 1)]
            with m.If(meta.last_row):
                m.d.sync += valid.eq(0)
        with m.Else():
            m.d.sync += counters["tile"].eq(meta.tile + 1)
        return valid, meta

    def _rescale(self, m: Module):
        """``rescale_probability`` of the word read: each of the lanes, 4 cycles after its data."""
        growth = self.read.final - self.read.maximum  # never negative
        limited = Signal(4, reset_less=True)
        m.d.sync += limited.eq(Mux(growth[4:].any(), 15, growth[:4]))
        lanes = arithmetic.delay(m, self.read.data, 1, name="data")
        assert (
            PROBABILITY_READ_LATENCY + 1 + arithmetic.round_shift_latency(4, saturated=False)
            == CONTEXT_LATENCY
        )
        return [
            arithmetic.round_shift(m, lanes[8 * c : 8 * c + 8], limited, name=f"lane_{c}")[:8]
            for c in range(self._config.columns)
        ]

    def _scale(self, m: Module, lanes, valid, meta):
        """Sums rows and gives their scales to POST; returns a pulse with the last scale of a tile."""
        depth = arithmetic.tree_latency(len(lanes))
        word_sum = arithmetic.adder_tree(m, lanes, name="sum")
        first = arithmetic.delay(m, meta.first, depth, name="sum_first")
        total = Signal(reciprocal.INPUT_WIDTH)
        m.d.sync += total.eq(Mux(first, 0, total) + word_sum)

        m.submodules.scale = scale = RowScale()
        latency = scale_latency(self._config)
        at = data.StructLayout({"unit": 1, "row": meta.row.shape(), "last_row": 1})
        now = Signal(at)
        m.d.comb += [now.unit.eq(meta.unit), now.row.eq(meta.row), now.last_row.eq(meta.last_row)]
        then = arithmetic.delay(m, now, latency, name="scale_meta")
        scaled = arithmetic.delay(m, valid & meta.last, latency, name="scale_valid", reset=True)
        m.d.comb += [
            scale.row_sum.eq(total),
            scale.mult.eq(self.mult),
            scale.shift.eq(self.shift),
            self.o_scale.valid.eq(scaled),
            self.o_scale.unit.eq(then.unit),
            self.o_scale.row.eq(then.row),
            self.o_scale.mult.eq(scale.o_mult),
            self.o_scale.shift.eq(scale.o_shift),
        ]
        return scaled & then.last_row
