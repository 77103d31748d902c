"""The A tile against an array of bytes."""

import dataclasses

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.interfaces import TILE_READ_LATENCY
from moevit.hw.units.a_tile import ATile

TINY = dataclasses.replace(CONFIGS["tiny"], tile_depth=64)
SQUARE = dataclasses.replace(CONFIGS["square"], tile_depth=64)
ODD = dataclasses.replace(CONFIGS["wide"], name="odd", tile_depth=80)  # no power of two of words
ONE = dataclasses.replace(CONFIGS["wide"], name="one", tile_depth=16)  # one word a row


@pytest.mark.parametrize("config", [TINY, SQUARE, ODD, ONE], ids=lambda c: c.name)
def test_random_accesses(config):
    """A write is seen by a read addressed in the next cycle, not by one in the same."""
    dut, rng = ATile(config), np.random.default_rng(1)
    rows, columns, depth = config.rows, config.columns, config.depth
    model = np.zeros((2, rows, config.tile_depth), np.uint8)

    async def bench(ctx):
        pending = [None] * TILE_READ_LATENCY
        for _ in range(1500):
            expected = pending.pop()
            if expected is not None:
                assert ctx.get(dut.read.data).to_bytes(rows * depth, "little") == expected
            buffer, step = int(rng.integers(2)), int(rng.integers(config.tile_depth // depth))
            ctx.set(dut.read.buffer, buffer)
            ctx.set(dut.read.step, step)
            pending.insert(0, model[buffer, :, step * depth : (step + 1) * depth].tobytes())

            valid, row = bool(rng.random() < 0.7), int(rng.integers(rows))
            buffer, word = int(rng.integers(2)), int(rng.integers(config.tile_depth // columns))
            data = rng.integers(0, 256, columns).astype(np.uint8)
            ctx.set(dut.write.valid, valid)
            ctx.set(dut.write.buffer, buffer)
            ctx.set(dut.write.row, row)
            ctx.set(dut.write.word, word)
            ctx.set(dut.write.data, int.from_bytes(data.tobytes(), "little"))
            if valid:
                model[buffer, row, word * columns : (word + 1) * columns] = data
            await ctx.tick()

    run(dut, bench)
