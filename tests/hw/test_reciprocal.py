"""Reciprocal and RowScale against the numerics: every power of two's neighbourhood, random sums."""

import numpy as np

from hw.bench import run
from moevit.hw.units.reciprocal import RECIPROCAL_LATENCY, ROW_SCALE_LATENCY, Reciprocal, RowScale
from moevit.numerics import reciprocal, softmax


def _values(width):
    rng = np.random.default_rng(3)
    corners = [0] + [(1 << i) + d for i in range(width) for d in (-1, 0, 1)] + [(1 << width) - 1]
    scattered = rng.integers(1, 1 << width, 400) >> rng.integers(0, width, 400)
    return np.array(corners + scattered.tolist())


def test_reciprocal():
    dut, values, results = Reciprocal(), _values(reciprocal.INPUT_WIDTH), []

    async def bench(ctx):
        for cycle in range(len(values) + RECIPROCAL_LATENCY):
            ctx.set(dut.x, int(values[min(cycle, len(values) - 1)]))
            if cycle >= RECIPROCAL_LATENCY:
                results.append((ctx.get(dut.mantissa), ctx.get(dut.shift)))
            await ctx.tick()

    run(dut, bench)
    assert np.array_equal(np.array(results).T, reciprocal.reciprocal(values))


def test_row_scale():
    dut, sums = RowScale(), _values(reciprocal.INPUT_WIDTH)
    cases = [(0x8000, 0), (0xFFFF, 63), (0xABCD, 30), (0x8001, 47)]
    got = []

    async def bench(ctx):
        for mult, shift in cases:
            ctx.set(dut.mult, mult)
            ctx.set(dut.shift, shift)
            results = []
            for cycle in range(len(sums) + ROW_SCALE_LATENCY):
                ctx.set(dut.row_sum, int(sums[min(cycle, len(sums) - 1)]))
                if cycle >= ROW_SCALE_LATENCY:
                    results.append((ctx.get(dut.o_mult), ctx.get(dut.o_shift)))
                await ctx.tick()
            got.append(np.array(results).T)

    run(dut, bench)
    for (mult, shift), result in zip(cases, got, strict=True):
        assert np.array_equal(result, softmax.row_scale(sums, mult, shift)), (mult, shift)
