"""RowLoader: copies and LayerNorm of rows at odd and even addresses or of a list, with stalls, cycle counts."""

import random

import numpy as np
import pytest

from hw.activation_model import ActivationModel, parameter_memory
from hw.bench import run
from hw.norm_model import random_norm, random_rows
from moevit.config import get_config
from moevit.hw.units.row_loader import COPY_LATENCY, RowLoader, norm_latency
from moevit.isa.formats import NormMode


def _run(config, rows, stride, *, norm=None, base=64, stall=0.0, seed=0, places=None, scatter=False):
    """Load rows (int16 with ``norm``, else uint8); returns (outputs, cycles of starts, writes, filled).

    ``places``: addresses of the rows, which are then listed, as fast as ``stall`` lets them.
    """
    dut = RowLoader(config)
    columns, length = config.columns, rows.shape[1]
    words = -(-length // columns)
    memory = ActivationModel(config, stall=stall, seed=seed)
    for i, row in enumerate(rows):
        address = base + i * stride if places is None else places[i]
        (memory.put8 if norm is None else memory.put16)(address, row)
    norm_words = [0] * config.norm_words
    if norm is not None:
        norm_words[:words] = norm.words(columns)
    tiles = [min(config.rows, len(rows) - r) for r in range(0, len(rows), config.rows)]
    outputs = np.zeros((len(rows), words * columns), np.uint8)
    starts, writes, filled, entries = [], [], [], []

    async def bench(ctx):
        values = {"last_word": words - 1, "length": length}
        if norm is not None:
            c = norm.constants
            values |= {
                "affine": norm.mode == NormMode.AFFINE,
                "signed": norm.signed,
                "inverse_mult": c.inverse_mult,
                "inverse_shift": c.inverse_shift,
                "epsilon": c.epsilon,
                "output_shift": c.output_shift,
            }
        for name, value in values.items():
            ctx.set(getattr(dut.constants, name), int(value))
        ctx.set(dut.wide, norm is not None)
        ctx.set(dut.stride, stride)
        ctx.set(dut.go, 1)
        ctx.set(dut.listed, places is not None)
        ctx.set(dut.scatter, scatter)
        await ctx.tick().repeat(3)
        cycle = 0
        while len(filled) < len(tiles):
            # a buffer is free unless both are being filled
            start = len(starts) < len(tiles) and len(starts) - len(filled) < 2 and ctx.get(dut.ready)
            ctx.set(dut.start, start)
            ctx.set(dut.load, not starts)
            ctx.set(dut.base, base if not starts else 0)
            if start:
                ctx.set(dut.last_row, tiles[len(starts)] - 1)
                ctx.set(dut.slot, len(starts) % 8)
                starts.append(cycle)
            if ctx.get(dut.o_entry.valid):
                e = dut.o_entry
                tile, row = divmod(len(entries), config.rows)
                assert (ctx.get(e.slot), ctx.get(e.row)) == (tile % 8, row) and tile < len(starts)
                entries.append((ctx.get(e.entry.token), ctx.get(e.entry.score)))
            if ctx.get(dut.o_tile.valid):
                r, word = divmod(len(writes), words)
                tile, row = divmod(r, config.rows)
                assert not scatter or len(entries) > r
                assert ctx.get(dut.o_tile.buffer) == tile & 1
                assert ctx.get(dut.o_tile.row) == row
                assert ctx.get(dut.o_tile.word) == word
                part = ctx.get(dut.o_tile.data).to_bytes(columns, "little")
                outputs[r, word * columns : (word + 1) * columns] = np.frombuffer(part, np.uint8)
                writes.append(cycle)
            if ctx.get(dut.filled):
                assert len(writes) == sum(tiles[: len(filled) + 1]) * words
                filled.append(cycle)
            await ctx.tick()
            assert ctx.get(dut.busy) == (len(starts) > len(filled))
            cycle += 1

    async def listed(ctx):
        rng = random.Random(seed)
        for i, address in enumerate(places or []):
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(dut.i_rows.payload, {"address": address, "entry": {"token": i + 1, "score": 5 * i}})
            ctx.set(dut.i_rows.valid, 1)
            await ctx.tick().until(dut.i_rows.ready)
            ctx.set(dut.i_rows.valid, 0)

    run(
        dut,
        bench,
        listed,
        background=[memory.process(dut.act), parameter_memory(dut.norm, norm_words)],
        timeout_cycles=5000,
    )
    assert entries == ([(i + 1, 5 * i) for i in range(len(rows))] if scatter else [])
    assert memory.reads == len(writes) == len(rows) * words
    return outputs[:, :length], starts, writes, filled


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize(("length", "stride", "base"), [(1, 1, 7), (24, 3, 64), (19, 5, 65), (8, 8, 33)])
def test_copy(length, stride, base, stall):
    config = get_config("tiny")
    rows = np.random.default_rng(length).integers(0, 256, (2 * config.rows + 1, length))
    outputs, starts, writes, filled = _run(config, rows, stride, base=base, stall=stall, seed=length)
    assert np.array_equal(outputs, rows)
    if stall == 0:
        words = config.rows * -(-length // config.columns)
        assert writes[0] - starts[0] == 1 + COPY_LATENCY
        assert filled[0] - starts[0] == words + COPY_LATENCY
        if words > COPY_LATENCY:  # else the bench waits for a free buffer
            assert np.diff(starts).tolist() == [words + 1] * 2


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("length", [1, 16, 19, 80])
def test_listed(length, scatter, stall):
    config = get_config("tiny")
    rng = np.random.default_rng(length)
    rows = rng.integers(0, 256, (3 * config.rows - 1, length))
    words = -(-length // config.columns)
    places = [int(p) * words + 3 for p in rng.permutation(2 * len(rows))[: len(rows)]]
    outputs, starts, writes, filled = _run(
        config, rows, 77, places=places, scatter=scatter, stall=stall, seed=length
    )
    assert np.array_equal(outputs, rows)
    if stall == 0:
        cycles = config.rows * words if words > 1 else 2 * config.rows - 1
        assert writes[0] - starts[0] == 1 + COPY_LATENCY
        assert filled[0] - starts[0] == cycles + COPY_LATENCY
        if words > 1:
            assert np.diff(starts).tolist() == [cycles + 1] * 2


@pytest.mark.parametrize("stall", [0.0, 0.4])
@pytest.mark.parametrize("mode", [NormMode.LAYERNORM, NormMode.AFFINE])
@pytest.mark.parametrize("length", [3, 21, 200])
def test_norm(length, mode, stall):
    config = get_config("tiny")
    rng = np.random.default_rng([length, mode])
    norm = random_norm(rng, mode, length, signed=True)
    rows = random_rows(rng, 3 * config.rows - 1, length)
    words = -(-length // config.columns)
    outputs, starts, writes, filled = _run(config, rows, 2 * words + 2, norm=norm, stall=stall, seed=length)
    assert np.array_equal(outputs.view(np.int8), norm.apply(rows))
    if stall == 0:
        assert writes[0] - starts[0] == words + norm_latency(config)
        if words * config.rows > norm_latency(config):  # the next tile is read while this one is normalised
            assert filled[1] - filled[0] == config.rows * words + 1


def test_wide_lanes():
    config = get_config("wide")
    rng = np.random.default_rng(9)
    norm = random_norm(rng, NormMode.LAYERNORM, 40, signed=False)
    rows = random_rows(rng, 5, 40)
    outputs, *_ = _run(config, rows, 6, norm=norm, stall=0.2)
    assert np.array_equal(outputs, norm.apply(rows))
