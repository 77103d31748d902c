import dataclasses
import random

import pytest
from amaranth import Module
from amaranth.lib import wiring

from hw.axi_model import AxiMemory
from hw.bench import put, run
from moevit.config import CONFIGS
from moevit.hw.interfaces import ACTIVATION_READ_LATENCY, events_layout
from moevit.hw.units.axi_write import AxiWritePort
from moevit.hw.units.dma import UNANSWERED, Dma
from moevit.hw.units.read_mux import ReadMux
from moevit.isa import DmaIn, DmaOut, encode

BASE = 0x5_0000_0000
INPUT, IMAGE, OUTPUT = 4096, 12288, 20480  # of the buffers in the memory
BUFFER = 6000
SHAPES = {
    "tiny": CONFIGS["tiny"],
    "wide": CONFIGS["wide"],
    "long": dataclasses.replace(CONFIGS["zcu104"], activation_words=1024),  # a word is two bus words
    "short": dataclasses.replace(CONFIGS["tiny"], columns=4, rows=2, depth=4),  # a pair is half a bus word
    "narrow": dataclasses.replace(CONFIGS["tiny"], axi_data_width=32),
}


class Bench:
    """A DMA unit with its ports, a DRAM and an activation memory that stalls at random."""

    def __init__(self, config, *, seed=0, act_stall=0.0, **memory):
        config = dataclasses.replace(config, activation_words=8192 // config.columns)
        self.config, self.act_stall = config, act_stall
        self.rng = random.Random(seed)
        self.dma, self.mux, self.writer = Dma(config), ReadMux(config, 1), AxiWritePort(config)
        self.memory = AxiMemory(32768, BASE, seed=seed, **memory)
        self.activations = bytearray(self.rng.randbytes(8192))
        self.output_bytes = BUFFER
        self.done = 0
        self.cycle = 0
        self.done_times = []
        self.events = dict.fromkeys(events_layout("dma").members, 0)
        self.working = 0  # cycles in which it was busy

    def module(self):
        m = Module()
        m.submodules.dma = dma = self.dma
        m.submodules.mux = mux = self.mux
        m.submodules.writer = writer = self.writer
        wiring.connect(m, dma.o_request, mux.i_request[0])
        wiring.connect(m, mux.o_data[0], dma.i_data)
        wiring.connect(m, dma.o_write, writer.i_request)
        wiring.connect(m, dma.o_write_data, writer.i_data)
        m.d.comb += dma.write_done.eq(writer.done)
        return m

    async def setup(self, ctx):
        for name, offset in (("input", INPUT), ("image", IMAGE), ("output", OUTPUT)):
            ctx.set(getattr(self.dma, f"{name}_base"), BASE + offset)
            ctx.set(getattr(self.dma, f"{name}_bytes"), BUFFER)
        ctx.set(self.dma.retired, 0)

    async def act_memory(self, ctx):
        """Background: the activation memory, and what can be counted."""
        read, write = self.dma.act_read, self.dma.act_write
        size = 2 * self.config.columns
        in_flight = [None] * (ACTIVATION_READ_LATENCY - 1)
        while True:
            ctx.set(read.ready, self.rng.random() >= self.act_stall)
            ctx.set(write.ready, self.rng.random() >= self.act_stall)
            _, _, reads, pair, writes, to, word, mask, done, events, busy = await ctx.tick().sample(
                read.valid & read.ready, read.pair,
                write.valid & write.ready, write.pair, write.data, write.mask,
                self.dma.done, self.dma.events, self.dma.busy,
            )
            self.cycle += 1
            self.done += done
            if done:
                self.done_times.append(self.cycle)
            for cause in self.events:
                self.events[cause] += getattr(events, cause)
            assert sum(getattr(events, cause) for cause in self.events) <= 1
            self.working += busy
            word_pair = int.from_bytes(self.activations[pair * size :][:size], "little")
            in_flight.append(word_pair if reads else None)
            answer = in_flight.pop(0)
            ctx.set(read.data_valid, answer is not None)
            ctx.set(read.data, self.rng.getrandbits(8 * size) if answer is None else answer)
            if writes:
                assert (to + 1) * size <= len(self.activations)
                assert mask
                for i in range(size):
                    if mask >> i & 1:
                        self.activations[to * size + i] = word >> 8 * i & 0xFF

    def run(self, process, *, background=(), **options):
        async def bench(ctx):
            await self.setup(ctx)
            await process(ctx)

        ports = [self.memory.read_port(self.mux.axi), self.memory.write_port(self.writer.axi)]
        run(self.module(), bench, background=[self.act_memory, *ports, *background], **options)

    async def execute(self, ctx, program):
        done = self.done
        await put(ctx, self.dma.i_instr, [int.from_bytes(encode(i), "little") for i in program])
        while self.done < done + len(program):
            await ctx.tick()
        assert not ctx.get(self.dma.busy)
        assert not ctx.get(self.dma.faults.as_value())
        assert ctx.get(self.mux.idle)
        assert ctx.get(self.writer.idle)

    def apply(self, program):
        """What the activation memory and the DRAM hold after ``program``."""
        act, dram = bytearray(self.activations), bytearray(self.memory.bytes)
        for i in program:
            if isinstance(i, DmaOut):
                size = i.words * self.config.columns
                start = i.src * self.config.columns
                dram[OUTPUT + i.offset : OUTPUT + i.offset + size] = act[start : start + size]
                continue
            start = (IMAGE if i.source else INPUT) + i.offset
            for a in range(i.count0):
                for b in range(i.count1):
                    src = start + a * i.src_stride0 + b * i.src_stride1
                    dst = i.dst + a * i.dst_stride0 + b * i.dst_stride1
                    for _ in range(i.segments):
                        act[dst : dst + i.segment_bytes] = dram[src : src + i.segment_bytes]
                        src += i.segment_bytes
                        dst += i.dst_segment
        return act, dram


def copies_in(seed, count):
    """Random copies; the corners first: one byte, an exact bus word, a long odd one, tiny segments."""
    rng = random.Random(seed)
    out = [
        DmaIn(offset=BUFFER - 1, segment_bytes=1, dst=8191),
        DmaIn(offset=32, segment_bytes=16, dst=16),
        DmaIn(offset=3, segment_bytes=1001, dst=130),
        DmaIn(source=1, offset=5, count0=3, count1=2, src_stride0=500, src_stride1=71,
              dst_stride0=1000, dst_stride1=300,
              segments=9, segment_bytes=3, dst_segment=11, dst=7),
        # Runs across two bus words.
        DmaIn(offset=14, count1=5, src_stride1=16, dst_stride1=20, segment_bytes=4, dst=1),
    ]
    while len(out) < count:
        segments, segment_bytes = rng.choice([(1, 28), (1, 96), (4, 7), (3, 16), (2, 40), (1, 200)])
        out.append(DmaIn(
            source=rng.randint(0, 1), offset=rng.randrange(400),
            count0=rng.randint(1, 3), count1=rng.randint(1, 3),
            src_stride0=rng.randrange(1000), src_stride1=rng.randrange(600), dst_stride0=rng.randrange(1500),
            dst_stride1=rng.randrange(900), segments=segments, segment_bytes=segment_bytes,
            dst_segment=rng.randrange(segment_bytes, 240), dst=rng.randrange(1000),
        ))
    return out


STALLS = {
    "none": {},
    "memory": {"latency": 25, "jitter": 20, "address_stall": 0.5, "data_stall": 0.5},
    "activations": {"act_stall": 0.6},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stalls", STALLS)
def test_dma_in(shape, stalls):
    bench = Bench(SHAPES[shape], seed=len(shape), **STALLS[stalls])
    program = copies_in(len(shape + stalls), 10)
    want, dram = bench.apply(program)

    async def process(ctx):
        await bench.execute(ctx, program)
        await ctx.tick()

    bench.run(process)
    assert bench.activations == want
    assert bench.memory.bytes == dram
    assert sum(bench.events.values()) == bench.working
    assert bool(bench.events["memory"]) == (stalls == "activations")
    assert min(bench.events[name] for name in ("busy", "dram", "start", "pipeline")) > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stalls", STALLS)
def test_dma_out(shape, stalls):
    """Whole words from even and odd places; nothing around them changes, in the last bus word neither."""
    bench = Bench(SHAPES[shape], seed=len(stalls), **STALLS[stalls])
    places = [(0, 1, 0), (3, 1, 256), (2, 2, 1024), (5, 2, 2048), (7, 9, 3072), (1, 67, 3584)]
    program = [DmaOut(src=src, words=words, offset=offset) for src, words, offset in places]
    program = [i for i in program if i.offset + i.words * bench.config.columns <= BUFFER]
    act, want = bench.apply(program)

    async def process(ctx):
        await bench.execute(ctx, program)
        await ctx.tick()

    bench.run(process)
    assert bench.memory.bytes == want
    assert bench.activations == act
    assert sum(bench.events.values()) == bench.working


def test_mixed_in_order():
    """Each DMA_OUT sees the DMA_IN before it, and the next DMA_IN does not overtake it."""
    bench = Bench(SHAPES["tiny"], latency=30, act_stall=0.3)
    program = []
    for i in range(4):
        program.append(DmaIn(offset=100 * i + 1, segment_bytes=99, dst=0))
        program.append(DmaOut(src=0, words=12, offset=512 * i))
    want, dram = bench.apply([])
    act = bytearray(want)
    for i in range(4):
        act[:99] = dram[INPUT + 100 * i + 1 : INPUT + 100 * i + 100]
        dram[OUTPUT + 512 * i : OUTPUT + 512 * i + 96] = act[:96]

    async def process(ctx):
        await bench.execute(ctx, program)

    bench.run(process)
    assert bench.memory.bytes == dram
    assert bench.activations == act


def test_waits_for_the_retired_count():
    bench = Bench(SHAPES["tiny"])
    program = [DmaIn(wait=65535, offset=0, segment_bytes=8, dst=0), DmaOut(wait=3, src=0, words=4, offset=0)]
    act, dram = bench.apply(program)

    async def process(ctx):
        ctx.set(bench.dma.retired, 65534)
        await put(ctx, bench.dma.i_instr, [int.from_bytes(encode(i), "little") for i in program])
        await ctx.tick().repeat(100)
        assert not bench.memory.reads
        assert bench.events["dependency"] > 80
        ctx.set(bench.dma.retired, 0)
        await ctx.tick().repeat(100)
        assert bench.done == 1
        assert not bench.memory.writes
        ctx.set(bench.dma.retired, 3)
        await ctx.tick().until(bench.dma.done)

    bench.run(process)
    assert bench.memory.bytes == dram
    assert bench.activations == act


def test_says_that_it_reads():
    """From before the first request to the last byte, and neither while it waits nor for a DMA_OUT."""
    bench = Bench(SHAPES["tiny"], latency=20)
    read, spoke = [], []

    async def watch(ctx):
        while True:
            _, _, reading, request, written = await ctx.tick().sample(
                bench.dma.reading, bench.dma.o_request.valid, bench.dma.act_write.valid
            )
            read.append(reading)
            spoke.append(request | written)

    async def process(ctx):
        into = DmaIn(offset=0, segment_bytes=400, dst=0, wait=1)
        await put(ctx, bench.dma.i_instr, [int.from_bytes(encode(into), "little")])
        for _ in range(60):
            await ctx.tick()
        assert not any(read) and not any(spoke)
        ctx.set(bench.dma.retired, 1)
        while not bench.done:
            await ctx.tick()
        first, last = (order.index(1) for order in (spoke, spoke[::-1]))
        assert all(read[first : len(read) - last])
        assert 60 <= read.index(1) < first
        await ctx.tick().repeat(2)
        count = sum(read)
        await bench.execute(ctx, [DmaOut(src=0, words=40, offset=0)])
        assert sum(read) == count

    bench.run(process, background=[watch])


@pytest.mark.parametrize("shape", ["tiny", "wide", "long"])
def test_long_copy_takes_a_beat_a_cycle(shape):
    """Source and destination are odd against each other; 60 cycles of latency."""
    bench = Bench(SHAPES[shape], latency=60)

    async def process(ctx):
        await bench.execute(ctx, [DmaIn(offset=5, segment_bytes=4800, dst=2)])
        first = bench.cycle
        await bench.execute(ctx, [DmaIn(offset=0, segment_bytes=4800, dst=0)])
        assert first <= 4800 // 16 + 100
        assert bench.cycle - first <= 4800 // 16 + 100

    bench.run(process)


@pytest.mark.parametrize(("instr", "latency"), [
    (DmaIn(offset=0, segment_bytes=1, dst=0), 11),
    (DmaIn(offset=0, count0=2, count1=9, segments=4, segment_bytes=1, dst=0), 11 + 1 + 4 + 2),
    (DmaOut(src=0, words=1, offset=0), 7),
])
def test_latency(instr, latency):
    bench = Bench(SHAPES["tiny"])

    async def process(ctx):
        await put(ctx, bench.dma.i_instr, [int.from_bytes(encode(instr), "little")])
        start = bench.cycle
        await ctx.tick().until(bench.dma.o_request.valid | bench.dma.o_write.valid)
        assert bench.cycle - start == latency

    bench.run(process)


@pytest.mark.parametrize("shape", ["tiny", "wide", "long"])
def test_dma_out_rate(shape):
    bench = Bench(SHAPES[shape], latency=60)
    words = 4800 // bench.config.columns

    async def process(ctx):
        await bench.execute(ctx, [DmaOut(src=1, words=words, offset=0)])
        assert bench.cycle <= max(words, 4800 // 16) + 110

    bench.run(process)


def test_copies_do_not_wait_for_each_others_answers():
    bench = Bench(SHAPES["tiny"], latency=100)
    out = [DmaOut(src=20 * i, words=20, offset=160 * i) for i in range(2 * UNANSWERED)]
    into = DmaIn(offset=0, segment_bytes=160, dst=0)
    act, dram = bench.apply([*out, into])

    async def process(ctx):
        await bench.execute(ctx, [*out, into])

    bench.run(process)
    assert bench.memory.bytes == dram
    assert bench.activations == act
    starts = bench.done_times[:UNANSWERED]
    assert starts[-1] - starts[0] < 100  # the first ones were under way together
    assert bench.done_times[UNANSWERED] - starts[0] > 100  # but no more than these
    assert bench.done_times[-1] - bench.done_times[-2] > 100  # a DMA_IN only begins when all have been answered


def test_short_runs_are_not_latency_bound():
    """Patch rows of 28 bytes at 60 cycles of latency: a few cycles each."""
    bench = Bench(SHAPES["tiny"], latency=60)
    program = [DmaIn(offset=1, count0=8, count1=12, src_stride0=600, src_stride1=29,
                     dst_stride0=512, dst_stride1=32, segment_bytes=28, dst=0)]
    want, _ = bench.apply(program)

    async def process(ctx):
        await bench.execute(ctx, program)

    bench.run(process)
    assert bench.activations == want
    assert bench.cycle <= 96 * 5 + 100


FAULTS = [
    ("input_range", DmaIn(offset=BUFFER - 8, segment_bytes=9, dst=0)),
    ("input_range", DmaIn(offset=0, count0=3, src_stride0=BUFFER // 2, segment_bytes=1, dst=0)),
    ("input_range", DmaIn(offset=0, count1=2, src_stride1=BUFFER, segment_bytes=1, dst=0)),
    ("input_range", DmaIn(offset=0, segments=BUFFER // 8 + 1, segment_bytes=8, dst_segment=0, dst=0)),
    ("input_range", DmaIn(offset=(1 << 32) - 1, segment_bytes=9, dst=0)),
    ("image_range", DmaIn(source=1, offset=BUFFER, segment_bytes=1, dst=0)),
    ("activation_range", DmaIn(offset=0, segment_bytes=9, dst=8192 - 8)),
    ("activation_range", DmaIn(offset=0, count0=2, dst_stride0=8192, segment_bytes=1, dst=0)),
    ("activation_range", DmaIn(offset=0, count1=4095, dst_stride1=3, segment_bytes=1, dst=0)),
    ("activation_range", DmaIn(offset=0, segments=2, dst_segment=8188, segment_bytes=5, dst=0)),
    ("activation_range", DmaIn(offset=0, segment_bytes=9, dst=(1 << 24) - 1)),
    ("output_range", DmaOut(src=0, words=2, offset=BUFFER // 16 * 16)),
    ("output_range", DmaOut(src=0, words=1, offset=8)),
    ("output_range", DmaOut(src=0, words=1, offset=(1 << 32) - 16)),
    ("activation_range", DmaOut(src=8192 // 8 - 4, words=5, offset=0)),
    ("activation_range", DmaOut(src=(1 << 18) - 1, words=1, offset=0)),
]


@pytest.mark.parametrize(("fault", "wrong"), FAULTS)
def test_faults_stop_before_anything_is_done(fault, wrong):
    bench = Bench(SHAPES["tiny"])
    program = [DmaIn(offset=0, segment_bytes=8, dst=0), DmaOut(src=0, words=1, offset=0)]
    act, dram = bench.apply(program)

    async def process(ctx):
        await bench.execute(ctx, program)
        reads, writes = len(bench.memory.reads), len(bench.memory.writes)
        await put(ctx, bench.dma.i_instr, [int.from_bytes(encode(i), "little") for i in (wrong, *program)])
        await ctx.tick().repeat(120)
        faults = bench.dma.faults
        assert [n for n in ("input_range", "output_range", "image_range", "activation_range")
                if ctx.get(getattr(faults, n))] == [fault]
        assert (len(bench.memory.reads), len(bench.memory.writes), bench.done) == (reads, writes, 2)

    bench.run(process)
    assert bench.memory.bytes == dram
    assert bench.activations == act


def test_exact_ends_are_in_range():
    bench = Bench(SHAPES["tiny"])
    program = [
        DmaIn(offset=0, count0=2, count1=2, src_stride0=5000, src_stride1=900,
              dst_stride0=6000, dst_stride1=2000,
              segments=5, segment_bytes=20, dst_segment=43, dst=0),
        DmaIn(source=1, offset=BUFFER - 40, segment_bytes=40, dst=8192 - 40),
        DmaOut(src=1024 - 50, words=50, offset=BUFFER - 400),
    ]
    want, dram = bench.apply(program)

    async def process(ctx):
        await bench.execute(ctx, program)

    bench.run(process)
    assert bench.activations == want
    assert bench.memory.bytes == dram


def test_bus_errors_leave_the_instruction_unfinished():
    for errors in ({"read_errors": {BASE + INPUT + 16}}, {"write_errors": {BASE + OUTPUT}}):
        bench = Bench(SHAPES["tiny"], **errors)

        async def process(ctx, bench=bench, errors=errors):
            program = [DmaIn(offset=0, segment_bytes=100, dst=0)]
            if "write_errors" in errors:
                program = [DmaOut(src=0, words=9, offset=0)]
            await put(ctx, bench.dma.i_instr, [int.from_bytes(encode(i), "little") for i in program])
            await ctx.tick().repeat(200)
            assert bench.done == 0
            assert ctx.get(bench.mux.error) == ("read_errors" in errors)
            assert ctx.get(bench.writer.error) == ("write_errors" in errors)
            assert ctx.get(bench.mux.idle)
            assert ctx.get(bench.writer.idle)

        bench.run(process)
