"""The shared arithmetic against ``numerics.fixed``."""

import numpy as np
import pytest
from amaranth import *
from amaranth.sim import Simulator

from moevit.hw.units import arithmetic
from moevit.numerics import fixed


def _run(m, inputs, outputs, vectors, latency):
    """Outputs for each vector (one per cycle), each taken ``latency`` cycles after it."""
    results = []

    async def bench(ctx):
        for cycle in range(len(vectors) + latency):
            for signal, value in zip(inputs, vectors[min(cycle, len(vectors) - 1)], strict=True):
                ctx.set(signal, int(value))
            if cycle >= latency:
                results.append([ctx.get(o) for o in outputs])
            await ctx.tick()

    sim = Simulator(m)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    sim.run()
    return np.array(results)


@pytest.mark.parametrize("bits_per_stage", [2, 3])
@pytest.mark.parametrize("bits", [None, 20])
def test_round_shift(bits, bits_per_stage):
    rng = np.random.default_rng(1)
    value, shift = Signal(signed(49)), Signal(6)
    m = Module()
    out = arithmetic.round_shift(m, value, shift, name="x", bits=bits, bits_per_stage=bits_per_stage)
    values = [-(1 << 48), (1 << 48) - 1, 0, 1, -1, 3, -3] + rng.integers(-(1 << 48), 1 << 48, 20).tolist()
    vectors = [(v >> s, t) for v in values for s in (0, 20) for t in range(64)]
    latency = arithmetic.round_shift_latency(6, saturated=bits is not None, bits_per_stage=bits_per_stage)
    got = _run(m, [value, shift], [out], vectors, latency)[:, 0]
    want = fixed.round_shift(*np.array(vectors).T)
    np.testing.assert_array_equal(got, want if bits is None else fixed.saturate(want, bits))


def test_round_shift_unsigned():
    value, shift = Signal(8), Signal(4)
    m = Module()
    out = arithmetic.round_shift(m, value, shift, name="x")
    vectors = [(v, t) for v in range(256) for t in range(16)]
    want = fixed.round_shift(*np.array(vectors).T)
    got = _run(m, [value, shift], [out], vectors, arithmetic.round_shift_latency(4, saturated=False))[:, 0]
    np.testing.assert_array_equal(got, want)
    m = Module()
    clamped = arithmetic.round_shift(m, value, shift, name="y", bits=7)
    got = _run(m, [value, shift], [clamped], vectors, arithmetic.round_shift_latency(4, saturated=True))[:, 0]
    np.testing.assert_array_equal(got, fixed.saturate(want, 7))


@pytest.mark.parametrize("width", [6, 8, 9, 12])
def test_saturate(width):
    value, outs, m = Signal(signed(width)), [Signal(signed(16), name=f"o{i}") for i in range(2)], Module()
    m.d.comb += [outs[0].eq(arithmetic.saturate(value, 8)), outs[1].eq(arithmetic.saturate(value, 8, False))]
    m.d.sync += Signal().eq(0)
    values = np.arange(-(1 << (width - 1)), 1 << (width - 1))
    got = _run(m, [value], outs, [(v,) for v in values], 0)
    np.testing.assert_array_equal(got[:, 0], fixed.saturate(values, 8))
    np.testing.assert_array_equal(got[:, 1], fixed.saturate(values, 8, signed=False))


@pytest.mark.parametrize("is_signed", [False, True])
def test_shift_left(is_signed):
    value, shift = Signal(Shape(6, is_signed)), Signal(4)
    m = Module()
    out = arithmetic.shift_left(m, value, shift, 18, name="x")
    low = -32 if is_signed else 0
    vectors = [(v, t) for v in range(low, low + 64) for t in range(16)]
    got = _run(m, [value, shift], [out], vectors, arithmetic.shift_latency(4))[:, 0]
    want = [v << t & 0x3FFFF for v, t in vectors]
    np.testing.assert_array_equal(got & 0x3FFFF, want)
    assert out.shape().signed == is_signed


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_trees(count):
    rng = np.random.default_rng(count)
    inputs = [Signal(signed(9), name=f"i{i}") for i in range(count)]
    m = Module()
    m.d.sync += Signal().eq(0)
    total = arithmetic.adder_tree(m, inputs, name="sum")
    largest = arithmetic.maximum_tree(m, inputs, name="max")
    vectors = rng.integers(-256, 256, (50, count))
    vectors[0], vectors[1] = -256, 255
    got = _run(m, inputs, [total, largest], vectors, arithmetic.tree_latency(count))
    np.testing.assert_array_equal(got, np.stack([vectors.sum(1), vectors.max(1)], 1))


def test_multiply_latency():
    a, b, m = Signal(signed(33)), Signal(16), Module()
    out = arithmetic.multiply(m, a, b, name="p")
    vectors = [(-(1 << 32), 65535), ((1 << 32) - 1, 65535), (-1, 1), (7, 0)]
    got = _run(m, [a, b], [out], vectors, arithmetic.MULTIPLY_LATENCY)[:, 0]
    np.testing.assert_array_equal(got, [x * y for x, y in vectors])
