"""Fetch against the program it reads: what comes out, what is read, which errors."""

import itertools
import random
from dataclasses import replace

import pytest

from hw.bench import get, run
from moevit.config import CONFIGS
from moevit.hw.units.fetch import PREFETCH_INSTRUCTIONS, REQUEST_INSTRUCTIONS, Fetch
from moevit.isa import INSTRUCTION_BYTES, ISA_VERSION, Begin, DmaOut, End, encode, encode_program
from moevit.registers import ErrorCode

CONFIG = CONFIGS["tiny"]
BASE = 0x12_3456_7000


def make_program(config, count, **begin):
    values = {"digest": config.digest, "ring_words": config.operand_words, "count": count} | begin
    middle = [DmaOut(src=i, words=1, offset=16 * i) for i in range(count - 2)]
    return [Begin(**values), *middle, End()]


class Memory:
    """Answers requests from bytes; logs (offset, length); checks that nothing outside is asked for."""

    def __init__(self, dut, image, *, latency=5, stall=0.0, seed=0):
        self.dut, self.image, self.latency, self.stall, self.log = dut, image, latency, stall, []
        self.rng = random.Random(seed)

    async def process(self, ctx):
        size = self.dut.config.axi_bytes
        queue = []
        cycle = 0
        ready = valid = 0
        async for _, _, wants, request, taken in ctx.tick().sample(
            self.dut.o_request.valid, self.dut.o_request.payload, self.dut.i_data.ready
        ):
            cycle += 1
            if wants and ready:
                start = request.addr - BASE
                assert start >= 0
                assert start + request.beats * size <= len(self.image)
                self.log.append((start, request.beats * size))
                queue += [
                    (cycle + self.latency, self.image[start + i * size : start + (i + 1) * size])
                    for i in range(request.beats)
                ]
            if valid and taken:
                queue.pop(0)
                valid = 0
            ready = int(self.rng.random() >= self.stall)
            ctx.set(self.dut.o_request.ready, ready)
            if not valid:
                valid = int(bool(queue) and queue[0][0] <= cycle and self.rng.random() >= self.stall)
            ctx.set(self.dut.i_data.valid, valid)
            if valid:
                ctx.set(self.dut.i_data.payload.data, int.from_bytes(queue[0][1], "little"))


async def start(ctx, dut, image_bytes, program=0, base=BASE):
    ctx.set(dut.image_base, base)
    ctx.set(dut.image_bytes, image_bytes)
    ctx.set(dut.program, program)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)


def fetch_all(config, program, offset=0, *, stall=0.0, sink_stall=0.0):
    """Runs an encoded program; returns what came out, and the memory log."""
    dut = Fetch(config)
    memory = Memory(dut, bytes(offset) + program + bytes(64), stall=stall)  # a read past the program shows
    out = {}

    async def bench(ctx):
        await start(ctx, dut, offset + len(program), offset)
        expected = len(program) // INSTRUCTION_BYTES - 1
        instructions = []
        while len(instructions) < expected and not ctx.get(dut.fault):
            if ctx.get(dut.o_instr.valid):
                instructions += await get(ctx, dut.o_instr, 1, stall=sink_stall, seed=len(instructions))
            else:
                await ctx.tick()
        await ctx.tick().repeat(50)
        assert not ctx.get(dut.o_instr.valid)
        out["ring"] = ctx.get(dut.ring_words)
        out["fault"] = ErrorCode(ctx.get(dut.fault_code)) if ctx.get(dut.fault) else None
        out["fetched"] = ctx.get(dut.fetched)
        out["instructions"] = [(i.word, i.number, i.last) for i in instructions]

    run(dut, bench, background=[memory.process])
    return out, memory.log


@pytest.mark.parametrize("width", [32, 128, 512])
@pytest.mark.parametrize(("stall", "sink_stall"), [(0, 0), (0.5, 0), (0, 0.9), (0.3, 0.3)])
def test_reads_a_program(width, stall, sink_stall):
    config = replace(CONFIG, columns=16, axi_data_width=width)
    program = make_program(config, 2 * PREFETCH_INSTRUCTIONS + 5, ring_words=77)
    out, log = fetch_all(config, encode_program(program), offset=192, stall=stall, sink_stall=sink_stall)
    words = [int.from_bytes(encode(i), "little") for i in program[1:]]
    assert out["fault"] is None
    assert out["instructions"] == [(w, i + 1, int(i + 2 == len(program))) for i, w in enumerate(words)]
    assert (out["ring"], out["fetched"]) == (77, len(program))
    # The requests cover the program once, in order, a few instructions at a time.
    position = 192
    for offset, length in log:
        assert offset == position
        assert length <= REQUEST_INSTRUCTIONS * INSTRUCTION_BYTES
        position += length
    assert position == 192 + len(program) * INSTRUCTION_BYTES


