"""QueueRows: addresses of the rows of a queue, with and without its tokens, walk after walk."""

import random

import pytest

from hw.bench import get, run
from moevit.hw.units.queue_rows import QUEUE_ROW_LATENCY, ROWS_DEPTH, QueueRows
from moevit.isa.formats import ADDRESS


@pytest.mark.parametrize(("in_stall", "out_stall"), [(0.0, 0.0), (0.6, 0.1), (0.1, 0.7)])
def test_walks(in_stall, out_stall):
    dut, rng = QueueRows(), random.Random(1)

    async def entries(ctx, count, walk):
        """More than are asked for: the rest must be left."""
        i = dut.i_entries
        for token, score in walk + [(1, 1)]:
            while rng.random() < in_stall:
                await ctx.tick()
            ctx.set(i.payload, {"token": token, "score": score})
            ctx.set(i.valid, 1)
            for _ in range(100):
                *_, taken = await ctx.tick().sample(i.ready)
                if taken:
                    break
            ctx.set(i.valid, 0)
            count[0] += bool(taken)

    walks = [
        (count, gather, [(rng.getrandbits(13), rng.getrandbits(16)) for _ in range(count)])
        for count, gather in ((1, 1), (20, 1), (7, 0), (30, 1), (1, 0))
    ]
    counts = [[0] for _ in walks]
    current = []

    async def bench(ctx):
        for n, (count, gather, walk) in enumerate(walks):
            base, stride = rng.getrandbits(18), rng.getrandbits(10)
            for name, value in (("base", base), ("stride", stride), ("gather", gather), ("count", count)):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            current.append(n)
            rows = await get(ctx, dut.o_rows, count, stall=out_stall, seed=n)
            while len(current) == n + 1 and current[n] == n:
                await ctx.tick()
            for i, (row, (token, score)) in enumerate(zip(rows, walk, strict=True)):
                assert row.address == (base + (token if gather else i) * stride) % (1 << ADDRESS)
                assert (row.entry.token, row.entry.score) == (token, score)
            assert not ctx.get(dut.o_rows.valid)

    async def feed(ctx):
        for n, (_, _, walk) in enumerate(walks):
            while len(current) <= n:
                await ctx.tick()
            await entries(ctx, counts[n], walk)
            current[n] = None

    run(dut, bench, feed, timeout_cycles=3000)
    assert [c[0] for c in counts] == [count for count, _, _ in walks]


def test_cycles():
    """A row per cycle; with nobody taking them, ROWS_DEPTH are on their way."""
    dut, count = QueueRows(), 40
    taken, given = [], []

    async def bench(ctx):
        ctx.set(dut.count, count)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.i_entries.valid, 1)
        for cycle in range(100):
            ctx.set(dut.o_rows.ready, cycle < 30 or cycle >= 60)
            if ctx.get(dut.i_entries.ready):
                taken.append(cycle)
            if ctx.get(dut.o_rows.valid) and ctx.get(dut.o_rows.ready):
                given.append(cycle)
            if cycle == 59:
                assert len(taken) - len(given) == ROWS_DEPTH
            await ctx.tick()

    run(dut, bench, timeout_cycles=200)
    assert len(taken) == len(given) == count
    assert taken[:30] == list(range(30))
    assert given[:10] == [cycle + QUEUE_ROW_LATENCY for cycle in range(10)]
