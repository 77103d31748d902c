"""ReLU, GELU and SiLU of a row of lanes, by an interpolated table of the difference to ReLU."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY, delay, multiply
from moevit.numerics import activation as numerics
from moevit.numerics import fixed

LATENCY = 6 + MULTIPLY_LATENCY

_KINDS = (numerics.Activation.GELU, numerics.Activation.SILU)  # halves of the ROM
_BASE_WIDTH = max(numerics.TABLES[k].base_width for k in _KINDS)
_SLOPE_WIDTH = max(numerics.TABLES[k].slope_width for k in _KINDS)
_STEPS = tuple(numerics.TABLES[k].step_log2 for k in _KINDS)


class _Node(data.Struct):
    base: _BASE_WIDTH
    slope: signed(_SLOPE_WIDTH)


class Activation(wiring.Component):
    """Activation of one row of C lanes; the kind comes with the row.

    Parameters
    ----------
    config : the accelerator's configuration; one lane per column

    Members
    -------
    mid : In(signed MID_WIDTH each lane)
    kind : In(2), a ``numerics.activation.Activation``
    y : Out(signed MID_WIDTH each lane)

    Numerics: ``numerics.activation.activate``. Latency: ``LATENCY`` cycles. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        lanes = data.ArrayLayout(signed(fixed.MID_WIDTH), config.columns)
        super().__init__({"mid": In(lanes), "kind": In(2), "y": Out(lanes)})

    def elaborate(self, platform):
        m = Module()
        init = [
            {"base": base, "slope": slope}
            for kind in _KINDS
            for base, slope in zip(
                numerics.TABLES[kind].base.tolist(), numerics.TABLES[kind].slope.tolist(), strict=True
            )
        ]
        m.submodules.table = table = Memory(
            shape=_Node, depth=len(init), init=init
        )
        is_silu = delay(m, self.kind == numerics.Activation.SILU, 1, name="is_silu")
        is_plain = delay(m, self.kind == numerics.Activation.NONE, 1, name="is_plain")
        has_delta = delay(m, self.kind[1], 2, name="has_delta")
        late_silu = delay(m, is_silu, 2 + MULTIPLY_LATENCY, name="late_silu")
        for i in range(self.config.columns):
            self._lane(m, i, is_silu, is_plain, has_delta, late_silu, table.read_port())
        return m

    def _lane(self, m, i, is_silu, is_plain, has_delta, late_silu, port):
        # 1: magnitude, which saturates below any table's end only where the table is long over
        x = delay(m, self.mid[i], 1, name=f"x_{i}")
        magnitude = Signal(fixed.MID_WIDTH - 1, name=f"magnitude_{i}", reset_less=True)
        negated = (-self.mid[i])[: fixed.MID_WIDTH]
        overflow = negated[-1] & self.mid[i][-1]
        m.d.sync += magnitude.eq(Mux(self.mid[i][-1], Mux(overflow, ~0, negated), self.mid[i]))
        # 2: ReLU, index and fraction
        relu = Signal(signed(fixed.MID_WIDTH), name=f"relu_{i}", reset_less=True)
        m.d.sync += relu.eq(Mux(x[-1] & ~is_plain, 0, x))
        index, fraction = (
            Signal(8, name=f"index_{i}", reset_less=True),
            Signal(8, name=f"fraction_{i}", reset_less=True),
        )
        inside = Signal(name=f"inside_{i}", reset_less=True)
        width, (gelu, silu) = numerics.TABLE_INDEX_WIDTH, _STEPS
        m.d.sync += [
            index.eq(
                Mux(is_silu, Cat(magnitude[silu : silu + width], C(1, 1)), magnitude[gelu : gelu + width])
            ),
            fraction.eq(Mux(is_silu, magnitude[:silu], magnitude[:gelu])),
            inside.eq(~Mux(is_silu, magnitude[silu + width :].any(), magnitude[gelu + width :].any())),
        ]
        # 3: table; 3 + MULTIPLY_LATENCY: slope * fraction
        m.d.comb += port.addr.eq(index)
        product = multiply(
            m, port.data.slope, delay(m, fraction, 1, name=f"fraction_{i}"), name=f"product_{i}"
        )
        base = delay(m, port.data.base, MULTIPLY_LATENCY + 1, name=f"base_{i}")
        # + 1: rounded; + 2: delta; + 3: ReLU - delta, whose rounding half is a constant below ReLU's point
        rounded = Signal(signed(_SLOPE_WIDTH + 1), name=f"rounded_{i}", reset_less=True)
        m.d.sync += rounded.eq(
            Mux(late_silu, (product + (1 << (silu - 1))) >> silu, (product + (1 << (gelu - 1))) >> gelu)
        )
        used = delay(m, inside & has_delta, MULTIPLY_LATENCY + 2, name=f"used_{i}")
        delta = Signal(_BASE_WIDTH, name=f"delta_{i}", reset_less=True)
        m.d.sync += delta.eq(Mux(used, base + rounded, 0))
        relu = delay(m, relu, MULTIPLY_LATENCY + 3, name=f"relu_{i}")
        extra = numerics.DELTA_FRACTION - numerics.FRACTION
        half = Cat(C(1 << (extra - 1), extra), relu).as_signed()
        m.d.comb += self.y[i].eq(delay(m, (half - delta) >> extra, 1, name=f"y_{i}"))
