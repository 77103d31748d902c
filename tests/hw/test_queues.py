"""The queues against lists: random interleavings of appends, clears, questions and walks, and their cycles."""

import dataclasses
import random

import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.interfaces import QUEUE_COUNT_LATENCY
from moevit.hw.units.queues import ENTRY_CYCLES, FAULT_LATENCY, FIRST_ENTRY_LATENCY, Queues
from moevit.numerics.route import MAX_EXPERTS


class Bench:
    """The queues and what they should hold; every cycle's appends are taken into account at its end."""

    def __init__(self, entries: int = 512):
        self.entries = entries
        self.dut = Queues(dataclasses.replace(CONFIGS["tiny"], queue_entries=entries))
        self.clear()
        self.number = self.cycle = 0
        self.faults: list[int] = []
        self.seen: list[int] = []

    def clear(self):
        self.lists: list[list[tuple[int, int]]] = [[] for _ in range(MAX_EXPERTS)]

    async def tick(self, ctx, expert=None, clear=False):
        """One cycle, with an append to ``expert``."""
        a = self.dut.append
        ctx.set(a.clear, clear)
        ctx.set(a.valid, expert is not None)
        if clear:
            self.clear()
        if expert is not None:
            self.number += 1
            entry = self.number * 5 & 0x1FFF, self.number * 257 & 0xFFFF
            ctx.set(a.expert, expert)
            ctx.set(a.entry, {"token": entry[0], "score": entry[1]})
            if sum(map(len, self.lists)) < self.entries:
                self.lists[expert].append(entry)
            else:
                self.faults.append(self.cycle)
        if ctx.get(self.dut.fault):
            self.seen.append(self.cycle)
        await ctx.tick()
        self.cycle += 1
        ctx.set(a.valid, 0)
        ctx.set(a.clear, 0)

    async def walk(self, ctx, queue, rng=None, limit=None):
        """Starts a walk, takes its entries; returns them and their cycles after ``start``."""
        read = self.dut.read
        ctx.set(read.queue, queue)
        ctx.set(read.start, 1)
        got, cycles, quiet, cycle = [], [], 0, 0
        while quiet < 8 and (limit is None or len(got) < limit):
            ready = cycle > 0 and (rng is None or rng.random() < 0.4)
            ctx.set(read.entries.ready, ready)
            if ready and ctx.get(read.entries.valid):
                got.append((ctx.get(read.entries.payload.token), ctx.get(read.entries.payload.score)))
                cycles.append(cycle)
                quiet = 0
            elif ready:
                quiet += 1
            await self.tick(ctx)
            ctx.set(read.start, 0)
            cycle += 1
        ctx.set(read.entries.ready, 0)
        return got, cycles

    async def counts(self, ctx):
        """All counts, one question a cycle, and whether the streamer is told the same."""
        got = []
        for i in range(MAX_EXPERTS + QUEUE_COUNT_LATENCY):
            ctx.set(self.dut.read.queue, i % MAX_EXPERTS)
            ctx.set(self.dut.filled_queue, i % MAX_EXPERTS)
            if i >= QUEUE_COUNT_LATENCY:
                got.append(ctx.get(self.dut.read.count))
                assert ctx.get(self.dut.filled) == (got[-1] > 0)
            await self.tick(ctx)
        return got

    async def check(self, ctx, rng=None):
        assert await self.counts(ctx) == [len(q) for q in self.lists]
        for number, queue in enumerate(self.lists):
            if queue or number % 16 == 0:
                got, _ = await self.walk(ctx, number, rng)
                assert got == queue


@pytest.mark.parametrize("seed", range(3))
def test_random_interleavings(seed):
    """A few experts get most entries, so that runs to the same one occur; two rounds with a clear between."""
    bench, rng = Bench(), random.Random(seed)

    async def process(ctx):
        for round_ in range(3):
            for i in range(150):
                expert = rng.choice([rng.randrange(64), 5, 63]) if rng.random() < 0.7 else None
                await bench.tick(ctx, expert, clear=round_ > 0 and i == 0)
            await bench.check(ctx, rng)

    run(bench.dut, process)
    assert not bench.faults and not bench.seen


