"""The multipliers and accumulators, packed and not, against integer products; proof of the packing."""

import dataclasses
import itertools

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units.dot_product import DotProduct, dot_latency, row_latency
from moevit.numerics.matmul import int_matmul

TINY = CONFIGS["tiny"]


def shaped(rows, columns, depth, packed):
    return dataclasses.replace(
        TINY, name=f"{rows}x{columns}x{depth}{'p' * packed}", rows=rows, columns=columns, depth=depth,
        packed_macs=packed,
    )


SHAPES = [
    shaped(*shape, packed)
    for shape in ((4, 8, 4), (2, 16, 8), (2, 16, 16), (16, 16, 2))
    for packed in (False, True)
]


def pack(values, width):
    """An array of integers as one number, the first element lowest."""
    data = 0
    for value in reversed(np.asarray(values).reshape(-1).tolist()):
        data = data << width | (value & ((1 << width) - 1))
    return data


def compute(config, tiles, seed=None):
    """Run ``tiles``, lists of steps (a [T][K], b [C][K]), each as soon as the previous one is drained.

    Returns the accumulators [tile][T][C] and checks the latencies. With ``seed``, steps come with gaps.
    """
    dut = DotProduct(config)
    rng = np.random.default_rng(seed)
    out = np.zeros((len(tiles), config.rows, config.columns), np.int64)
    cycle, last_at, done_at = 0, [], []
    reads = []  # (cycle in which the row comes out, tile, row)

    async def feed(ctx):
        wait = now = 0
        for tile in tiles:
            for i, (a, b) in enumerate(tile):
                last = i == len(tile) - 1
                idle = int(rng.integers(0, 3)) if seed is not None else 0
                for _ in range(max(idle, wait if last else 0)):
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.last, 1)
                    await ctx.tick()
                    now += 1
                    wait -= 1
                ctx.set(dut.valid, 1)
                ctx.set(dut.first, i == 0)
                ctx.set(dut.last, last)
                ctx.set(dut.a.as_value(), pack(a, 9))
                ctx.set(dut.b.as_value(), pack(b, 8))
                if last:
                    last_at.append(now)
                await ctx.tick()
                now += 1
                wait = config.rows - 1 if last else wait - 1
        ctx.set(dut.valid, 0)
        await ctx.tick().repeat(dot_latency(config) + config.rows + row_latency(config) + 1)

    async def drain(ctx):
        nonlocal cycle
        row = config.rows
        while True:
            while reads and reads[0][0] == cycle:
                _, tile, read = reads.pop(0)
                words = int(ctx.get(dut.acc.as_value())).to_bytes(4 * config.columns, "little")
                out[tile, read] = np.frombuffer(words, "<i4")
            ctx.set(dut.row, min(row, config.rows - 1))
            if row < config.rows:
                reads.append((cycle + row_latency(config), len(done_at) - 1, row))
                row += 1
            if ctx.get(dut.done):
                assert row == config.rows, "done while rows are still to be read"
                done_at.append(cycle)
                row = 0
            await ctx.tick()
            cycle += 1

    run(dut, feed, background=[drain], timeout_cycles=20_000)
    assert done_at == [last + dot_latency(config) for last in last_at]
    return out


def expected(tiles):
    sums = [sum(int_matmul(np.array(a), np.array(b).T, a_max=256) for a, b in tile) for tile in tiles]
    return np.array(sums).astype(np.int32)


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: c.name)
@pytest.mark.parametrize("gaps", [None, 1], ids=["dense", "gaps"])
def test_random_tiles(config, gaps):
    rng = np.random.default_rng(7)
    tiles = [
        [
            (rng.integers(-128, 256, (config.rows, config.depth)),
             rng.integers(-128, 128, (config.columns, config.depth)))
            for _ in range(steps)
        ]
        for steps in [1, 1, 2, config.rows, config.rows + 3, 5, 1, *rng.integers(1, 12, 8).tolist()]
    ]
    assert np.array_equal(compute(config, tiles, gaps), expected(tiles))


@pytest.mark.parametrize("config", [shaped(2, 16, 8, True), shaped(4, 8, 4, True), shaped(2, 16, 16, True)],
                         ids=lambda c: c.name)
def test_packing_corners(config):
    """Every pair of extreme B against every extreme A: all products alike, and mixed at random.

    The fields are exact if |s0| < 2**18, whatever s1 is; the extremes of s0 and s1 are among these.
    """
    bs = (-128, -127, -1, 0, 1, 126, 127)
    pairs = list(itertools.product(bs, bs))
    per_step = config.columns // 2
    tiles = []
    for group in itertools.zip_longest(*[iter(pairs)] * per_step, fillvalue=(0, -1)):
        b = np.repeat(np.array(group).reshape(-1, 1), config.depth, axis=1)
        for a_values in np.array([-255, -128, -127, -1, 0, 1, 254, 255]).reshape(-1, config.rows):
            tiles.append([(np.repeat(a_values.reshape(-1, 1), config.depth, axis=1), b)])
    rng = np.random.default_rng(3)
    for _ in range(100):
        a = rng.choice((-255, -128, -1, 0, 1, 255), (config.rows, config.depth))
        tiles.append([(a, rng.choice(bs, (config.columns, config.depth)))])
    assert np.array_equal(compute(config, tiles), expected(tiles))


def test_keeps_32_bits():
    """A long tile of the largest products of both signs in neighbouring columns."""
    config = shaped(2, 16, 16, True)
    b = np.where(np.arange(16) % 2, 127, -128).reshape(16, 1).repeat(16, axis=1)
    tiles = [[(np.full((2, 16), 255), b)] * 520]
    assert np.array_equal(compute(config, tiles), expected(tiles))


def test_packing_changes_no_latency():
    for plain, packed in zip(SHAPES[::2], SHAPES[1::2], strict=True):
        assert dot_latency(plain) == dot_latency(packed)
