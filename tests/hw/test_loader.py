"""Loader against the numerics: tiles in compute order, among an array, POST and a streamer that delay."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal

from hw.activation_model import ActivationModel, parameter_memory
from hw.bench import run
from hw.norm_model import Norm, random_norm, random_rows
from hw.softmax_model import random_scores, staged_rows, tile_and_scales
from moevit.config import AcceleratorConfig, get_config
from moevit.hw.interfaces import QUEUE_COUNT_LATENCY, SLOT_WIDTH
from moevit.hw.units.context_loader import CONTEXT_LATENCY, cover_steps, scale_latency
from moevit.hw.units.keep_writer import KEEP_LATENCY
from moevit.hw.units.layernorm import NORMALISE_LATENCY
from moevit.hw.units.loader import QUEUE_SEND_LATENCY, QUEUE_START_LATENCY, START_LATENCY, Loader
from moevit.hw.units.queue_rows import QUEUE_ROW_LATENCY
from moevit.hw.units.row_loader import COPY_LATENCY, norm_latency
from moevit.isa import Attention, Instruction, Linear, encode
from moevit.isa.formats import NormMode

CONFIG = get_config("tiny")


class Job(NamedTuple):
    """One A tile: its words (only the first ``valid`` bytes of a row count) and what belongs to it."""

    instruction: int
    words: dict[tuple[int, int], bytes]
    valid: int
    scores: Any = None  #: of a tile of Q: what POST sends to the probability buffer
    unit: int = 0
    scales: list[tuple[int, int]] | None = None  #: of a tile of P
    entries: list[tuple[int, int]] | None = None  #: of rows that are scattered: tokens and scores
    kept: int = 0  #: words that must be in the activation memory before it is announced, all instructions'


class Queue(NamedTuple):
    """What an instruction of a queue finds."""

    entries: list[tuple[int, int]]  #: tokens and scores
    brought: int  #: its STREAM's bit


class Case:
    """A program for the loader: instructions, memory contents and the tiles that must come of them."""

    def __init__(self, config: AcceleratorConfig, *, seed: int = 0, stall: float = 0.0):
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.memory = ActivationModel(config, stall=stall, seed=seed)
        self.instructions: list[Instruction] = []
        self.jobs: list[Job] = []
        self.queues: dict[int, Queue] = {}  # by instruction
        self.kept: dict[int, bytes] = {}  # what must be written back, by address
        self.norm_stream: list[int] = []  # words in the order in which the streamer writes them
        self.norm_freed = 0
        self._next = 0

    def _address(self, rows: int, stride: int, *, even: bool) -> int:
        start = self._next + (self._next & 1 if even else int(self.rng.integers(0, 2)))
        self._next = start + rows * stride
        assert self._next < self.config.activation_words
        return start

    def _tile(self, rows: Any, valid: int, **kwargs: Any) -> Job:
        """A job from the bytes of its rows."""
        columns = self.config.columns
        words = -(-rows.shape[1] // columns)
        padded = np.zeros((len(rows), words * columns), np.uint8)
        padded[:, : rows.shape[1]] = rows.astype(np.uint8)
        tile = {
            (r, w): padded[r, w * columns : (w + 1) * columns].tobytes()
            for r in range(len(rows))
            for w in range(words)
        }
        return Job(len(self.instructions), tile, valid, **kwargs)

    def linear(
        self,
        n_rows: int,
        length: int,
        *,
        mode: NormMode = NormMode.NONE,
        signed: bool = True,
        wait: int = 0,
        release: bool = True,
        norm: Norm | None = None,
        keep: bool = False,
        keep_odd: bool = False,
    ) -> Norm | None:
        """Append a LINEAR; ``norm`` are the parameters that an earlier one has left in the ring."""
        config, rng = self.config, self.rng
        words = -(-length // config.columns)
        fields: dict[str, Any] = {}
        if mode == NormMode.NONE:
            stride = words + int(rng.integers(0, 3))
            src = self._address(n_rows, stride, even=False)
            out = rows = rng.integers(0, 256, (n_rows, length))
            for i, row in enumerate(rows):
                self.memory.put8(src + i * stride, row)
        else:
            if norm is None:
                norm = random_norm(rng, mode, length, signed)
                self.norm_stream += norm.words(config.columns)
            stride = 2 * words + 2 * int(rng.integers(0, 2))
            src = self._address(n_rows, stride, even=True)
            rows = random_rows(rng, n_rows, length)
            out = norm.apply(rows)
            for i, row in enumerate(rows):
                self.memory.put16(src + i * stride, row)
            c = norm.constants
            fields = {
                "inverse_mult": c.inverse_mult,
                "inverse_shift": c.inverse_shift,
                "epsilon": c.epsilon,
                "norm_shift": c.output_shift,
            }
            self.norm_freed += words if release else 0
        if keep:
            keep_stride = words + int(rng.integers(0, 3))
            keep_dst = self._address(n_rows, keep_stride, even=True) + keep_odd
            self._next += keep_odd
            fields |= {"keep": 1, "keep_dst": keep_dst, "keep_stride": keep_stride}
        for r in range(0, n_rows, config.rows):
            job = self._tile(out[r : r + config.rows], length)
            if keep and mode != NormMode.NONE:
                self.kept |= {keep_dst + (r + i) * keep_stride + w: word for (i, w), word in job.words.items()}
            self.jobs.append(job._replace(kept=len(self.kept) if keep else 0))
        self.instructions.append(
            Linear(
                wait=wait,
                release=int(release),
                n_rows=n_rows,
                src=src,
                src_stride=stride,
                length=length,
                norm=int(mode),
                signed=int(signed),
                tiles=1,
                key_tile=1,
                value_tile=1,
                dst=0,
                dst_stride=1,
                **fields,
            )
        )
        return norm

    def expert(
        self,
        count: int,
        length: int,
        *,
        gather: bool = False,
        scatter: bool = False,
        n_rows: int = 12,
        brought: int = 1,
        wait: int = 0,
    ) -> None:
        """Append a LINEAR of a queue with ``count`` entries."""
        config, rng = self.config, self.rng
        entries = [(int(t), int(rng.integers(1, 1 << 16))) for t in rng.permutation(max(count, n_rows))[:count]]
        stride = -(-length // config.columns) + int(rng.integers(0, 3))
        src = self._address(max(count, n_rows), stride, even=False)
        rows = rng.integers(0, 256, (max(count, n_rows), length))
        for i, row in enumerate(rows):
            self.memory.put8(src + i * stride, row)
        out = rows[[token for token, _ in entries]] if gather else rows[:count]
        for r in range(0, count if count <= n_rows else 0, config.rows):
            job = self._tile(out[r : r + config.rows], length)
            self.jobs.append(job._replace(entries=entries[r : r + config.rows] if scatter else None))
        self.queues[len(self.instructions)] = Queue(entries, brought if not count else 1)
        self.instructions.append(
            Linear(
                wait=wait,
                n_rows=n_rows,
                src=src,
                src_stride=stride,
                length=length,
                tiles=3,
                key_tile=3,
                value_tile=3,
                dst=7,
                dst_stride=6,
                gather=int(gather),
                scatter=int(scatter),
                queue=int(rng.integers(0, 64)),
            )
        )

    def sent(self, instruction: int) -> int:
        """What the array gets of an instruction."""
        word = int.from_bytes(encode(self.instructions[instruction]), "little")
        if (queue := self.queues.get(instruction)) is not None:
            values = {"n_rows": len(queue.entries), "release": queue.brought}
            for f in Linear.fields():
                if f.name in values:
                    word = word & ~(((1 << f.width) - 1) << f.offset) | values[f.name] << f.offset
        return word

    def attention(self, n_rows: int, n_keys: int, heads: int, head_dim: int, *, wait: int = 0) -> None:
        config, rng = self.config, self.rng
        words = -(-head_dim // config.columns)
        stride = heads * words + int(rng.integers(0, 2))
        src = self._address(n_rows, stride, even=False)
        mult, shift = int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(0, 40))
        q = rng.integers(0, 256, (n_rows, heads, head_dim))
        for i in range(n_rows):
            for head in range(heads):
                self.memory.put8(src + i * stride + head * words, q[i, head])
        units = [(head, r) for head in range(heads) for r in range(0, n_rows, config.rows)]
        q_jobs, p_jobs = [], []
        for u, (head, r) in enumerate(units):
            rows = q[r : r + config.rows, head]
            scores = random_scores(rng, len(rows), n_keys)
            q_jobs.append(self._tile(rows, head_dim, scores=scores, unit=u & 1))
            tile, scales = tile_and_scales(scores, config, mult, shift)
            p_jobs.append(
                Job(len(self.instructions), tile, n_keys, unit=u & 1, scales=scales)
            )
        order = [q_jobs[0]]
        for u in range(1, len(units)):
            order += [q_jobs[u], p_jobs[u - 1]]
        self.jobs += [*order, p_jobs[-1]]
        self.instructions.append(
            Attention(
                wait=wait,
                n_rows=n_rows,
                src=src,
                src_stride=stride,
                n_keys=n_keys,
                heads=heads,
                head_dim=head_dim,
                key_base=0,
                key_stride=1,
                value_base=0,
                value_stride=1,
                score_mult=1,
                score_shift=0,
                out_mult=mult,
                out_shift=shift,
                dst=0,
                dst_stride=1,
            )
        )


@dataclasses.dataclass
class Result:
    """Cycle numbers: instructions taken and sent, reads accepted, first write and ``tile_filled`` of each job, ..."""

    taken: list[int] = dataclasses.field(default_factory=list)
    sent: list[int] = dataclasses.field(default_factory=list)
    reads: list[int] = dataclasses.field(default_factory=list)
    first: list[int] = dataclasses.field(default_factory=list)
    filled: list[int] = dataclasses.field(default_factory=list)
    freed: list[int] = dataclasses.field(default_factory=list)
    staged: list[int] = dataclasses.field(default_factory=list)
    retired: list[int] = dataclasses.field(default_factory=list)
    walks: list[int] = dataclasses.field(default_factory=list)
    entered: list[int] = dataclasses.field(default_factory=list)  #: entries taken
    kept: list[int] = dataclasses.field(default_factory=list)
    faults: list[int] = dataclasses.field(default_factory=list)
    events: dict[str, int] = dataclasses.field(default_factory=dict)
    cycles: int = 0


class Bench:
    """The loader among an array, POST, queues and a streamer.

    ``delay`` is the longest random time of everybody else's steps, ``norm_delay`` and ``brought_delay`` the
    time before the streamer's first, ``array_delay`` that of each A tile, ``entry_stall`` the chance per cycle
    that a queue has no entry; ``post_writes`` says whether POST writes in a cycle.
    """

    def __init__(
        self,
        case: Case,
        *,
        delay: int = 0,
        seed: int = 0,
        norm_delay: int = 0,
        brought_delay: int = 0,
        array_delay: int = 0,
        entry_stall: float = 0.0,
        post_writes: Callable[[int], bool] | None = None,
    ):
        self.case, self.config, self.dut = case, case.config, Loader(case.config)
        self.delay, self.norm_delay, self.array_delay = delay, norm_delay, array_delay
        self.brought_delay, self.entry_stall, self.post_writes = brought_delay, entry_stall, post_writes
        self.rng, self.result, self.cycle = random.Random(seed), Result(), 0
        self.result.events = dict.fromkeys(self.dut.events.shape().members, 0)
        self.norm_words = [0] * case.config.norm_words
        self.staged: list[Job] = []
        self.retiring: list[int] = []
        self.writes: dict[tuple[int, int], bytes] = {}  # of the tile being written
        self.tiles = 0  # of which all words have been written
        self.scales: list[tuple[int, ...]] = []
        self.entries: list[tuple[int, ...]] = []
        self.kept: dict[int, bytes] = {}
        self.bits = 0  # of ``i_brought`` that have been taken

    def run(self, timeout: int = 20_000, *, faults: int = 0) -> Result:
        dut, case, result = self.dut, self.case, self.result
        run(
            dut,
            self.instructions,
            *((self.fault,) if faults else (self.array, self.retire, self.brought)),
            timeout_cycles=timeout,
            background=[
                *((self.array, self.retire, self.brought) if faults else ()),
                self.watch,
                self.watch_writes,
                self.post,
                self.memory_writes,
                self.queue_counts,
                self.queue_entries,
                self.stream,
                case.memory.process(dut.act),
                parameter_memory(dut.norm, self.norm_words),
            ],
        )
        assert len(result.faults) == faults
        assert len(result.filled) == len(case.jobs) == self.tiles
        assert self.scales == [
            (job.unit, row, *pair) for job in case.jobs if job.scales for row, pair in enumerate(job.scales)
        ]
        assert self.entries == [
            (index % (1 << SLOT_WIDTH), row, *entry)
            for index, job in enumerate(case.jobs)
            for row, entry in enumerate(job.entries or [])
        ]
        assert len(result.reads) == sum(len(job.words) for job in case.jobs if job.scales is None)
        assert self.kept.keys() == case.kept.keys()
        if not faults:
            assert self.bits == len(case.queues)
            assert len(result.walks) == sum(bool(queue.entries) for queue in case.queues.values())
        result.cycles = self.cycle
        return result

    async def pause(self, ctx):
        for _ in range(self.rng.randint(0, self.delay)):
            await ctx.tick()

    async def instructions(self, ctx):
        port = self.dut.i_instr
        for instruction in self.case.instructions:
            await self.pause(ctx)
            ctx.set(port.payload, int.from_bytes(encode(instruction), "little"))
            ctx.set(port.valid, 1)
            ready = False
            while not ready:
                *_, ready = await ctx.tick().sample(port.ready)
                if self.result.faults:
                    return
            ctx.set(port.valid, 0)

    async def fault(self, ctx):
        while not self.result.faults:
            await ctx.tick()
        for _ in range(100):  # nothing happens any more
            assert not ctx.get(self.dut.i_instr.ready)
            await ctx.tick()

    async def array(self, ctx):
        case, dut, jobs = self.case, self.dut, list(self.case.jobs)
        done = 0
        for index in range(len(case.instructions)):
            await self.pause(ctx)
            ctx.set(dut.o_instr.ready, 1)
            valid = False
            while not valid:
                *_, valid, payload = await ctx.tick().sample(dut.o_instr.valid, dut.o_instr.payload)
            ctx.set(dut.o_instr.ready, 0)
            assert payload == case.sent(index)
            while jobs and jobs[0].instruction == index:
                job = jobs.pop(0)
                while len(self.result.filled) <= done:
                    await ctx.tick()
                for _ in range(self.array_delay):
                    await ctx.tick()
                await self.pause(ctx)
                ctx.set(dut.tile_freed, 1)
                await ctx.tick()
                self.result.freed.append(self.cycle)
                ctx.set(dut.tile_freed, 0)
                done += 1
                if job.scores is not None:
                    self.staged.append(job)
            self.retiring.append(index)

    async def post(self, ctx):
        port = self.dut.i_staged
        while True:
            await ctx.tick()
            if self.staged:
                await self.pause(ctx)
                job = self.staged.pop(0)
                for word in staged_rows(job.scores, self.config):
                    ctx.set(port.valid, 1)
                    ctx.set(port.unit, job.unit)
                    for name, value in word._asdict().items():
                        ctx.set(getattr(port, name), value & 0x7FF if name == "maximum" else value)
                    if word.last:
                        self.result.staged.append(self.cycle)
                    await ctx.tick()
                ctx.set(port.valid, 0)

    async def memory_writes(self, ctx):
        """The activation memory, which serves POST first."""
        while True:
            ctx.set(self.dut.act_write.ready, self.post_writes is None or not self.post_writes(self.cycle))
            await ctx.tick()

    async def retire(self, ctx):
        while len(self.result.retired) < len(self.case.instructions):
            await ctx.tick()
            if self.retiring:
                await self.pause(ctx)
                self.retiring.pop(0)
                self.result.retired.append(self.cycle)
                ctx.set(self.dut.retired, len(self.result.retired) & 0xFFFF)
        for _ in range(30):  # the last scales
            await ctx.tick()

    async def stream(self, ctx):
        config, dut = self.config, self.dut
        for _ in range(self.norm_delay):
            await ctx.tick()
        for i, word in enumerate(self.case.norm_stream):
            await self.pause(ctx)
            while (i - ctx.get(dut.norm_tail)) % (1 << 18) >= config.norm_words:
                await ctx.tick()
            self.norm_words[i % config.norm_words] = word
            ctx.set(dut.norm_head, i + 1)
            await ctx.tick()

    async def brought(self, ctx):
        port = self.dut.i_brought
        for _ in range(self.brought_delay):
            await ctx.tick()
        for queue in self.case.queues.values():
            await self.pause(ctx)
            ctx.set(port.valid, 1)
            ctx.set(port.payload, queue.brought)
            ready = False
            while not ready:
                *_, ready = await ctx.tick().sample(port.ready)
            self.bits += 1
            ctx.set(port.valid, 0)
            ctx.set(port.payload, self.rng.getrandbits(1))

    def _asked(self, number: int) -> list[tuple[int, int]] | None:
        """The entries of the queue that the instruction being loaded reads, once they are complete."""
        index = len(self.result.taken) - 1
        if index not in self.case.queues:
            return None
        instruction = self.case.instructions[index]
        if number != instruction.queue or len(self.result.retired) < instruction.wait:  # type: ignore[attr-defined]
            return None
        return self.case.queues[index].entries

    async def queue_counts(self, ctx):
        port = self.dut.queue
        counts = [0] * (QUEUE_COUNT_LATENCY - 1)
        while True:
            *_, number = await ctx.tick().sample(port.queue)
            entries = self._asked(number)
            counts.append(self.rng.getrandbits(13) if entries is None else len(entries))
            ctx.set(port.count, counts.pop(0))

    async def queue_entries(self, ctx):
        port, rng = self.dut.queue, self.rng
        while True:
            *_, start, number = await ctx.tick().sample(port.start, port.queue)
            if not start:
                continue
            entries = self._asked(number)
            assert entries
            self.result.walks.append(self.cycle - 1)
            for token, score in entries:
                while rng.random() < self.entry_stall:
                    await ctx.tick()
                ctx.set(port.entries.payload, {"token": token, "score": score})
                ctx.set(port.entries.valid, 1)
                taken = False
                while not taken:
                    values = await ctx.tick().sample(port.entries.ready, port.start, port.queue)
                    taken = values[2]
                    assert values[3:] == (0, number)
                self.result.entered.append(self.cycle - 1)  # ``watch`` has counted this cycle
                ctx.set(port.entries.valid, 0)

    def _tile_write(self, buffer: int, row: int, word: int, value: int) -> None:
        index = self.tiles
        job = self.case.jobs[index]
        assert buffer == index & 1
        assert index - len(self.result.freed) < 2, "writes a buffer that is not free"
        assert (row, word) in job.words and (row, word) not in self.writes, (index, row, word)
        if not self.writes:
            self.result.first.append(self.cycle)
        if job.entries is not None:
            before = sum(len(j.entries or []) for j in self.case.jobs[:index])
            assert len(self.entries) > before + row, "no entry before the row's first write"
        self.writes[row, word] = got = value.to_bytes(self.config.columns, "little")
        size = min(self.config.columns, job.valid - word * self.config.columns)
        expected = job.words[row, word]
        assert got[:size] == expected[:size], (index, row, word, got.hex(), expected.hex())
        if len(self.writes) == len(job.words):
            self.writes.clear()
            self.tiles += 1

    async def watch(self, ctx):
        """Sees the values before each clock edge, the cycle's own."""
        dut, result = self.dut, self.result
        tile, scale, entry = dut.o_tile, dut.o_scale, dut.o_entry
        port = dut.i_instr
        while True:
            _, _, *values = await ctx.tick().sample(
                *(port.valid, port.ready, dut.act.valid, dut.act.ready, dut.tile_filled, dut.fault_queue, dut.events),
                *(tile.valid, tile.buffer, tile.row, tile.word, tile.data),
                *(scale.valid, scale.unit, scale.row, scale.mult, scale.shift),
                *(entry.valid, entry.slot, entry.row, entry.entry.token, entry.entry.score),
            )
            instr_valid, instr_ready, read, read_ready, is_filled, is_fault, event = values[:7]
            (written, *write), (scaled, *scale_values), (entered, *entry_values) = (
                values[7:12],
                values[12:17],
                values[17:],
            )
            high = [name for name in result.events if event[name]]
            assert len(high) <= 1
            for name in high:
                result.events[name] += 1
            if instr_valid and instr_ready:
                result.taken.append(self.cycle)
            if read and read_ready:
                result.reads.append(self.cycle)
                instruction = self.case.instructions[len(result.taken) - 1]
                assert len(result.retired) >= instruction.wait  # type: ignore[attr-defined]
            if entered:
                self.entries.append(tuple(entry_values))
                assert self.tiles - len(result.freed) < 2, "an entry of a tile that has no buffer"
            if written:
                self._tile_write(*write)
            if scaled:
                self.scales.append(tuple(scale_values))
            if is_filled:
                assert self.tiles == len(result.filled) + 1 or self.case.jobs[len(result.filled)].kept
                assert self.tiles > len(result.filled)
                assert len(self.kept) >= self.case.jobs[len(result.filled)].kept
                result.filled.append(self.cycle)
            if is_fault:
                result.faults.append(self.cycle)
            self.cycle += 1

    async def watch_writes(self, ctx):
        """Kept words: each once, and what they must be; instructions that are on their way to the array."""
        port, columns = self.dut.act_write, self.config.columns
        sizes = {}  # valid bytes of a kept word, by what it must be
        for job in self.case.jobs:
            for (_, word), expected in job.words.items():
                sizes[id(expected)] = min(columns, job.valid - word * columns)
        sent = False
        while True:
            _, _, valid, ready, pair, mask, value, instr_valid, instr_ready = await ctx.tick().sample(
                *(port.valid, port.ready, port.pair, port.mask, port.data),
                *(self.dut.o_instr.valid, self.dut.o_instr.ready),
            )
            if instr_valid and not sent:
                self.result.sent.append(self.cycle - 1)  # ``watch`` has counted this cycle
            sent = bool(instr_valid and not instr_ready)
            if valid and ready:
                half = {(1 << columns) - 1: 0, ((1 << columns) - 1) << columns: 1}[mask]
                address = 2 * pair + half
                assert address not in self.kept
                got = (value >> half * columns * 8 & (1 << columns * 8) - 1).to_bytes(columns, "little")
                expected = self.case.kept[address]
                size = sizes[id(expected)]
                assert got[:size] == expected[:size], (address, got.hex(), expected.hex())
                self.kept[address] = got
                self.result.kept.append(self.cycle - 1)


