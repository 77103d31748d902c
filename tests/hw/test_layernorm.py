"""LayerNormUnit against ``numerics.layernorm``: odd lengths, gaps between words, parameter wrap."""

import random

import numpy as np
import pytest

from hw.bench import run
from hw.norm_model import pair_words, random_norm, random_rows
from moevit.config import get_config
from moevit.hw.interfaces import PARAMETER_READ_LATENCY
from moevit.hw.units.layernorm import LayerNormUnit, layernorm_latency, row_buffer_words
from moevit.isa.formats import NormMode

LAYERNORM, AFFINE = NormMode.LAYERNORM, NormMode.AFFINE


def _run(config, norm, rows, *, base=0, gap=0.0, hold=0.0, seed=0):
    """Feed rows and collect the tile writes; returns (outputs, cycles of rows' last words, of writes)."""
    dut = LayerNormUnit(config)
    rng = np.random.default_rng(seed)
    columns = config.columns
    length = norm.constants.length
    words = -(-length // columns)
    inputs = [
        (word, r, i) for r, row in enumerate(rows) for i, word in enumerate(pair_words(row, columns, rng))
    ]
    memory = dict(
        zip(((base + i) % config.norm_words for i in range(words)), norm.words(columns), strict=True)
    )
    outputs = np.zeros((len(rows), words * columns), np.uint8)
    last_in, writes, freed, filled = [], [], 0, []

    async def bench(ctx):
        nonlocal freed
        stall = random.Random(seed)
        c = dut.constants
        for name, value in (
            ("length", length),
            ("last_word", words - 1),
            ("affine", norm.mode == AFFINE),
            ("signed", norm.signed),
            ("inverse_mult", norm.constants.inverse_mult),
            ("inverse_shift", norm.constants.inverse_shift),
            ("epsilon", norm.constants.epsilon),
            ("output_shift", norm.constants.output_shift),
            ("norm_base", base),
        ):
            ctx.set(getattr(c, name), int(value))
        ctx.set(dut.go, 1)
        await ctx.tick().repeat(3)
        addresses = [0] * PARAMETER_READ_LATENCY
        pending = list(inputs)
        cycle = 0
        while len(writes) < len(inputs):
            send = bool(pending) and stall.random() >= gap
            ctx.set(dut.i_valid, send)
            if send:
                word, r, i = pending.pop(0)
                ctx.set(dut.i_data, word)
                ctx.set(dut.i_first, i == 0)
                ctx.set(dut.i_last, i == words - 1)
                ctx.set(
                    dut.i_place,
                    {
                        "row": r % config.rows,
                        "buffer": r // config.rows & 1,
                        "first_row": r % config.rows == 0,
                        "last_row": r % config.rows == config.rows - 1 or r == len(rows) - 1,
                    },
                )
                if i == words - 1:
                    last_in.append(cycle)
            ctx.set(dut.norm.data, memory.get(addresses.pop(0), 0))
            addresses.append(ctx.get(dut.norm.addr))
            held = stall.random() < hold if cycle % 200 < 150 else hold > 0  # now and then for long
            ctx.set(dut.hold, held)
            assert not (held and ctx.get(dut.freed))
            freed += ctx.get(dut.freed)
            if ctx.get(dut.o_tile.valid):
                r, i = divmod(len(writes), words)
                assert ctx.get(dut.o_tile.row) == r % config.rows
                assert ctx.get(dut.o_tile.buffer) == r // config.rows & 1
                assert ctx.get(dut.o_tile.word) == i
                data = ctx.get(dut.o_tile.data).to_bytes(columns, "little")
                outputs[r, i * columns : (i + 1) * columns] = np.frombuffer(data, np.uint8)
                writes.append(cycle)
            if ctx.get(dut.filled):
                filled.append(len(writes))
            await ctx.tick()
            cycle += 1

    run(dut, bench, timeout_cycles=6000)
    assert freed == len(inputs)
    assert filled == [min(r + config.rows, len(rows)) * words for r in range(0, len(rows), config.rows)]
    got = outputs[:, :length]
    return got.view(np.int8) if norm.signed else got, last_in, writes


def _check(config, norm, rows, **kwargs):
    got, last_in, writes = _run(config, norm, rows, **kwargs)
    expected = norm.apply(rows)
    wrong = np.argwhere(got != expected)
    assert not len(wrong), (wrong[0], got[tuple(wrong[0])], expected[tuple(wrong[0])])
    return last_in, writes


@pytest.mark.parametrize("mode", [LAYERNORM, AFFINE])
@pytest.mark.parametrize("length", [1, 5, 8, 9, 23, 64])
@pytest.mark.parametrize("gap", [0.0, 0.4])
def test_rows(mode, length, gap):
    config = get_config("tiny")
    rng = np.random.default_rng([length, mode])
    for signed in (True, False):
        norm = random_norm(rng, mode, length, signed)
        rows = random_rows(rng, 10, length)
        last_in, writes = _check(config, norm, rows, gap=gap, base=250, seed=length)
        words = -(-length // config.columns)
        # a row's first write comes a fixed time after its last word: nothing ever waits
        assert [w - i for w, i in zip(writes[::words], last_in, strict=True)] == [
            layernorm_latency(config)
        ] * len(rows)
        assert [writes[i + words - 1] - writes[i] for i in range(0, len(writes), words)] == [words - 1] * len(
            rows
        )
        if gap == 0:
            assert writes == list(range(writes[0], writes[0] + len(writes)))


@pytest.mark.parametrize("mode", [LAYERNORM, AFFINE])
@pytest.mark.parametrize("length", [5, 16, 37])
def test_hold(mode, length):
    """What is held goes on as if it had not been; as many rows as the row buffer has room for."""
    config = get_config("tiny")
    rng = np.random.default_rng([length, mode, 1])
    norm = random_norm(rng, mode, length, True)
    rows = random_rows(rng, min(20, row_buffer_words(config) // -(-length // config.columns)), length)
    for hold in (0.1, 0.7):
        last_in, writes = _check(config, norm, rows, hold=hold, gap=0.3, base=253, seed=length)
        assert len(writes) == len(rows) * -(-length // config.columns) and writes[-1] > last_in[-1]


def test_wide_lanes():
    config = get_config("wide")
    rng = np.random.default_rng(2)
    _check(config, random_norm(rng, LAYERNORM, 37, True), random_rows(rng, 6, 37), gap=0.1)


def test_longest_row():
    config = get_config("tiny")
    rng = np.random.default_rng(3)
    length = config.tile_depth
    last_in, writes = _check(
        config, random_norm(rng, LAYERNORM, length, True), random_rows(rng, 3, length), base=130
    )
    assert writes[0] - last_in[0] == layernorm_latency(config)


def test_sizes():
    assert layernorm_latency(get_config("tiny")) == 56
    assert layernorm_latency(get_config("zcu104")) == 58
    for name in ("tiny", "zcu104", "square", "wide"):
        config = get_config(name)
        longest = config.tile_depth // config.columns
        assert row_buffer_words(config) >= longest + max(longest, layernorm_latency(config))
