"""POST's side of the softmax, followed by what the context loader does, against ``numerics.softmax``."""

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units import softmax
from moevit.numerics import softmax as numerics


def _scores(rng, n_rows, n_keys, kind):
    """Rows of 20-bit scores."""
    if kind == "random":
        return rng.integers(-(1 << 15), 1 << 15, (n_rows, n_keys)) >> rng.integers(0, 12, (n_rows, 1))
    if kind == "rising":
        return np.sort(rng.integers(-3000, 3000, (n_rows, n_keys)), axis=1)
    if kind == "extreme":
        return rng.choice([-(1 << 19), -(1 << 15), -1, 0, (1 << 15) - 1, (1 << 19) - 1], (n_rows, n_keys))
    if kind == "lowest":
        return np.full((n_rows, n_keys), -(1 << 19))
    return np.arange(n_rows * n_keys).reshape(n_rows, n_keys) % 700 - 350  # every table entry and shift


@pytest.mark.parametrize("kind", ["random", "rising", "extreme", "lowest", "ramp"])
@pytest.mark.parametrize(
    ("name", "n_rows", "n_keys"), [("tiny", 4, 50), ("tiny", 1, 24), ("wide", 2, 33), ("tiny", 3, 5)]
)
def test_softmax(name, n_rows, n_keys, kind):
    config = CONFIGS[name]
    lanes, rng = config.columns, np.random.default_rng(n_keys)
    dut = softmax.Softmax(config)
    tiles = -(-n_keys // lanes)
    units = [_scores(rng, n_rows, n_keys, kind) for _ in range(3)]
    # beyond n_keys the array gives anything
    padded = [
        np.concatenate([u, rng.integers(-(1 << 19), 1 << 19, (n_rows, tiles * lanes - n_keys))], 1)
        for u in units
    ]
    gaps = rng.integers(0, 3, 3 * tiles) * rng.integers(0, 2, 3 * tiles)
    sent, staged = [], []

    async def source(ctx):
        ctx.set(dut.n_keys, n_keys)
        for unit, scores in enumerate(padded):
            for tile in range(tiles):
                for row in range(n_rows):
                    ctx.set(dut.valid, 1)
                    ctx.set(dut.unit, unit & 1)
                    ctx.set(dut.row, row)
                    ctx.set(dut.column, tile)
                    ctx.set(dut.last, int(row == n_rows - 1 and tile == tiles - 1))
                    ctx.set(dut.mid, scores[row, tile * lanes : (tile + 1) * lanes].tolist())
                    sent.append((unit, tile, row))
                    await ctx.tick()
                ctx.set(dut.valid, 0)
                await ctx.tick().repeat(int(gaps[unit * tiles + tile])) if gaps[unit * tiles + tile] else None
        await ctx.tick().repeat(softmax.latency(config) + 1)

    arrivals, departures = [], []

    async def monitor(ctx):
        o, cycle = dut.o_staged, 0
        while True:
            _, _, valid_in, valid, unit, row, tile, value, maximum, last = await ctx.tick().sample(
                dut.valid, o.valid, o.unit, o.row, o.tile, o.data, o.maximum, o.last
            )
            if valid_in:
                arrivals.append(cycle)
            if valid:
                departures.append(cycle)
                staged.append((unit, row, tile, value, maximum, last))
            cycle += 1

    run(dut, source, background=[monitor])
    assert [d - a for a, d in zip(arrivals, departures, strict=True)] == [softmax.latency(config)] * len(sent)

    got = np.zeros((3, n_rows, tiles * lanes), np.int64)
    maxima = np.zeros((3, n_rows, tiles), np.int64)
    for (unit, tile, row), (o_unit, o_row, o_tile, value, maximum, last) in zip(sent, staged, strict=True):
        assert (o_unit, o_row, o_tile) == (unit & 1, row, tile)
        assert last == (row == n_rows - 1 and tile == tiles - 1)
        got[unit, row, tile * lanes : (tile + 1) * lanes] = list(value.to_bytes(lanes, "little"))
        maxima[unit, row, tile] = maximum - (maximum >> (numerics.MAX_WIDTH - 1) << numerics.MAX_WIDTH)
    for unit, scores in enumerate(units):
        clamped = np.clip(scores, -(1 << 15), (1 << 15) - 1)
        growth = np.repeat(maxima[unit][:, -1:] - maxima[unit], lanes, axis=1)
        final = numerics.rescale_probability(got[unit], growth)
        want, _ = numerics.softmax(clamped, lanes)
        np.testing.assert_array_equal(final[:, :n_keys], want)
        assert not got[unit][:, n_keys:].any()