def simulate(case: Case, *, timeout: int = 20_000, faults: int = 0, **kwargs: Any) -> Result:
    """Run all of it; see Bench."""
    return Bench(case, **kwargs).run(timeout, faults=faults)


@pytest.mark.parametrize("delay", [0, 30])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_linear(delay, stall):
    """Back to back: copies and norms, odd lengths, one row, partial tiles, parameters used twice, waits."""
    case = Case(CONFIG, seed=1, stall=stall)
    case.linear(1, 1)
    case.linear(9, 20)
    norm = case.linear(6, 21, mode=NormMode.LAYERNORM, release=False)
    case.linear(3, 21, mode=NormMode.LAYERNORM, norm=norm, wait=3)
    case.linear(4, 8, mode=NormMode.AFFINE, signed=False, wait=1)
    case.linear(8, 16, wait=5)
    case.linear(1, 30, mode=NormMode.LAYERNORM, signed=False)
    simulate(case, delay=delay, seed=2, norm_delay=50 if delay else 0)


@pytest.mark.parametrize("delay", [0, 40])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_attention(delay, stall):
    """One unit, several row tiles, several heads, few and many keys, beside LINEAR."""
    case = Case(CONFIG, seed=3, stall=stall)
    case.attention(3, 5, 1, 7)
    case.attention(1, 1, 1, 8)
    case.linear(5, 9)
    case.attention(7, 21, 3, 11, wait=1)
    case.attention(4, 100, 2, 8)
    case.linear(2, 8, mode=NormMode.LAYERNORM, wait=4)
    case.attention(9, 64, 1, 16)
    simulate(case, delay=delay, seed=4)


