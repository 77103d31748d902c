"""Loader against the numerics: tiles in compute order, among an array, POST and a streamer that delay."""

import dataclasses
import random
from typing import Any, NamedTuple

import numpy as np
import pytest

from hw.activation_model import ActivationModel, parameter_memory
from hw.bench import run
from hw.norm_model import Norm, random_norm, random_rows
from hw.softmax_model import random_scores, staged_rows, tile_and_scales
from moevit.config import AcceleratorConfig, get_config
from moevit.hw.units.context_loader import CONTEXT_LATENCY, cover_steps, scale_latency
from moevit.hw.units.layernorm import NORMALISE_LATENCY
from moevit.hw.units.loader import START_LATENCY, Loader
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
    last: bool = False  #: of the instruction


class Case:
    """A program for the loader: instructions, memory contents and the tiles that must come of them."""

    def __init__(self, config: AcceleratorConfig, *, seed: int = 0, stall: float = 0.0):
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.memory = ActivationModel(config, stall=stall, seed=seed)
        self.instructions: list[Instruction] = []
        self.jobs: list[Job] = []
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
        firsts = range(0, n_rows, config.rows)
        jobs = [self._tile(out[r : r + config.rows], length, last=r == firsts[-1]) for r in firsts]
        self.jobs += jobs
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
                Job(len(self.instructions), tile, n_keys, unit=u & 1, scales=scales, last=u == len(units) - 1)
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


class Result(NamedTuple):
    """Cycle numbers: instructions taken, reads accepted, first write and ``tile_filled`` of each job, ..."""

    taken: list[int]
    reads: list[int]
    first: list[int]
    filled: list[int]
    freed: list[int]
    staged: list[int]
    retired: list[int]
    events: dict[str, int]
    cycles: int


