"""The array against integer products: random LINEARs and ATTENTIONs, with everything that it waits for late.

The bench stands for the loader, the streamer, POST and the memories, and is as fast as they may be: a freed
A-tile buffer and a freed weight word are overwritten with rubbish at the end of the cycle that says so.
"""

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.interfaces import OPERAND_READ_LATENCY, SLOT_WIDTH, TILE_READ_LATENCY, Phase, TileMeta, events_layout
from moevit.hw.units.mac_array import MacArray, row_delay
from moevit.hw.units.mac_sequencer import GATE_CREDITS
from moevit.isa import Attention, Linear, encode
from moevit.numerics.matmul import int_matmul
from moevit.numerics.route import RouteOrder

TINY, SQUARE, WIDE = CONFIGS["tiny"], CONFIGS["square"], CONFIGS["wide"]
PACKED = dataclasses.replace(TINY, name="packed", packed_macs=True)
EVENTS = list(events_layout("mac").members)
COUNT_MASK = (1 << 18) - 1


def up(n, unit):
    return -(-n // unit)


def to_word(instruction):
    """Encoded; ``n_rows`` = 0, which only the loader makes, too."""
    if instruction.n_rows:
        return int.from_bytes(encode(instruction), "little")
    n_rows = next(f for f in Linear.fields() if f.name == "n_rows")
    return to_word(dataclasses.replace(instruction, n_rows=1)) & ~(1 << n_rows.offset)


@dataclass
class Work:
    """What a program makes the array read, and the rows that come out."""

    config: object
    ring_words: int
    rng: np.random.Generator
    program: list = field(default_factory=list)
    weights: list = field(default_factory=list)  # words in the order of the ring, each bytes
    held: list = field(default_factory=list)  # the last weights, if not released
    jobs: list = field(default_factory=list)  # A-tile contents, [T][bytes]
    rows: list = field(default_factory=list)  # expected (meta, row, last_row, acc); acc None: anything
    memory: np.ndarray = None  # operand memory, [words][C * K]

    def __post_init__(self):
        shape = (self.config.operand_words, self.config.operand_word_bytes)
        self.memory = self.rng.integers(0, 256, shape).astype(np.uint8)

    def _tile(self, phase, a, b, n, **meta):
        """Expects rows of a [T][L] times b [C][L]."""
        acc = int_matmul(a, b.T)
        meta |= {"phase": phase.value, "bank": (len(self.program) - 1) % 2}
        meta["slot"] = (len(self.jobs) - 1) % (1 << SLOT_WIDTH)
        self.rows += [(dict(meta), i, i == n - 1, acc[i].tolist()) for i in range(n)]

    def _job(self, steps, signed):
        raw = self.rng.integers(0, 256, (self.config.rows, steps * self.config.depth)).astype(np.uint8)
        if self.rng.random() < 0.3:
            raw[:] = self.rng.choice([0, 0x7F, 0x80, 0xFF])
        self.jobs.append(raw)
        return raw.view(np.int8) if signed else raw

    def linear(self, n_rows, length, tiles, *, signed=1, release=1, gate=False):
        t, c, k = self.config.rows, self.config.columns, self.config.depth
        self.program.append(Linear(
            n_rows=n_rows, length=length, tiles=tiles, signed=signed, release=release, src=0, src_stride=0,
            dst=0, dst_stride=0, key_tile=tiles, value_tile=tiles,
            route=RouteOrder.SOFTMAX_TOPK if gate else RouteOrder.NONE,
        ))
        steps = up(length, k)
        words = tiles * steps if n_rows or release else 0
        while len(self.held) < words:
            word = self.rng.integers(-128, 128, (c, k)).astype(np.int8)
            self.held.append(word)
            self.weights.append(word.tobytes())
        for r in range(up(n_rows, t)):
            a, n = self._job(steps, signed), min(t, n_rows - r * t)
            for column in range(tiles):
                b = np.concatenate(self.held[column * steps : (column + 1) * steps], axis=1)
                last_row_tile, last_column = (r + 1) * t >= n_rows, column == tiles - 1
                self._tile(Phase.LINEAR, a, b, n, row_tile=r, column=column, head=0, unit=0,
                           last_column=last_column, last=last_row_tile and last_column)
        if not n_rows:
            meta = {"phase": Phase.SKIP.value, "bank": (len(self.program) - 1) % 2, "slot": None, "row_tile": 0}
            meta |= {"column": 0, "head": 0, "unit": 0, "last_column": True, "last": True}
            self.rows.append((meta, 0, True, None))
        if release:
            del self.held[:words]

    def attention(self, n_rows, n_keys, heads, head_dim):
        t, c, k = self.config.rows, self.config.columns, self.config.depth
        head_tiles, key_tiles = up(head_dim, c), up(n_keys, c)
        key_stride = heads * head_tiles * (c // k) + int(self.rng.integers(0, 3))
        value_stride = up(n_keys, k) + int(self.rng.integers(0, 3))
        key_base = self.ring_words + int(self.rng.integers(0, 5))
        value_base = key_base + key_tiles * key_stride + int(self.rng.integers(0, 5))
        assert value_base + heads * head_tiles * value_stride <= self.config.operand_words
        self.program.append(Attention(
            src=0, src_stride=0, n_rows=n_rows, n_keys=n_keys, heads=heads, head_dim=head_dim,
            key_base=key_base, key_stride=key_stride, value_base=value_base, value_stride=value_stride,
            score_mult=0, score_shift=0, out_mult=0, out_shift=0, dst=0, dst_stride=0,
        ))
        row_tiles = up(n_rows, t)
        units = heads * row_tiles
        words = self.memory.view(np.int8).reshape(-1, c, k)
        key_steps, value_steps = up(head_dim, k), up(n_keys, k)

        def scores(u):
            head, r = divmod(u, row_tiles)
            a = self._job(key_steps, True)
            for column in range(key_tiles):
                first = key_base + column * key_stride + head * head_tiles * (c // k)
                b = np.concatenate(words[first : first + key_steps], axis=1)
                self._tile(Phase.SCORES, a, b, min(t, n_rows - r * t), row_tile=r, column=column, head=head,
                           unit=u % 2, last_column=column == key_tiles - 1, last=False)

        def context(u):
            head, r = divmod(u, row_tiles)
            a = self._job(value_steps, False)
            for column in range(head_tiles):
                first = value_base + (head * head_tiles + column) * value_stride
                b = np.concatenate(words[first : first + value_steps], axis=1)
                last = column == head_tiles - 1
                self._tile(Phase.CONTEXT, a, b, min(t, n_rows - r * t), row_tile=r, column=column, head=head,
                           unit=u % 2, last_column=last, last=last and u == units - 1)

        scores(0)
        for u in range(1, units):
            scores(u)
            context(u - 1)
        context(units - 1)

    def steps(self):
        """Lengths of all tiles, in order."""
        return [
            (up(i.length, self.config.depth), rows)
            for i in self.program
            for rows in np.minimum(np.arange(i.n_rows, 0, -self.config.rows), self.config.rows).tolist()
            for _ in range(i.tiles)
        ]


@dataclass
class Result:
    counts: dict
    cycles: int
    accepted: list  # cycles in which POST took the instructions
    first_row: int
    events: list  # the event of each cycle, or None


def simulate(work, *, late=0.0, post_delay=0, route_delay=0, seed=0):
    """Runs a program and compares every row; anything is ``late`` in a cycle with that probability.

    POST is done with an instruction ``post_delay`` cycles, and with a gate's row tile ``route_delay`` cycles after the
    last row.
    """
    config, dut = work.config, MacArray(work.config)
    rng = np.random.default_rng(seed)
    memory = [row.tobytes() for row in work.memory]
    rubbish = bytes([0xA5]) * config.operand_word_bytes
    memory[: work.ring_words] = [rubbish] * work.ring_words
    result = Result(dict.fromkeys(EVENTS, 0), 0, [], -1, [])
    meta_bits = {name: (f.offset, f.width) for name, f in TileMeta.as_shape()}

    async def bench(ctx):
        sent = rows = filled = written = tail = finished = 0
        counted = 0  # words whose count the array sees; the memory has each a cycle later
        banks, credits = [], 2
        routed, freed = 0, [0]  # row tiles of gates that have begun; free ones, as of each cycle
        freeing = []
        buffers = [bytearray(config.rows * config.tile_depth), bytearray(config.rows * config.tile_depth)]
        tile_pipe, operand_pipe = [0] * TILE_READ_LATENCY, [b""] * OPERAND_READ_LATENCY
        ctx.set(dut.ring_words, work.ring_words)
        idle_after = 0
        while rows < len(work.rows) or idle_after < 3:
            idle_after += rows == len(work.rows)
            result.cycles += 1
            assert result.cycles < 30_000

            # What the others show in this cycle.
            offer = sent < len(work.program) and rng.random() >= late
            if offer:
                ctx.set(dut.i_instr.payload, to_word(work.program[sent]))
            ctx.set(dut.i_instr.valid, offer)
            banks = [until for until in banks if until is None or until > result.cycles]
            ctx.set(dut.o_instr.ready, len(banks) < 2 and rng.random() >= late)
            fill = credits > 0 and filled < len(work.jobs) and rng.random() >= late
            if fill:
                data = work.jobs[filled]
                for row in range(config.rows):
                    start = row * config.tile_depth
                    buffers[filled % 2][start : start + data.shape[1]] = data[row].tobytes()
                filled += 1
                credits -= 1
            ctx.set(dut.tile_filled, fill)
            if written < len(work.weights) and written - tail < work.ring_words and rng.random() >= late:
                written += 1
            ctx.set(dut.ring_head, written & COUNT_MASK)
            due = bool(freeing) and freeing[0] <= result.cycles and rng.random() >= late
            ctx.set(dut.route_freed, due)
            freed.append(freed[-1] + due)
            del freeing[:due]
            ctx.set(dut.tile.data, tile_pipe[-1])
            ctx.set(dut.operand.data, int.from_bytes(operand_pipe[-1], "little"))

            # What the array shows in it.
            if ctx.get(dut.o_instr.valid) and ctx.get(dut.o_instr.ready):
                assert ctx.get(dut.i_instr.ready)
                assert ctx.get(dut.o_instr.payload) == to_word(work.program[sent])
                sent += 1
                banks.append(None)
                result.accepted.append(result.cycles)
            else:
                assert not (offer and ctx.get(dut.i_instr.ready))
            step, buffer = ctx.get(dut.tile.step), ctx.get(dut.tile.buffer)
            stored = buffers[buffer]
            tile_pipe = [int.from_bytes(b"".join(
                stored[row * config.tile_depth + step * config.depth :][: config.depth]
                for row in range(config.rows)
            ), "little"), *tile_pipe[:-1]]
            addr = ctx.get(dut.operand.addr)
            operand_pipe = [memory[addr], *operand_pipe[:-1]]
            if ctx.get(dut.tile_freed):
                credits += 1
                buffers[buffer][:] = rubbish[:1] * len(stored)
            while counted < written:
                memory[counted % work.ring_words] = work.weights[counted]
                counted += 1
            while tail & COUNT_MASK != ctx.get(dut.ring_tail):
                assert tail < written
                memory[tail % work.ring_words] = rubbish
                tail += 1

            bits = ctx.get(dut.events.as_value())
            high = [name for i, name in enumerate(EVENTS) if bits >> i & 1]
            assert len(high) <= 1
            result.events.append(high[0] if high else None)
            for name in high:
                result.counts[name] += 1

            if ctx.get(dut.o_rows.valid):
                assert rows < len(work.rows), "a row too many"
                meta, row, last_row, acc = work.rows[rows]
                got = ctx.get(dut.o_rows.meta.as_value())
                got_meta = {name: got >> at & ((1 << width) - 1) for name, (at, width) in meta_bits.items()}
                if meta["slot"] is None:
                    got_meta["slot"] = None
                place = f"row {rows} of {len(work.rows)}"
                assert got_meta == meta, place
                assert (ctx.get(dut.o_rows.row), ctx.get(dut.o_rows.last_row)) == (row, last_row), place
                words = ctx.get(dut.o_rows.acc.as_value()).to_bytes(4 * config.columns, "little")
                assert acc is None or np.frombuffer(words, "<i4").tolist() == acc, place
                if getattr(work.program[finished], "route", 0):
                    first_row = meta["column"] == row == 0
                    # Free when the tile's last step was issued; a cycle for the pulse, and one for the count.
                    assert not first_row or routed < GATE_CREDITS + freed[result.cycles - row_delay(config) - 1]
                    routed += first_row
                    if meta["last_column"] and last_row:
                        freeing.append(result.cycles + route_delay)
                finished += meta["last"] and last_row
                if meta["last"] and last_row:
                    banks[banks.index(None)] = result.cycles + post_delay
                result.first_row = result.cycles if rows == 0 else result.first_row
                rows += 1
            await ctx.tick()
        assert sent == len(work.program)
        assert filled == len(work.jobs)
        assert credits == 2
        assert tail == len(work.weights) - len(work.held)

    run(dut, bench, timeout_cycles=40_000)
    none = result.events.count(None)
    assert sum(result.counts.values()) + none == result.cycles
    assert result.counts["busy"] == sum(job_steps for job_steps in _issued(work))
    return result


def _issued(work):
    """Steps of each instruction."""
    t, c, k = work.config.rows, work.config.columns, work.config.depth
    for i in work.program:
        row_tiles = up(i.n_rows, t)
        if not i.n_rows:
            yield 1
        elif isinstance(i, Linear):
            yield row_tiles * i.tiles * up(i.length, k)
        else:
            yield i.heads * row_tiles * (
                up(i.n_keys, c) * up(i.head_dim, k) + up(i.head_dim, c) * up(i.n_keys, k)
            )


def random_work(config, seed, kinds, count, *, ring_words=64):
    rng = np.random.default_rng(seed)
    work = Work(config, ring_words, rng)
    for _ in range(count):
        kind = rng.choice(kinds)
        n_rows = int(rng.integers(1, 3 * config.rows + 2))
        if kind == "skip":
            work.linear(0, int(rng.integers(1, 40)), int(rng.integers(1, 4)), release=int(rng.integers(2)))
        elif kind == "gate":
            work.linear(n_rows, int(rng.integers(1, 40)), int(rng.integers(1, 4)), gate=True)
        elif kind == "linear":
            tiles = int(rng.integers(1, 4))
            length = int(rng.integers(1, (ring_words // tiles) * config.depth // 2))
            repeats = int(rng.integers(1, 3))
            for i in range(repeats):
                signed, release = int(rng.integers(2)), int(i == repeats - 1)
                work.linear(n_rows + i, length, tiles, signed=signed, release=release)
        else:
            n_keys, heads, head_dim = (int(rng.integers(1, limit)) for limit in (40, 4, 24))
            work.attention(n_rows, n_keys, heads, head_dim)
    return work


@pytest.mark.parametrize("late", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("config", [TINY, PACKED, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize("kinds", [["linear"], ["attention"], ["linear", "attention"]], ids="-".join)
def test_random_programs(config, kinds, late):
    simulate(random_work(config, 11, kinds, 5), late=late, post_delay=int(20 * late), seed=5)


@pytest.mark.parametrize("late", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("config", [TINY, WIDE], ids=lambda c: c.name)
def test_random_experts(config, late):
    work = random_work(config, 13, ["linear", "gate", "skip", "skip", "attention"], 14)
    simulate(work, late=late, post_delay=int(20 * late), route_delay=int(50 * late), seed=6)


def test_eight_by_eight():
    simulate(random_work(SQUARE, 12, ["linear", "attention"], 3), late=0.3)


def test_one_row_one_step():
    """The shortest instructions: every loop ends at once."""
    work = Work(TINY, 8, np.random.default_rng(0))
    for signed in (0, 1, 0, 1):
        work.linear(1, 1, 1, signed=signed)
    work.attention(1, 1, 1, 1)
    work.attention(1, 1, 2, 1)
    work.linear(1, 1, 3)
    simulate(work)


def test_weights_longer_than_the_ring():
    """One row tile may use more words than the ring holds, since each step frees its own."""
    work = Work(TINY, 7, np.random.default_rng(1))
    for _ in range(3):
        work.linear(3, 40, 2)
    simulate(work, late=0.2)


def test_held_weights():
    """Without release the next LINEAR starts at the same words, also when it uses more of them."""
    work = Work(TINY, 24, np.random.default_rng(2))
    work.linear(9, 16, 2, release=0)
    work.attention(5, 10, 2, 8)
    work.linear(2, 16, 4, release=0)
    work.linear(4, 16, 4, release=1)
    work.linear(4, 16, 1, release=1)
    simulate(work, late=0.2)


@pytest.mark.parametrize("config", [TINY, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize(("n_rows", "length", "tiles"), [
    (8, 32, 3), (8, 4, 5), (5, 8, 3), (13, 9, 2), (1, 4, 6), (4, 64, 1), (4, 1, 1),
])
def test_cycles_of_a_linear(config, n_rows, length, tiles):
    """Nothing waits but for draining: a tile after another takes max(its steps, the rows before, C/K)."""
    work = Work(config, 64, np.random.default_rng(3))
    work.linear(n_rows, length, tiles, release=0)  # brings the weights
    work.linear(n_rows, length, tiles)
    del work.program[0]
    jobs, rows = len(work.jobs) // 2, len(work.rows) // 2
    work.jobs, work.rows = work.jobs[jobs:], work.rows[rows:]
    for meta, *_ in work.rows:
        meta["bank"] = 0
        meta["slot"] = (meta["slot"] - jobs) % (1 << SLOT_WIDTH)
    result = simulate(work)
    tile_list = work.steps()
    fewest = config.key_groups
    between = sum(max(steps, rows, fewest) for (_, rows), (steps, _) in pairwise(tile_list))
    last_row = result.cycles - 3  # three idle cycles follow
    start = result.accepted[0] + MacArray.START_LATENCY
    assert last_row == start + tile_list[0][0] - 1 + between + row_delay(config) + tile_list[-1][1] - 1
    if n_rows % config.rows == 0:
        row_tiles = n_rows // config.rows
        steps = up(length, config.depth)
        slowest = max(steps, config.rows, fewest)
        assert between + slowest == row_tiles * tiles * slowest


def test_no_cycle_is_lost_between_instructions():
    """Not one, if each is long enough that POST has a bank free: as long as the pipeline behind the array."""
    work = Work(TINY, 256, np.random.default_rng(4))
    work.linear(4, 64, 3, signed=0)
    work.linear(8, 16, 6)
    work.attention(4, 32, 2, 32)
    work.linear(4, 64, 4)
    work.attention(8, 16, 1, 16)
    result = simulate(work)
    first = result.events.index("busy")
    assert result.events[first : first + result.counts["busy"]] == ["busy"] * result.counts["busy"]


@pytest.mark.parametrize("release", [0, 1])
def test_cycles_of_a_skip(release):
    work = Work(TINY, 64, np.random.default_rng(6))
    work.linear(0, 5, 2, release=release)
    result = simulate(work)
    latency = MacArray.START_LATENCY + release * MacArray.JUMP_LATENCY
    assert result.first_row == result.accepted[0] + latency + row_delay(TINY)


def test_a_skip_waits_for_its_weights():
    """Words that are not there yet are not freed; a jump may go round the whole ring, and ends where it began."""
    work = Work(TINY, 12, np.random.default_rng(7))
    work.linear(3, 12, 1)
    for length, tiles in ((48, 1), (4, 12), (20, 2), (4, 3)):
        work.linear(0, length, tiles)
        work.linear(1, 4, 1)
    work.linear(0, 12, 4, release=0)
    work.linear(4, 12, 4)
    assert simulate(work, late=0.5).counts["ring"] > 40


def test_gates_of_one_step():
    """A row tile may take its credit in the cycle in which the next one comes."""
    work = Work(TINY, 64, np.random.default_rng(9))
    for n_rows in (24, 2, 9):
        work.linear(n_rows, 4, 1, gate=True)
        work.linear(0, 4, 1)
    simulate(work, late=0.0, route_delay=40)


def test_a_gate_waits_for_room():
    """Two row tiles go ahead of POST's gate; each waits before its first step, and nothing else does."""
    work = Work(TINY, 64, np.random.default_rng(8))
    work.linear(16, 16, 2, gate=True)
    work.linear(16, 16, 2)
    counts = simulate(work, route_delay=0).counts
    assert counts["post"] < 60  # the pipeline behind the array, twice
    waiting = simulate(work, route_delay=1000).counts["post"] - counts["post"]
    assert waiting == pytest.approx(1000, abs=20)


def test_causes():
    """Each cause of waiting is counted when it is the one."""
    work = Work(TINY, 64, np.random.default_rng(5))
    work.linear(4, 4, 8)
    counts = simulate(work).counts
    assert counts["drain"] == 7 * (TINY.rows - 1)
    assert counts["tile"] + counts["ring"] + counts["post"] == 0

    work = Work(TINY, 64, np.random.default_rng(5))
    for _ in range(4):
        work.linear(1, 4, 1)
    counts = simulate(work, post_delay=50).counts
    assert counts["post"] > 50
    assert counts["drain"] == 0

    work = Work(TINY, 64, np.random.default_rng(5))
    work.linear(12, 16, 4)
    counts = simulate(work, late=0.9).counts
    assert counts["ring"] > 16

    work = Work(TINY, 64, np.random.default_rng(5))
    work.linear(40, 4, 1)
    counts = simulate(work, late=0.9).counts
    assert counts["tile"] > 3
