"""ProbabilityBuffer against a dictionary: one unit is read while the other is written."""

import random

import pytest

from hw.bench import run
from moevit.config import get_config
from moevit.hw.units.probability_buffer import PROBABILITY_READ_LATENCY, ProbabilityBuffer


async def _stage(ctx, dut, unit, rows, tiles, rng, gap):
    """Write a whole unit; returns {(row, tile): (data, maximum)} and {row: final}."""
    words, finals = {}, {}
    for tile in range(tiles):
        for row in range(rows):
            while rng.random() < gap:
                await ctx.tick()
            data, maximum = rng.getrandbits(len(dut.i_staged.data)), rng.randrange(-1024, 1024)
            words[row, tile], finals[row] = (data, maximum), maximum
            assert not ctx.get(dut.complete) >> unit & 1
            for name, value in (
                ("valid", 1),
                ("unit", unit),
                ("row", row),
                ("tile", tile),
                ("data", data),
                ("maximum", maximum & 0x7FF),
                ("last", (row, tile) == (rows - 1, tiles - 1)),
            ):
                ctx.set(getattr(dut.i_staged, name), value)
            await ctx.tick()
            ctx.set(dut.i_staged.valid, 0)
    return words, finals


async def _read(ctx, dut, unit, words, finals):
    """Read everything back, an address a cycle from this cycle on."""
    keys = list(words)
    for cycle in range(len(keys) + PROBABILITY_READ_LATENCY):
        row, tile = keys[min(cycle, len(keys) - 1)]
        ctx.set(dut.read.unit, unit)
        ctx.set(dut.read.row, row)
        ctx.set(dut.read.tile, tile)
        if cycle >= PROBABILITY_READ_LATENCY:
            row, tile = keys[cycle - PROBABILITY_READ_LATENCY]
            got = ctx.get(dut.read.data), ctx.get(dut.read.maximum), ctx.get(dut.read.final)
            assert got == (*words[row, tile], finals[row])
        await ctx.tick()


@pytest.mark.parametrize("name", ["tiny", "wide"])
@pytest.mark.parametrize("gap", [0, 0.3])
def test_two_units(name, gap):
    config = get_config(name)
    dut = ProbabilityBuffer(config)
    contents = {}

    async def write(ctx):
        rng = random.Random(5)
        for index in range(6):
            unit = index & 1
            while index - 2 in contents:  # not read yet
                await ctx.tick()
            tiles = rng.choice([1, 2, 5, config.max_key_tiles if index == 3 else 3])
            contents[index] = await _stage(ctx, dut, unit, rng.randint(1, config.rows), tiles, rng, gap)
            assert ctx.get(dut.complete) >> unit & 1

    async def read(ctx):
        for index in range(6):
            unit = index & 1
            while not ctx.get(dut.complete) >> unit & 1:
                await ctx.tick()
            ctx.set(dut.take, 1)
            ctx.set(dut.take_unit, unit)
            await _read_first(ctx, unit, contents[index])
            del contents[index]

    async def _read_first(ctx, unit, content):
        words, finals = content
        ctx.set(dut.read.unit, unit)
        await ctx.tick()
        ctx.set(dut.take, 0)
        assert not ctx.get(dut.complete) >> unit & 1
        await _read(ctx, dut, unit, words, finals)

    run(dut, write, read, timeout_cycles=5000)


def test_read_with_complete():
    """A read in the first cycle of ``complete`` sees the last row."""
    dut = ProbabilityBuffer(get_config("tiny"))

    async def bench(ctx):
        words, finals = await _stage(ctx, dut, 1, 1, 1, random.Random(6), 0)
        assert ctx.get(dut.complete) == 2
        await _read(ctx, dut, 1, words, finals)

    run(dut, bench, timeout_cycles=100)