def simulate(
    case: Case,
    *,
    delay: int = 0,
    seed: int = 0,
    norm_delay: int = 0,
    array_delay: int = 0,
    timeout: int = 20_000,
) -> Result:
    """Run all of it; ``delay`` is the longest random time of everybody else's steps."""
    config = case.config
    dut = Loader(config)
    rng = random.Random(seed)
    result = Result([], [], [], [], [], [], [], {}, 0)
    norm_words = [0] * config.norm_words
    writes: dict[tuple[int, int], bytes] = {}
    scales: list[tuple[int, int, int, int]] = []
    cycle = [0]
    events = dict.fromkeys(dut.events.shape().members, 0)

    async def pause(ctx):
        for _ in range(rng.randint(0, delay)):
            await ctx.tick()

    async def instructions(ctx):
        for instruction in case.instructions:
            await pause(ctx)
            ctx.set(dut.i_instr.payload, int.from_bytes(encode(instruction), "little"))
            ctx.set(dut.i_instr.valid, 1)
            await ctx.tick().until(dut.i_instr.ready)
            ctx.set(dut.i_instr.valid, 0)

    async def array(ctx):
        for index, job in enumerate(case.jobs):
            if index == 0 or job.instruction != case.jobs[index - 1].instruction:
                await pause(ctx)
                ctx.set(dut.o_instr.ready, 1)
                (payload,) = await ctx.tick().sample(dut.o_instr.payload).until(dut.o_instr.valid)
                ctx.set(dut.o_instr.ready, 0)
                assert payload == int.from_bytes(encode(case.instructions[job.instruction]), "little")
            while len(result.filled) <= index:
                await ctx.tick()
            for _ in range(array_delay):
                await ctx.tick()
            await pause(ctx)
            ctx.set(dut.tile_freed, 1)
            await ctx.tick()
            result.freed.append(cycle[0])
            ctx.set(dut.tile_freed, 0)
            if job.scores is not None:
                staged.append(job)
            if job.last:
                retiring.append(job.instruction)

    staged: list[Job] = []
    retiring: list[int] = []

    async def post(ctx):
        while True:
            await ctx.tick()
            if staged:
                await pause(ctx)
                job = staged.pop(0)
                for word in staged_rows(job.scores, config):
                    ctx.set(dut.i_staged.valid, 1)
                    ctx.set(dut.i_staged.unit, job.unit)
                    for name, value in word._asdict().items():
                        ctx.set(getattr(dut.i_staged, name), value & 0x7FF if name == "maximum" else value)
                    if word.last:
                        result.staged.append(cycle[0])
                    await ctx.tick()
                ctx.set(dut.i_staged.valid, 0)

    async def retire(ctx):
        while len(result.retired) < len(case.instructions):
            await ctx.tick()
            if retiring:
                await pause(ctx)
                retiring.pop(0)
                result.retired.append(cycle[0])
                ctx.set(dut.retired, len(result.retired) & 0xFFFF)
        await ctx.tick().repeat(30)  # the last scales

    async def stream(ctx):
        for _ in range(norm_delay):
            await ctx.tick()
        for i, word in enumerate(case.norm_stream):
            await pause(ctx)
            while (i - ctx.get(dut.norm_tail)) % (1 << 18) >= config.norm_words:
                await ctx.tick()
            norm_words[i % config.norm_words] = word
            ctx.set(dut.norm_head, i + 1)
            await ctx.tick()

    def check(index):
        job = case.jobs[index]
        assert writes.keys() == job.words.keys(), (index, sorted(writes), sorted(job.words))
        for (row, word), expected in job.words.items():
            size = min(config.columns, job.valid - word * config.columns)
            got = writes[row, word]
            assert got[:size] == expected[:size], (index, row, word, got.hex(), expected.hex())
        writes.clear()

    async def watch(ctx):
        """Sees the values before each clock edge, the cycle's own."""
        tile = dut.o_tile
        scale = dut.o_scale
        while True:
            (
                _,
                _,
                taken,
                instr_ready,
                read,
                read_ready,
                valid,
                buffer,
                row,
                word,
                value,
                is_filled,
                scale_valid,
                *scale_values,
                event,
            ) = await ctx.tick().sample(
                dut.i_instr.valid,
                dut.i_instr.ready,
                dut.act.valid,
                dut.act.ready,
                tile.valid,
                tile.buffer,
                tile.row,
                tile.word,
                tile.data,
                dut.tile_filled,
                scale.valid,
                scale.unit,
                scale.row,
                scale.mult,
                scale.shift,
                dut.events,
            )
            high = [name for name in events if event[name]]
            assert len(high) <= 1
            for name in high:
                events[name] += 1
            if taken and instr_ready:
                result.taken.append(cycle[0])
            if read and read_ready:
                result.reads.append(cycle[0])
                instruction = len(result.taken) - 1
                assert len(result.retired) >= case.instructions[instruction].wait  # type: ignore[attr-defined]
            if valid:
                index = len(result.filled)
                assert buffer == index & 1
                assert index - len(result.freed) < 2, "writes a buffer that is not free"
                assert (row, word) not in writes
                if not writes:
                    result.first.append(cycle[0])
                writes[row, word] = value.to_bytes(config.columns, "little")
            if scale_valid:
                scales.append(tuple(scale_values))
            if is_filled:
                check(len(result.filled))
                result.filled.append(cycle[0])
            cycle[0] += 1

    run(
        dut,
        instructions,
        array,
        retire,
        timeout_cycles=timeout,
        background=[
            watch,
            post,
            stream,
            case.memory.process(dut.act),
            parameter_memory(dut.norm, norm_words),
        ],
    )
    assert len(result.filled) == len(case.jobs)
    expected = [
        (job.unit, row, *pair) for job in case.jobs if job.scales for row, pair in enumerate(job.scales)
    ]
    assert scales == expected
    assert len(result.reads) == sum(len(job.words) for job in case.jobs if job.scales is None)
    return result._replace(events=events, cycles=cycle[0])


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
    # from the first tile's start to the last tile's end
    assert result.events == {
        "busy": tiles * (words + 1) + COPY_LATENCY - 1,
        "dependency": 0,
        "tile": 0,
        "norm": 0,
        "scores": 0,
    }


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
    """A wait for the retired count, for a buffer, for parameters and for scores are each counted as such."""
    case = Case(CONFIG, seed=13)
    case.linear(12, 16)
    case.linear(4, 16, mode=NormMode.LAYERNORM, wait=1)
    case.attention(8, 20, 1, 8, wait=2)
    result = simulate(case, delay=80, seed=14, norm_delay=400)
    assert all(count > 0 for count in result.events.values()), result.events
    assert sum(result.events.values()) <= result.cycles


def test_queue():
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
