"""ContextLoader behind a ProbabilityBuffer, against ``numerics.softmax``."""

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import wiring

from hw.bench import run
from hw.softmax_model import random_scores, staged_rows, tile_and_scales
from moevit.config import get_config
from moevit.hw.units.context_loader import CONTEXT_LATENCY, ContextLoader, cover_steps, scale_latency
from moevit.hw.units.probability_buffer import ProbabilityBuffer


class _Bench(Elaboratable):
    def __init__(self, config):
        self.buffer, self.loader = ProbabilityBuffer(config), ContextLoader(config)

    def elaborate(self, platform):
        m = Module()
        m.submodules.buffer, m.submodules.loader = self.buffer, self.loader
        wiring.connect(m, self.loader.read, self.buffer.read)
        return m


async def _stage(ctx, buffer, unit, scores, config):
    for word in staged_rows(scores, config):
        ctx.set(buffer.i_staged.valid, 1)
        ctx.set(buffer.i_staged.unit, unit)
        for name, value in word._asdict().items():
            ctx.set(getattr(buffer.i_staged, name), value & 0x7FF if name == "maximum" else value)
        await ctx.tick()
    ctx.set(buffer.i_staged.valid, 0)


@pytest.mark.parametrize("name", ["tiny", "wide"])
@pytest.mark.parametrize("covered", [False, True])
def test_units(name, covered):
    config = get_config(name)
    dut = _Bench(config)
    loader = dut.loader
    rng = np.random.default_rng(7)
    mult, shift = 0xC0DE, 21
    cases = [
        (1, 1),
        (config.rows, 3 * config.columns),
        (config.rows - 1, 2 * config.columns + 1),
        (config.rows, config.columns - 1),
        (1, 9 * config.columns),
    ]
    scores = [random_scores(rng, *case) for case in cases]
    scores[1][0] = np.sort(scores[1][0])  # grows in every tile
    scores[1][1] = [-32768] * (len(scores[1][1]) - 1) + [32767]
    expected = [tile_and_scales(s, config, mult, shift) for s in scores]

    async def bench(ctx):
        ctx.set(loader.mult, mult)
        ctx.set(loader.shift, shift)
        ctx.set(loader.covered, covered)
        for index, unit_scores in enumerate(scores):
            rows, keys = unit_scores.shape
            key_tiles = -(-keys // config.columns)
            await _stage(ctx, dut.buffer, index & 1, unit_scores, config)
            assert not ctx.get(loader.busy)
            assert ctx.get(loader.idle)
            ctx.set(loader.start, 1)
            ctx.set(loader.unit, index & 1)
            ctx.set(loader.last_row, rows - 1)
            ctx.set(loader.last_tile, key_tiles - 1)
            ctx.set(loader.buffer, index & 1)
            tile, row_scales, writes, scale_cycles, filled = {}, [], [], [], []
            cycle = 0
            while cycle == 0 or not ctx.get(loader.idle):
                if ctx.get(loader.o_tile.valid):
                    assert ctx.get(loader.o_tile.buffer) == index & 1
                    key = ctx.get(loader.o_tile.row), ctx.get(loader.o_tile.word)
                    assert key not in tile
                    tile[key] = ctx.get(loader.o_tile.data).to_bytes(config.columns, "little")
                    writes.append(cycle)
                if ctx.get(loader.o_scale.valid):
                    assert ctx.get(loader.o_scale.row) == len(row_scales)
                    assert ctx.get(loader.o_scale.unit) == index & 1
                    row_scales.append((ctx.get(loader.o_scale.mult), ctx.get(loader.o_scale.shift)))
                    scale_cycles.append(cycle)
                if ctx.get(loader.filled):
                    filled.append(cycle)
                await ctx.tick()
                ctx.set(loader.start, 0)
                cycle += 1
            assert tile == expected[index][0], cases[index]
            assert row_scales == expected[index][1], cases[index]
            assert writes == list(range(CONTEXT_LATENCY + 1, CONTEXT_LATENCY + 1 + rows * key_tiles))
            last_writes = writes[key_tiles - 1 :: key_tiles]
            assert scale_cycles == [w + scale_latency(config) for w in last_writes]
            assert filled == [writes[-1] if covered else scale_cycles[-1]]

    run(dut, bench, timeout_cycles=2000)


def test_cover_steps():
    """With one step more than ``cover_steps``, the array cannot need a scale before it is there."""
    for name in ("tiny", "zcu104", "wide"):
        config = get_config(name)
        assert scale_latency(config) == 17 + (config.columns - 1).bit_length()
        assert 0 < cover_steps(config) <= 16
