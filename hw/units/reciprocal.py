"""1/x of a row sum, and the row's scale for P.V."""

from collections.abc import Sequence

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.hw.units import arithmetic
from moevit.numerics import fixed, reciprocal

RECIPROCAL_LATENCY = 12
ROW_SCALE_LATENCY = RECIPROCAL_LATENCY + arithmetic.MULTIPLY_LATENCY + 1

_STEPS = ((16,), (8, 4), (2, 1))  # shifts of the normaliser, one group a cycle


def normalise(m: Module, value: Value, steps: Sequence[Sequence[int]], *, name: str) -> tuple[Value, Value]:
    """``value`` shifted left until its upper ``min(steps)`` bits are not all zero, and by how much.

    ``value`` must not be zero; the shift is a sum of steps, each of which is used at most once. One cycle for
    each group of steps.
    """
    flags = []
    for stage, group in enumerate(steps):
        taken = []
        for step in group:
            empty = ~value[-step:].any()
            value = Mux(empty, Cat(C(0, step), value[:-step]), value)
            taken.append(empty)
        value = arithmetic.delay(m, value, 1, name=f"{name}_{stage}")
        count = Cat(*flags, *taken)
        flags = list(arithmetic.delay(m, count, 1, name=f"{name}_{stage}_flags"))
    # the flags are of falling powers of two: read backwards, they are the shift divided by the last step
    shift = Cat(C(0, (steps[-1][-1]).bit_length() - 1), *reversed(flags))
    return value, shift


def one_if_zero(value: Value) -> Value:
    """``max(value, 1)`` of an unsigned value."""
    return Cat(value[0] | ~value.any(), value[1:])


class Reciprocal(wiring.Component):
    """``mantissa * 2**-shift`` near 1/x: normalised, a table's seed, one Newton step.

    Members
    -------
    x : In(21)
    mantissa, shift : Out(16), Out(6)

    Numerics: ``numerics.reciprocal.reciprocal``.
    Latency: RECIPROCAL_LATENCY. Throughput: one a cycle.
    """

    x: In(reciprocal.INPUT_WIDTH)
    mantissa: Out(fixed.MULT_WIDTH)
    shift: Out(fixed.SHIFT_WIDTH)

    def elaborate(self, platform):
        m = Module()
        fraction, seed = reciprocal.MANTISSA_FRACTION, reciprocal.SEED_FRACTION
        x = arithmetic.delay(m, one_if_zero(self.x), 1, name="x")
        normal, places = normalise(m, x, _STEPS, name="normal")
        mantissa = normal[-(fraction + 1) :]  # [2**16, 2**17)
        position = (reciprocal.INPUT_WIDTH - 1 - places)[:5]

        m.submodules.table = table = Memory(
            shape=seed,
            depth=len(reciprocal.TABLE),
            init=reciprocal.TABLE.tolist(),
        )
        read = table.read_port()
        m.d.comb += read.addr.eq(mantissa[fraction - reciprocal.TABLE_INDEX_WIDTH : fraction])
        mantissa1 = arithmetic.delay(m, mantissa, 1, name="mantissa")

        latency = arithmetic.MULTIPLY_LATENCY
        u = arithmetic.multiply(m, mantissa1, read.data, name="u")[seed:]
        seed1 = arithmetic.delay(m, read.data, latency, name="seed")
        rest = ((2 << fraction) - u)[: fraction + 2]
        r1 = arithmetic.multiply(m, seed1, rest, name="r1")[seed:]
        m.d.sync += self.mantissa.eq(Mux(r1[fraction:].any(), (1 << fraction) - 1, r1))
        m.d.comb += self.shift.eq(arithmetic.delay(m, fraction + position, 2 + 2 * latency, name="shift")[:6])
        assert 1 + len(_STEPS) + 1 + 2 * latency + 1 == RECIPROCAL_LATENCY
        return m


class RowScale(wiring.Component):
    """POST's multiplier and shift of a row of P.V: ``mult * 2**-shift / row_sum``.

    Members
    -------
    row_sum : In(21)
    mult, shift : In(16), In(6), the instruction's; constant while anything is under way
    o_mult, o_shift : Out(16), Out(6)

    Numerics: ``numerics.softmax.row_scale``.
    Latency: ROW_SCALE_LATENCY. Throughput: one a cycle.
    """

    row_sum: In(reciprocal.INPUT_WIDTH)
    mult: In(fixed.MULT_WIDTH)
    shift: In(fixed.SHIFT_WIDTH)
    o_mult: Out(fixed.MULT_WIDTH)
    o_shift: Out(fixed.SHIFT_WIDTH)

    def elaborate(self, platform):
        m = Module()
        m.submodules.reciprocal = unit = Reciprocal()
        width = fixed.MULT_WIDTH
        product = arithmetic.multiply(m, unit.mantissa, self.mult, name="product")
        total = unit.shift + self.shift - width  # unit.shift is at least 16
        total = arithmetic.delay(m, total[: fixed.SHIFT_WIDTH + 1], arithmetic.MULTIPLY_LATENCY, name="total")
        m.d.comb += unit.x.eq(self.row_sum)
        m.d.sync += [
            # at most (2**16 - 1)**2: rounding cannot overflow, so there is nothing to saturate
            self.o_mult.eq((product + (1 << (width - 1))) >> width),
            self.o_shift.eq(Mux(total > fixed.MAX_SHIFT, fixed.MAX_SHIFT, total)),
        ]
        return m
