"""1/sqrt(x) of a row's variance."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from moevit.hw.units import arithmetic
from moevit.hw.units.reciprocal import normalise, one_if_zero
from moevit.numerics import fixed, rsqrt

RSQRT_LATENCY = 16

_STEPS = ((32,), (16,), (8, 4), (2,))  # shifts of the normaliser, one group a cycle


class Rsqrt(wiring.Component):
    """``mantissa * 2**-shift`` near 1/sqrt(x): normalised by an even power, a table's seed, one Newton step.

    Members
    -------
    x : In(58)
    mantissa, shift : Out(16), Out(6)

    Numerics: ``numerics.rsqrt.rsqrt``.
    Latency: RSQRT_LATENCY. Throughput: one a cycle.
    """

    x: In(rsqrt.INPUT_WIDTH)
    mantissa: Out(fixed.MULT_WIDTH)
    shift: Out(fixed.SHIFT_WIDTH)

    def elaborate(self, platform):
        m = Module()
        fraction, seed_fraction = rsqrt.MANTISSA_FRACTION, rsqrt.SEED_FRACTION
        latency = arithmetic.MULTIPLY_LATENCY
        assert rsqrt.INPUT_WIDTH % 2 == 0
        x = arithmetic.delay(m, one_if_zero(self.x), 1, name="x")
        normal, places = normalise(m, x, _STEPS, name="normal")
        mantissa = normal[-(fraction + 2) :]  # [2**16, 2**18)
        half = (rsqrt.INPUT_WIDTH // 2 - 1 - places[1:])[:5]

        # The mantissa's upper bits are the address; the first TABLE_FIRST entries are never read.
        entries = [0] * rsqrt.TABLE_FIRST + rsqrt.TABLE.tolist()
        m.submodules.table = table = Memory(
            shape=seed_fraction, depth=len(entries), init=entries
        )
        read = table.read_port()
        m.d.comb += read.addr.eq(mantissa[rsqrt.TABLE_INDEX_SHIFT :])
        seed = read.data

        t = arithmetic.multiply(m, seed, seed, name="t")[2 * seed_fraction - fraction :]
        mantissa1 = arithmetic.delay(m, mantissa, 1 + latency, name="mantissa")
        u = arithmetic.multiply(m, mantissa1, t, name="u")[fraction:]
        rest = ((3 << fraction) - u)[: fraction + 2]
        seed1 = arithmetic.delay(m, seed, 2 * latency, name="seed")
        r1 = arithmetic.multiply(m, seed1, rest, name="r1")[fraction:]
        m.d.sync += self.mantissa.eq(Mux(r1[fraction:].any(), (1 << fraction) - 1, r1))
        m.d.comb += self.shift.eq(arithmetic.delay(m, fraction + half, 2 + 3 * latency, name="shift")[:6])
        assert 1 + len(_STEPS) + 1 + 3 * latency + 1 == RSQRT_LATENCY
        return m