@pytest.mark.parametrize("name", ["wide", "square"])
def test_other_shapes(name):
    case = Case(get_config(name), seed=5, stall=0.2)
    case.linear(11, 37)
    case.linear(3, 37, mode=NormMode.LAYERNORM)
    case.attention(5, 35, 2, 20)
    case.linear(9, 16, mode=NormMode.AFFINE, signed=False)
    simulate(case, delay=10, seed=6)


def test_norm_ring_wraps():
    """A ring of 11 words: the streamer waits for the tail, the loader for the head."""
    case = Case(dataclasses.replace(CONFIG, norm_words=11), seed=7)
    for length in (40, 64, 17, 88, 33, 8):
        case.linear(2, length, mode=NormMode.LAYERNORM)
    result = simulate(case, delay=5, seed=8)
    assert result.events["norm"] > 0


def test_random_programs():
    """Random programs, everything delayed at random."""
    for seed in range(4):
        rng = random.Random(seed)
        case = Case(CONFIG, seed=seed, stall=rng.choice([0.0, 0.3]))
        for i in range(6):
            wait = rng.randint(0, i)
            if rng.random() < 0.4:
                case.attention(
                    rng.randint(1, 9), rng.randint(1, 40), rng.randint(1, 3), rng.randint(1, 20), wait=wait
                )
            else:
                case.linear(
                    rng.randint(1, 10),
                    rng.randint(1, 40),
                    mode=rng.choice(list(NormMode)),
                    signed=rng.random() < 0.5,
                    wait=wait,
                )
        simulate(case, delay=rng.choice([0, 3, 60]), seed=seed)


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_copy_cycles(name):
    config = get_config(name)
    length, tiles = 10 * config.columns - 3, 5
    case = Case(config, seed=9)
    case.linear(tiles * config.rows, length)
    result = simulate(case)
    words = 10 * config.rows
    assert result.reads[0] - result.taken[0] == START_LATENCY
    assert result.first[0] - result.reads[0] == COPY_LATENCY
    assert result.filled[0] - result.first[0] == words - 1
    assert np.diff(result.filled).tolist() == [words + 1] * (tiles - 1)
    # From the first tile's first read to the last tile's last write; before it the instruction is looked at, and
    # after it what was written is seen to be all.
    busy = tiles * (words + 1) - 1 + COPY_LATENCY
    start = START_LATENCY + 1
    assert result.events == dict.fromkeys(result.events, 0) | {"busy": busy, "start": start}