def test_every_length():
    """Expert i holds i entries, appended in turns; walked without a stall, each in its cycle."""
    bench = Bench(2048)

    async def process(ctx):
        for step in range(MAX_EXPERTS):
            for expert in range(step + 1, MAX_EXPERTS):
                await bench.tick(ctx, expert)
        assert await bench.counts(ctx) == list(range(MAX_EXPERTS))
        for expert, queue in enumerate(bench.lists):
            got, cycles = await bench.walk(ctx, expert)
            assert got == queue
            assert cycles == [FIRST_ENTRY_LATENCY + ENTRY_CYCLES * i for i in range(len(queue))]

    run(bench.dut, process, timeout_cycles=20_000)


@pytest.mark.parametrize("entries", [1, 2, 64])
def test_one_expert_with_all_tokens_and_overflow(entries):
    bench = Bench(entries)

    async def process(ctx):
        for _ in range(2):
            for i in range(entries):
                await bench.tick(ctx, 7, clear=i == 0)
            for expert in (7, 7, 9):
                await bench.tick(ctx, expert)
            await bench.tick(ctx)
            await bench.tick(ctx)
            await bench.check(ctx)
            assert len(bench.lists[7]) == entries
        # Full, an append beside a clear still has room.
        await bench.tick(ctx, 7, clear=True)
        await bench.check(ctx)
        assert len(bench.lists[7]) == 1

    run(bench.dut, process)
    assert bench.seen == [cycle + FAULT_LATENCY for cycle in bench.faults]
    assert len(bench.seen) == 6


def test_a_count_at_its_end():
    """8,191 entries is what a count can say; with room for more, the next one is a fault."""
    bench = Bench(1 << 14)

    async def process(ctx):
        for _ in range(8192):
            await bench.tick(ctx, 3)
        await bench.tick(ctx, 4)
        await bench.tick(ctx)
        ctx.set(bench.dut.read.queue, 3)
        for _ in range(3):
            await bench.tick(ctx)
        assert ctx.get(bench.dut.read.count) == 8191

    run(bench.dut, process)
    assert bench.seen == [8191 + FAULT_LATENCY]


def test_counted_from_the_next_cycle_on():
    """An append is in the answer to a question a cycle later, not to one of its own cycle."""
    bench, counts, filled = Bench(), [], []

    async def process(ctx):
        ctx.set(bench.dut.read.queue, 9)
        ctx.set(bench.dut.filled_queue, 9)
        for cycle in range(8):
            counts.append(ctx.get(bench.dut.read.count))
            filled.append(ctx.get(bench.dut.filled))
            await bench.tick(ctx, 9 if cycle in (1, 2) else None, clear=cycle == 4)

    run(bench.dut, process)
    first = 1 + 1 + QUEUE_COUNT_LATENCY  # appended, asked for, answered
    assert counts == [0] * first + [1, 2, 2, 0]
    assert filled == [0] * first + [1, 1, 1, 0]


def test_start_abandons_the_walk_before():
    """At every point of a walk, also right behind another start and to an empty queue."""
    bench = Bench()

    async def process(ctx):
        for i in range(20):
            await bench.tick(ctx, i % 2)
        await bench.tick(ctx)
        for taken in range(8):
            for other in (1, 2):
                await bench.walk(ctx, 0, limit=taken)
                got, cycles = await bench.walk(ctx, other)
                assert got == bench.lists[other]
                assert not cycles or cycles[0] == FIRST_ENTRY_LATENCY
        ctx.set(bench.dut.read.queue, 0)
        for wait in range(6):
            ctx.set(bench.dut.read.start, 1)
            await bench.tick(ctx)
            ctx.set(bench.dut.read.start, 0)
            for _ in range(wait):
                await bench.tick(ctx)
            assert (await bench.walk(ctx, 1))[0] == bench.lists[1]
            ctx.set(bench.dut.read.queue, 0)

    run(bench.dut, process)