def test_prefetches_and_no_further():
    dut = Fetch(CONFIG)
    program = make_program(CONFIG, 60)
    memory = Memory(dut, encode_program(program))

    async def bench(ctx):
        await start(ctx, dut, 60 * 64)
        await ctx.tick().repeat(300)
        assert sum(length for _, length in memory.log) == (PREFETCH_INSTRUCTIONS + 1) * 64

    run(dut, bench, background=[memory.process])


def test_latency_and_throughput():
    dut = Fetch(CONFIG)
    count = 12
    memory = Memory(dut, encode_program(make_program(CONFIG, count)), latency=0)
    cycles = []

    async def bench(ctx):
        await start(ctx, dut, count * 64)
        waited = 1
        while not ctx.get(dut.o_request.valid):
            await ctx.tick()
            waited += 1
        assert waited == 4
        ctx.set(dut.o_instr.ready, 1)
        cycle = 0
        while len(cycles) < count - 1:
            if ctx.get(dut.o_instr.valid):
                cycles.append(cycle)
            await ctx.tick()
            cycle += 1

    run(dut, bench, background=[memory.process])
    steps = [b - a for a, b in itertools.pairwise(cycles)]
    assert steps == [64 // CONFIG.axi_bytes + 1] * (count - 2)


def patched(begin, **raw):
    """A BEGIN's encoding with some fields set to any value."""
    word = int.from_bytes(encode(begin), "little")
    fields = {f.name: f for f in Begin.fields()}
    for name, value in raw.items():
        offset, width = (0, 8) if name == "opcode" else (500, 1) if name == "stray" else (
            fields[name].offset, fields[name].width)  # fmt: skip
        word = word & ~(((1 << width) - 1) << offset) | value << offset
    return word.to_bytes(INSTRUCTION_BYTES, "little")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ({"opcode": 2}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"opcode": 0, "digest": 0}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"magic": 0x56454F4C}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"version": ISA_VERSION + 1}, ErrorCode.WRONG_CONFIGURATION),
        ({"version": ISA_VERSION + 1, "count": 0}, ErrorCode.WRONG_CONFIGURATION),
        ({"digest": CONFIG.digest ^ 1 << 63}, ErrorCode.WRONG_CONFIGURATION),
        ({"digest": CONFIG.digest ^ 1}, ErrorCode.WRONG_CONFIGURATION),
        ({"ring_words": 0}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"ring_words": CONFIG.operand_words + 1}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"ring_words": (1 << 16) + 1}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"count": 0}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"count": 1}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"stray": 1}, ErrorCode.ILLEGAL_INSTRUCTION),
        ({"count": 7}, ErrorCode.IMAGE_RANGE),
        ({"count": (1 << 24) - 1}, ErrorCode.IMAGE_RANGE),
    ],
)
def test_refuses_what_is_no_begin_of_ours(raw, code):
    program = make_program(CONFIG, 6)
    out, log = fetch_all(CONFIG, patched(program[0], **raw) + encode_program(program[1:]))
    assert (out["fault"], out["instructions"], out["fetched"]) == (code, [], 1)
    assert len(log) == 1


@pytest.mark.parametrize(
    ("offset", "image_bytes", "base", "read"),
    [
        (0, 63, BASE, 0),
        (0, 0, BASE, 0),
        (640, 640, BASE, 0),
        (0xFFFF_FFC0, 1 << 12, BASE, 0),
        (32, None, BASE, 0),
        (0, None, BASE + 16, 0),
        (0, 64 * 5 + 63, BASE, 1),
    ],
)
def test_refuses_a_program_outside_the_image(offset, image_bytes, base, read):
    dut = Fetch(CONFIG)
    image = encode_program(make_program(CONFIG, 6))
    memory = Memory(dut, image)

    async def bench(ctx):
        await start(ctx, dut, len(image) if image_bytes is None else image_bytes, offset, base)
        await ctx.tick().repeat(60)
        assert ctx.get(dut.fault)
        assert ctx.get(dut.fault_code) == ErrorCode.IMAGE_RANGE
        assert len(memory.log) == read

    run(dut, bench, background=[memory.process])
