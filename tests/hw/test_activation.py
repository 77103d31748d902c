"""The activation against ``numerics.activation``, for every input."""

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units import activation
from moevit.numerics.activation import Activation, activate
from moevit.numerics.fixed import MID_WIDTH

CONFIG = CONFIGS["tiny"]
LANES = CONFIG.columns


async def _check(ctx, dut, mid, kind):
    got = []
    for cycle in range(len(mid) + activation.LATENCY):
        if cycle < len(mid):
            ctx.set(dut.mid, mid[cycle].tolist())
            ctx.set(dut.kind, int(kind[cycle]))
        if cycle >= activation.LATENCY:
            got.append([ctx.get(dut.y[i]) for i in range(LANES)])
        await ctx.tick()
    want = np.array([activate(m, Activation(k)) for m, k in zip(mid, kind, strict=True)])
    np.testing.assert_array_equal(np.array(got), want)


def test_kinds_change_every_row():
    dut, rng = activation.Activation(CONFIG), np.random.default_rng(1)
    mid = rng.integers(-(1 << 19), 1 << 19, (600, LANES)) >> rng.integers(0, 19, (600, 1))
    mid[:4], mid[4:8], mid[8:12] = -(1 << 19), (1 << 19) - 1, np.arange(LANES) - 3
    kind = rng.integers(0, 4, 600)
    kind[:12] = np.tile(np.arange(4), 3)

    async def bench(ctx):
        await _check(ctx, dut, mid, kind)

    run(dut, bench)


@pytest.mark.parametrize("kind", [Activation.GELU, Activation.SILU])
def test_table_ends(kind):
    """Around zero, the nodes and the table's end, on both sides."""
    node = 1 << (7 if kind == Activation.GELU else 8)
    x = (np.arange(0, 132)[:, None] * node + np.array([-1, 0, 1, node // 2])).ravel()
    x = np.concatenate([x, -x])
    dut = activation.Activation(CONFIG)

    async def bench(ctx):
        await _check(ctx, dut, x.reshape(-1, LANES), np.full(len(x) // LANES, kind))

    run(dut, bench)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Activation.GELU, Activation.SILU])
def test_every_input(kind):
    x = np.arange(-(1 << (MID_WIDTH - 1)), 1 << (MID_WIDTH - 1)).reshape(-1, LANES)
    x = x[np.abs(x).min(1) < 40_000]  # beyond, the table is over
    dut = activation.Activation(CONFIG)

    async def bench(ctx):
        await _check(ctx, dut, x, np.full(len(x), kind))

    run(dut, bench, timeout_cycles=len(x) + 100)