@pytest.mark.parametrize(("name", "words"), [("tiny", 32), ("tiny", 6), ("wide", 20)])
def test_norm_cycles(name, words):
    """LayerNorm of one tile overlaps the reads of the next ones."""
    config = get_config(name)
    tiles = 5
    case = Case(config, seed=10)
    case.linear(tiles * config.rows, words * config.columns - 1, mode=NormMode.LAYERNORM)
    result = simulate(case)
    stream_wait = result.events["norm"]
    assert result.reads[0] - result.taken[0] == START_LATENCY + 1 + stream_wait
    assert result.first[0] - result.reads[0] == words - 1 + norm_latency(config)
    assert result.filled[0] - result.first[0] == words * config.rows - 1
    assert np.diff(result.filled).tolist() == [words * config.rows + 1] * (tiles - 1)


def test_short_norm_cycles():
    """Rows of one word: a buffer is taken for the length of the pipeline that normalises."""
    case, tiles = Case(CONFIG, seed=17), 20
    case.linear(tiles * CONFIG.rows, 8, mode=NormMode.AFFINE)
    filled = simulate(case).filled
    assert (filled[-1] - filled[0]) / (tiles - 1) < CONFIG.rows + 12


def test_norm_reads_ahead():
    """With both buffers full, the next tile's rows are read and wait; their first write follows at once."""
    case = Case(CONFIG, seed=16)
    case.linear(16, 40, mode=NormMode.LAYERNORM)
    result = simulate(case, delay=0, array_delay=400)
    assert result.reads[-1] < result.freed[0]
    assert [first - freed for first, freed in zip(result.first[2:], result.freed, strict=False)] == [
        2 + NORMALISE_LATENCY + 1
    ] * 2
    assert result.events["tile"] > 700


