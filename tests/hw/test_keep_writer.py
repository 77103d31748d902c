"""KeepWriter behind a pipeline, before a memory that takes words when it likes."""

import random

import pytest

from hw.bench import run
from moevit.config import get_config
from moevit.hw.units.keep_writer import KEEP_DEPTH, KEEP_LATENCY, KeepWriter

PIPELINE = 20  #: cycles from entering to ``i_valid``, about the normaliser's


def _run(name, rows, words, *, base, stride, tile=3, gap=0.0, refuse=lambda cycle: False, seed=0):
    """Send rows through; returns cycles of (entering, writes, filled)."""
    config = get_config(name)
    columns, rng = config.columns, random.Random(seed)
    dut = KeepWriter(config)
    data = [[rng.randbytes(columns) for _ in range(words)] for _ in range(rows)]
    waiting = [
        (word, w == words - 1, w == words - 1 and (r % tile == tile - 1 or r == rows - 1))
        for r, row in enumerate(data)
        for w, word in enumerate(row)
    ]
    expected = {base + r * stride + w: word for r, row in enumerate(data) for w, word in enumerate(row)}
    memory, entered, writes, filled = {}, [], [], []

    async def bench(ctx):
        ctx.set(dut.base, base)
        ctx.set(dut.stride, stride)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.base, 0)
        pipeline = [None] * PIPELINE
        cycle = 0
        tiles = sum(filled for *_, filled in waiting)
        while len(filled) < tiles:
            send = bool(waiting) and not ctx.get(dut.hold) and rng.random() >= gap
            ctx.set(dut.entered, send)
            pipeline.append(waiting.pop(0) if send else None)
            if send:
                entered.append(cycle)
            out = pipeline.pop(0)
            ctx.set(dut.i_valid, out is not None)
            if out is not None:
                ctx.set(dut.i_data, int.from_bytes(out[0], "little"))
                ctx.set(dut.i_last, out[1])
                ctx.set(dut.i_filled, out[2])
            if ctx.get(dut.filled):
                filled.append(cycle)
                assert len(memory) == min(tile * len(filled), rows) * words  # before this cycle's write
            refused = refuse(cycle)
            ctx.set(dut.act_write.ready, not refused)
            if ctx.get(dut.act_write.valid) and not refused:
                half = [(1 << columns) - 1, ((1 << columns) - 1) << columns].index(ctx.get(dut.act_write.mask))
                address = 2 * ctx.get(dut.act_write.pair) + half
                word = ctx.get(dut.act_write.data) >> 8 * columns * half & (1 << 8 * columns) - 1
                assert address not in memory
                memory[address] = word.to_bytes(columns, "little")
                writes.append(cycle)
            await ctx.tick()
            cycle += 1
            assert ctx.get(dut.busy) == (len(entered) > len(writes))
            assert len(entered) - len(writes) <= KEEP_DEPTH

    run(dut, bench, timeout_cycles=20_000)
    assert memory == expected
    return entered, writes, filled


@pytest.mark.parametrize("name", ["tiny", "wide"])
@pytest.mark.parametrize(("words", "stride", "base"), [(1, 1, 7), (3, 3, 64), (3, 5, 65), (8, 10, 33)])
def test_random(name, words, stride, base):
    """Odd addresses and counts; a memory that refuses at random, and for long."""
    rng = random.Random(words)
    _run(name, 20, words, base=base, stride=stride, refuse=lambda _: rng.random() < 0.5, gap=0.2, seed=1)
    _run(name, 20, words, base=base, stride=stride, refuse=lambda cycle: cycle % 200 < 190, seed=2)


def test_cycles():
    """A word per cycle; a word is written KEEP_LATENCY cycles after it came, its tile filled one later."""
    entered, writes, filled = _run("tiny", 30, 5, base=10, stride=5)
    assert entered == list(range(150))
    assert [w - e for w, e in zip(writes, entered, strict=True)] == [PIPELINE + KEEP_LATENCY] * 150
    assert filled == [w + 1 for w in writes[14::15]]
