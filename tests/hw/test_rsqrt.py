"""Rsqrt against the numerics: every power of two's neighbourhood, random values of every length."""

import numpy as np

from hw.bench import run
from moevit.hw.units.rsqrt import RSQRT_LATENCY, Rsqrt
from moevit.numerics import rsqrt


def test_rsqrt():
    rng = np.random.default_rng(4)
    width = rsqrt.INPUT_WIDTH
    corners = [0] + [(1 << i) + d for i in range(width) for d in (-1, 0, 1)] + [(1 << width) - 1]
    scattered = rng.integers(1, 1 << width, 600) >> rng.integers(0, width, 600)
    values = np.array(corners + scattered.tolist())
    dut, results = Rsqrt(), []

    async def bench(ctx):
        for cycle in range(len(values) + RSQRT_LATENCY):
            ctx.set(dut.x, int(values[min(cycle, len(values) - 1)]))
            if cycle >= RSQRT_LATENCY:
                results.append((ctx.get(dut.mantissa), ctx.get(dut.shift)))
            await ctx.tick()

    run(dut, bench)
    assert np.array_equal(np.array(results).T, rsqrt.rsqrt(values))