def test_back_to_back_cycles():
    case = Case(CONFIG, seed=11)
    case.linear(4, 80)
    case.linear(4, 80)
    case.linear(4, 80)
    result = simulate(case)
    assert (np.array(result.reads)[40::40] - result.filled[:-1]).tolist() == [START_LATENCY + 2] * 2


def test_attention_cycles():
    """P starts as soon as the scores are complete; a short P.V waits for its scales, a long one does not."""
    for keys in (3, (cover_steps(CONFIG) + 1) * CONFIG.depth):
        case = Case(CONFIG, seed=12)
        case.attention(CONFIG.rows, keys, 1, 16)
        result = simulate(case)
        words = CONFIG.rows * -(-keys // CONFIG.columns)
        assert result.filled[0] - result.taken[0] == START_LATENCY - 1 + 2 * CONFIG.rows + COPY_LATENCY
        assert result.first[1] - result.staged[0] == 2 + CONTEXT_LATENCY
        short = keys == 3
        assert result.filled[1] - result.first[1] == words - 1 + (scale_latency(CONFIG) if short else 0)
        assert result.events["scores"] > 0


def test_events():
    """Waits for the retired count, a buffer, parameters, scores and a STREAM's bit are each counted as such."""
    case = Case(CONFIG, seed=13)
    case.linear(12, 16)
    case.linear(4, 16, mode=NormMode.LAYERNORM, wait=1)
    case.attention(8, 20, 1, 8, wait=2)
    case.expert(0, 8, gather=True)
    result = simulate(case, delay=80, seed=14, norm_delay=400, brought_delay=1500)
    never = {"memory", "array", "fetch", "order"}  # nobody else reads, the queues do not fill; the core has the rest
    assert {name for name, count in result.events.items() if not count} == never
    assert sum(result.events.values()) <= result.cycles


def test_array_queue():
    """The array may leave its instructions in the queue for as long as it likes."""
    case = Case(CONFIG, seed=15)
    dut = Loader(CONFIG)
    words = []

    async def bench(ctx):
        instructions = []
        for i in range(6):
            case.linear(1, 8 + i)
        instructions = [int.from_bytes(encode(x), "little") for x in case.instructions]
        ctx.set(dut.tile_freed, 0)
        for instruction in instructions:
            ctx.set(dut.i_instr.payload, instruction)
            ctx.set(dut.i_instr.valid, 1)
            for _ in range(60):
                ctx.set(dut.tile_freed, ctx.get(dut.tile_filled))
                taken = ctx.get(dut.i_instr.ready)
                await ctx.tick()
                if taken:
                    break
            else:
                break
        ctx.set(dut.i_instr.valid, 0)
        ctx.set(dut.o_instr.ready, 1)
        for _ in range(20):
            if ctx.get(dut.o_instr.valid):
                words.append(ctx.get(dut.o_instr.payload))
            await ctx.tick()
        assert 4 <= len(words) < 6
        assert words == instructions[: len(words)]

    run(dut, bench, background=[case.memory.process(dut.act)], timeout_cycles=1000)


@pytest.mark.parametrize("kind", ["gather", "scatter", "both"])
@pytest.mark.parametrize("delay", [0, 30])
def test_queues(kind, delay):
    """All lengths 0 … N, among ordinary instructions; random tokens, slow entries, late buffers."""
    gather, scatter = kind != "scatter", kind != "gather"
    case = Case(CONFIG, seed=20, stall=0.3 if delay else 0.0)
    for count in range(10):
        case.expert(count, 8 * (count % 3) + 5, gather=gather, scatter=scatter, wait=max(count - 2, 0))
    case.linear(3, 9, mode=NormMode.AFFINE, wait=10)
    case.expert(12, 30, gather=gather, scatter=scatter)
    case.attention(5, 9, 2, 8)
    case.expert(5, 8, gather=gather, scatter=scatter, wait=13)
    simulate(case, delay=delay, seed=21, entry_stall=0.8 if delay else 0.0, array_delay=delay)


@pytest.mark.parametrize("brought_delay", [0, 700])
def test_empty_queues(brought_delay):
    """Of an empty queue nothing is loaded; what its STREAM brought is thrown away or was never there."""
    case = Case(CONFIG, seed=22)
    case.expert(0, 20, gather=True, brought=0)
    case.linear(6, 20)
    case.expert(0, 20, gather=True, brought=1)
    case.expert(0, 20, scatter=True, brought=0)
    case.expert(3, 20, scatter=True)
    case.expert(2, 20, gather=True)
    case.expert(0, 20, scatter=True, brought=1, wait=4)
    case.attention(2, 9, 1, 8)
    for _ in range(10):  # more than the loader may owe
        case.expert(1, 8, gather=True)
    case.expert(0, 20, gather=True, brought=0)
    result = simulate(case, delay=5, seed=23, brought_delay=brought_delay)
    assert result.events["queue"] >= brought_delay / 2


def test_owed_bits():
    """A queue that is not empty does not wait for its STREAM's bit: up to 7 of them are taken later."""
    case = Case(CONFIG, seed=24)
    for _ in range(12):
        case.expert(4, 16, gather=True)
    result = simulate(case, brought_delay=2000)
    assert sum(cycle < 2000 for cycle in result.filled) == 7
    case = Case(CONFIG, seed=24)
    for _ in range(5):
        case.expert(4, 16, gather=True)
    assert simulate(case, brought_delay=2000).events["queue"] < 100  # for entries
    case.expert(0, 16, gather=True, brought=0)  # its own bit is the sixth
    assert simulate(case, brought_delay=2000).events["queue"] > 1000


def test_queue_holds_too_many():
    """The instructions before are carried out; then nothing is taken until a reset."""
    case = Case(CONFIG, seed=25)
    case.linear(5, 20)
    case.expert(4, 20, gather=True, n_rows=4)
    case.expert(5, 20, scatter=True, n_rows=4)
    jobs = len(case.jobs)
    case.instructions.append(case.instructions[0])
    result = simulate(case, faults=1)
    assert len(result.filled) == jobs
    assert len(result.taken) == 3
    assert len(result.sent) == 2
    assert result.faults[0] - result.taken[2] == QUEUE_START_LATENCY + 1


def test_reset():
    """After a reset in the middle of anything, a stop included, no trace of it is left."""
    case, reset = Case(CONFIG, seed=32), Signal()
    case.linear(9, 40, mode=NormMode.LAYERNORM, keep=True)
    case.expert(9, 40, gather=True, scatter=True)
    case.expert(0, 8, gather=True)
    case.expert(5, 8, gather=True, n_rows=4)
    loader = Loader(CONFIG)
    outputs = [
        *(loader.o_instr.valid, loader.act.valid, loader.act_write.valid, loader.o_tile.valid, loader.tile_filled),
        *(loader.o_entry.valid, loader.queue.start, loader.queue.entries.ready, loader.i_brought.ready),
        *(loader.fault_queue, loader.norm_tail, loader.events.as_value()),
    ]
    buffers: list[int] = []

    async def bench(ctx):
        ctx.set(loader.norm_head, 200)
        ctx.set(loader.act_write.ready, 0)
        for index, instruction in enumerate(case.instructions):
            buffers.clear()
            for cycles in (3, 6, 9, 40, 150):
                ctx.set(loader.queue.count, len(case.queues[index].entries) if index else 0)
                ctx.set(loader.queue.entries.valid, 1)
                ctx.set(loader.i_instr.payload, int.from_bytes(encode(instruction), "little"))
                ctx.set(loader.i_instr.valid, 1)
                await ctx.tick()
                ctx.set(loader.i_instr.valid, 0)
                for _ in range(cycles):
                    if ctx.get(loader.o_tile.valid):
                        buffers.append(ctx.get(loader.o_tile.buffer))
                    await ctx.tick()
                ctx.set(reset, 1)
                ctx.set(loader.queue.entries.valid, 0)
                for _ in range(3):  # the memory's answers to earlier reads
                    await ctx.tick()
                ctx.set(reset, 0)
                for _ in range(100):
                    assert not any(ctx.get(output) for output in outputs)
                    assert ctx.get(loader.i_instr.ready)
                    await ctx.tick()
            assert index > 1 or buffers[0] == 0

    run(ResetInserter(reset)(loader), bench, background=[case.memory.process(loader.act)], timeout_cycles=10_000)


@pytest.mark.parametrize(("name", "words"), [("tiny", 1), ("tiny", 2), ("tiny", 4), ("wide", 2), ("wide", 5)])
def test_queue_cycles(name, words):
    """Rows of a queue follow each other as rows that lie in order do; rows of one word take two cycles."""
    config, tiles = get_config(name), 4
    case = Case(config, seed=26)
    case.expert(0, 8, gather=True)
    count = tiles * config.rows
    case.expert(count, words * config.columns, gather=True, scatter=True, n_rows=count)
    result = simulate(case)
    assert result.sent[0] - result.taken[0] == QUEUE_SEND_LATENCY + 1 + 2  # to the FIFO's other side
    assert result.sent[1] - result.taken[1] == QUEUE_SEND_LATENCY + 2
    assert result.walks[0] - result.taken[1] == QUEUE_START_LATENCY
    assert result.reads[0] - result.entered[0] == QUEUE_ROW_LATENCY + 1
    assert result.first[0] - result.reads[0] == COPY_LATENCY
    cycles = config.rows * words if words > 1 else 2 * config.rows - 1
    assert np.diff(result.reads[:: config.rows * words]).tolist() == [cycles + 1] * (tiles - 1)


@pytest.mark.parametrize("name", ["tiny", "square"])
def test_keep(name):
    """Kept rows at even and odd addresses, of odd and even word counts, while POST writes at random and for long."""
    rng = random.Random(27)
    for post_writes in (lambda _: rng.random() < 0.6, lambda cycle: cycle % 1000 < 900, None):
        case = Case(get_config(name), seed=28, stall=0.2)
        for odd, length in ((False, 20), (True, 24), (True, 8), (False, 32), (True, 3)):
            case.linear(9, length, mode=NormMode.LAYERNORM, keep=True, keep_odd=odd)
            case.linear(2, length, wait=len(case.instructions) - 1)
        case.linear(5, 20, mode=NormMode.AFFINE, signed=False, keep=True)
        case.linear(5, 20, keep=True)  # only what is normalised is kept
        case.linear(5, 20, mode=NormMode.LAYERNORM)
        case.attention(5, 20, 1, 8)
        simulate(case, delay=10, seed=29, post_writes=post_writes)


def test_keep_holds_the_normaliser():
    """While POST writes in every cycle a tile is not announced, and nothing is lost."""
    case, quiet = Case(CONFIG, seed=30), 3000
    case.linear(16, 100, mode=NormMode.LAYERNORM, keep=True)
    result = simulate(case, post_writes=lambda cycle: cycle < quiet)
    assert result.filled[0] > quiet
    assert result.first[1] > quiet  # the second tile had a buffer, but there was no room for its words
    assert result.filled[-1] - quiet < 16 * 13 + 60


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_keep_cycles(name):
    """Kept rows cost nothing but the way of the last words."""
    config, tiles, words = get_config(name), 5, 12
    results = []
    for keep in (False, True):
        case = Case(config, seed=31)
        case.linear(tiles * config.rows, words * config.columns, mode=NormMode.LAYERNORM, keep=keep)
        results.append(simulate(case))
    plain, kept = results
    assert kept.kept[0] - kept.first[0] == KEEP_LATENCY
    assert [k - p for k, p in zip(kept.filled, plain.filled, strict=True)] == [KEEP_LATENCY + 1] * tiles


def test_random_experts():
    """Everything at once, everything delayed at random."""
    for seed in range(4):
        rng = random.Random(seed)
        case = Case(CONFIG, seed=seed, stall=rng.choice([0.0, 0.3]))
        for i in range(14):
            wait, length = rng.randint(0, i), rng.randint(1, 40)
            kind = rng.random()
            if kind < 0.1:
                case.attention(rng.randint(1, 9), length, rng.randint(1, 2), rng.randint(1, 20), wait=wait)
            elif kind < 0.4:
                case.linear(
                    rng.randint(1, 10),
                    length,
                    mode=rng.choice(list(NormMode)),
                    wait=wait,
                    keep=rng.random() < 0.5,
                    keep_odd=rng.random() < 0.5,
                )
            else:
                gather = rng.random() < 0.5
                case.expert(
                    rng.choice([0, 0, 1, rng.randint(2, 12)]),
                    length,
                    gather=gather,
                    scatter=not gather or rng.random() < 0.5,
                    brought=rng.getrandbits(1),
                    wait=wait,
                )
        busy = rng.random()
        simulate(
            case,
            delay=rng.choice([0, 3, 60]),
            seed=seed,
            entry_stall=rng.choice([0.0, 0.9]),
            brought_delay=rng.choice([0, 300]),
            post_writes=lambda _, busy=busy, rng=rng: rng.random() < busy,
        )
