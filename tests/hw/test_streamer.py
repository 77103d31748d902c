# amaranth: UnusedElaboratable=no
import dataclasses
import random

import pytest
from amaranth import Module
from amaranth.lib import wiring

from hw.axi_model import AxiMemory
from hw.bench import get, put, run
from moevit.config import BROUGHT_QUEUE_DEPTH, CONFIGS, STREAM_QUEUE_DEPTH
from moevit.errors import ConfigError
from moevit.hw.interfaces import QUEUE_COUNT_LATENCY, events_layout
from moevit.hw.units.axi_read import AxiReadPort
from moevit.hw.units.streamer import DECIDE_LATENCY, Part, Streamer
from moevit.isa import Stream, encode

BASE = 0x3_4000_0000
COUNT = 1 << 18
SMALL = {"operand_words": 64, "post_words": 12, "norm_words": 9}
TINY = dataclasses.replace(CONFIGS["tiny"], **SMALL)
SHAPES = {
    "tiny": TINY,
    "wide": dataclasses.replace(CONFIGS["wide"], **SMALL),
    "beat_words": dataclasses.replace(TINY, name="beat_words", weight_ports=2),  # a weight word is one beat
}
RING = {"norm": "norm", "post": "post", "weight": "ring"}


class Bench:
    """A streamer with its ports and a memory; collects what is written and frees it at random."""

    def __init__(self, config, *, ring_words=20, seed=0, ready_stall=0.0, release=0.3, **memory):
        self.config, self.ring_words, self.release = config, ring_words, release
        self.rng = random.Random(seed)
        self.ready_stall = ready_stall
        self.streamer = Streamer(config)
        self.ports = [AxiReadPort(config) for _ in range(config.weight_ports)]
        self.memory = AxiMemory(1 << 16, BASE, seed=seed, **memory)
        self.sizes = {
            "norm": config.norm_word_bytes,
            "post": config.post_word_bytes,
            "weight": config.operand_word_bytes,
        }
        self.depths = {"norm": config.norm_words, "post": config.post_words, "weight": ring_words}
        self.written = {name: [] for name in RING}
        self.times = {name: [] for name in RING}
        self.tails = dict.fromkeys(RING, 0)
        self.events = dict.fromkeys(events_layout("stream").members, 0)
        self.working = 0  # cycles in which it was busy
        self.filled = set()  # queues that are not empty
        self.cycle = 0

    def module(self):
        m = Module()
        m.submodules.streamer = self.streamer
        for i, port in enumerate(self.ports):
            m.submodules[f"port{i}"] = port
            wiring.connect(m, self.streamer.o_request[i], port.i_request)
            wiring.connect(m, port.o_data, self.streamer.i_data[i])
        return m

    def words(self, part, offset, count):
        """The ring words of a part, from the memory's bytes."""
        size, ports = self.sizes[part], self.config.weight_ports
        piece = size // ports
        start, slice_bytes = 64 * offset, count * piece
        return [
            int.from_bytes(
                b"".join(
                    self.memory.bytes[start + p * slice_bytes + w * piece :][:piece]
                    for p in range(ports)
                ),
                "little",
            )
            for w in range(count)
        ]

    async def setup(self, ctx):
        ctx.set(self.streamer.image_base, BASE)
        ctx.set(self.streamer.image_bytes, self.memory.size)
        ctx.set(self.streamer.ring_words, self.ring_words)

    async def collect(self, ctx):
        """Background: the operand memory's ready, the rings' contents and tails, and the head counts."""
        dut, heads = self.streamer, dict.fromkeys(RING, 0)
        writes = {"norm": dut.norm, "post": dut.post, "weight": dut.operand}
        while True:
            ctx.set(dut.operand.ready, self.rng.random() >= self.ready_stall)
            for name, ring in RING.items():
                if self.tails[name] < len(self.written[name]) and self.rng.random() < self.release:
                    self.tails[name] += 1
                ctx.set(getattr(dut, f"{ring}_tail"), self.tails[name] % COUNT)
            valid = {
                "norm": dut.norm.en, "post": dut.post.en, "weight": dut.operand.valid & dut.operand.ready,
            }
            sample = ctx.tick().sample(dut.events, dut.operand.mask)
            for name, ring in RING.items():
                head = getattr(dut, f"{ring}_head")
                sample = sample.sample(valid[name], writes[name].addr, writes[name].data, head)
            _, _, events, mask, *rest, busy = await sample.sample(dut.busy)
            self.cycle += 1
            for cause in self.events:
                self.events[cause] += getattr(events, cause)
            assert sum(getattr(events, cause) for cause in self.events) <= 1
            self.working += busy
            assert mask == (1 << self.sizes["weight"]) - 1
            for i, name in enumerate(RING):
                write, addr, word, head = rest[4 * i : 4 * i + 4]
                assert head == heads[name] % COUNT
                if write:
                    assert addr == heads[name] % self.depths[name]
                    assert heads[name] - self.tails[name] < self.depths[name], f"{name} ring overrun"
                    self.written[name].append(word)
                    self.times[name].append(self.cycle)
                    heads[name] += 1

    async def answer(self, ctx):
        """Background: says of the queue of QUEUE_COUNT_LATENCY cycles ago what it held then."""
        answers = [0] * QUEUE_COUNT_LATENCY
        while True:
            ctx.set(self.streamer.queue_filled, answers.pop(0))
            _, _, queue = await ctx.tick().sample(self.streamer.queue)
            answers.append(queue in self.filled)

    def run(self, process, background=(), **options):
        ports = [p for i, port in enumerate(self.ports) for p in [self.memory.read_port(port.axi, seed=i)]]

        async def bench(ctx):
            await self.setup(ctx)
            await process(ctx)

        run(self.module(), bench, background=[self.collect, self.answer, *ports, *background], **options)


def blocks(count, seed):
    rng = random.Random(seed)
    out = [Stream(), Stream(norm_offset=3, norm_words=1), Stream(weight_offset=7, weight_words=50)]
    while len(out) < count:
        sizes = {f"{part}_words": rng.choice([0, rng.randint(1, 15)]) for part in RING}
        out.append(Stream(**sizes, **{f"{part}_offset": rng.randrange(900) for part in RING}))
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stalls", ["none", "memory", "operand", "release"])
def test_words_and_rings(shape, stalls):
    options = {
        "none": {"release": 1.0},
        "memory": {"latency": 30, "jitter": 20, "address_stall": 0.5, "data_stall": 0.5, "release": 1.0},
        "operand": {"ready_stall": 0.7},
        "release": {"release": 0.03, "ready_stall": 0.1},
    }[stalls]
    bench = Bench(SHAPES[shape], seed=len(stalls), **options)
    program = blocks(10, seed=1)
    want = {
        part: [
            word
            for block in program
            for word in bench.words(part, getattr(block, f"{part}_offset"), getattr(block, f"{part}_words"))
        ]
        for part in RING
    }

    async def process(ctx):
        await put(ctx, bench.streamer.i_instr, [int.from_bytes(encode(b), "little") for b in program])
        await ctx.tick().until(~bench.streamer.busy)
        await ctx.tick().repeat(2)
        assert not ctx.get(bench.streamer.fault)

    bench.run(process)
    assert bench.written == want
    # Every cycle of work has one cause, and every beat of the ports is one of them.
    sizes = {f"{part}_words": len(words) for part, words in want.items()}
    assert bench.events["busy"] == bench.streamer.cycles(**sizes)
    assert sum(bench.events.values()) == bench.working
    assert bench.events["start"] > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_full_bus_rate(shape):
    """One beat per port and cycle through a long block, at 60 cycles of memory latency."""
    config = dataclasses.replace(SHAPES[shape], operand_words=1024, norm_words=64, post_words=64)
    bench = Bench(config, ring_words=1000, release=1.0, latency=60)
    block = Stream(norm_words=8, post_offset=40, post_words=20, weight_offset=80, weight_words=400)

    async def process(ctx):
        await put(ctx, bench.streamer.i_instr, [int.from_bytes(encode(block), "little")])
        await ctx.tick().until(~bench.streamer.busy)

    bench.run(process)
    times = [t for part in RING for t in bench.times[part]]
    expected = bench.streamer.cycles(8, 20, 400)
    assert len(times) == 428
    first = bench.streamer.beats[Part.NORM]
    assert times[-1] - times[0] == expected - first
    assert times[-1] <= expected + 60 + 25
    assert bench.words("weight", 80, 400) == bench.written["weight"]


@pytest.mark.parametrize(("block", "latency"), [(Stream(norm_words=1), 5), (Stream(weight_words=1), 9)])
def test_latency(block, latency):
    bench = Bench(TINY)

    async def process(ctx):
        dut = bench.streamer
        await put(ctx, dut.i_instr, [int.from_bytes(encode(block), "little")])
        cycles = 0
        while True:
            _, _, requested, beat = await ctx.tick().sample(dut.o_request[0].valid, dut.i_data[0].valid)
            cycles += 1
            if requested:
                assert cycles == latency
            if beat:  # the first of two
                break
        await ctx.tick().repeat(1 + 2 + 1)  # the second beat, the latency, and for the collector to see it
        assert len(bench.written["norm"] + bench.written["weight"]) == 1

    bench.run(process)


@pytest.mark.parametrize("shape", SHAPES)
def test_waits_for_room_and_uses_all_of_it(shape):
    bench = Bench(SHAPES[shape], ring_words=20, release=0.0)

    async def process(ctx):
        dut = bench.streamer
        await put(ctx, dut.i_instr, [int.from_bytes(encode(Stream(weight_words=50)), "little")])
        await ctx.tick().repeat(200)
        assert len(bench.written["weight"]) == 20
        assert ctx.get(dut.ring_head) == 20
        assert bench.events["ring"] > 100
        for freed in range(1, 5):
            bench.tails["weight"] = freed
            await ctx.tick().repeat(10)
            assert len(bench.written["weight"]) == 20 + freed
        bench.release = 1.0
        await ctx.tick().until(~dut.busy)

    bench.run(process)
    assert bench.written["weight"] == bench.words("weight", 0, 50)


def test_requests_run_ahead_of_the_ring():
    """With a full ring the next block's data is already in the port's FIFO."""
    bench = Bench(TINY, ring_words=4, release=0.0)

    async def process(ctx):
        program = [Stream(weight_words=5), Stream(norm_offset=16, norm_words=2, post_offset=32, post_words=3)]
        await put(ctx, bench.streamer.i_instr, [int.from_bytes(encode(b), "little") for b in program])
        await ctx.tick().repeat(100)
        assert [addr - BASE for addr, _ in bench.memory.reads] == [0, 16 * 64, 32 * 64]
        assert not bench.written["norm"]

    bench.run(process)


@pytest.mark.parametrize("part", RING)
def test_image_range(part):
    """A part that ends at the last byte is read; one that ends beyond it is not, and nothing after it is."""
    config = SHAPES["wide"]
    bench = Bench(config, release=1.0)
    size = bench.sizes[part]
    offset = (bench.memory.size - 4 * size) // 64
    good = Stream(**{f"{part}_offset": offset, f"{part}_words": 4})
    bad = Stream(**{f"{part}_offset": offset, f"{part}_words": 5})
    far = Stream(**{f"{part}_offset": (1 << 32) - 1, f"{part}_words": 1})

    for wrong in (bad, far):
        bench = Bench(config, release=1.0)

        async def process(ctx, bench=bench, wrong=wrong):
            dut = bench.streamer
            await put(ctx, dut.i_instr, [int.from_bytes(encode(b), "little") for b in (good, wrong, good)])
            for _ in range(200):
                await ctx.tick()
            assert ctx.get(dut.fault)

        bench.run(process)
        assert bench.written[part] == bench.words(part, offset, 4)
        assert all(addr + 16 * beats <= BASE + bench.memory.size for addr, beats in bench.memory.reads)
        assert sum(beats for _, beats in bench.memory.reads) == 4 * size // 16


def test_queue_depth():
    bench = Bench(TINY, ring_words=4, release=0.0)

    async def process(ctx):
        dut = bench.streamer
        bench.memory.frozen = True
        ctx.set(dut.i_instr.payload, int.from_bytes(encode(Stream(weight_words=4000)), "little"))
        ctx.set(dut.i_instr.valid, 1)
        taken = 0
        for _ in range(100):
            _, _, ready = await ctx.tick().sample(dut.i_instr.ready)
            taken += ready
        assert taken >= STREAM_QUEUE_DEPTH

    bench.memory.size = 1 << 30
    bench.run(process)


def predicated(count, seed):
    """Predicated blocks, each with a queue of its own and a later ``wait``, among others; and the queues filled."""
    rng = random.Random(seed)
    program, filled, wait = [], set(), 1
    for block in blocks(count, seed):
        program.append(block)
        if rng.random() < 0.7:
            wait += rng.randrange(3)
            values = {"predicated": 1, "queue": len(program) * 3 % 64, "wait": (START + wait) % (1 << 16)}
            program[-1] = dataclasses.replace(block, norm_words=0, **values, speculative=rng.randrange(2))
            if rng.random() < 0.5:
                filled.add(program[-1].queue)
    return program, filled


START = (1 << 16) - 4  #: a retired count that soon wraps


@pytest.mark.parametrize(("pace", "stall"), [(0.02, 0.0), (0.1, 0.9), (1.0, 0.0), (1.0, 0.8)])
def test_predicated(pace, stall):
    """A queue gets its entries in the cycle in which the retired count says so, and no earlier."""
    bench = Bench(TINY, seed=4, latency=10, jitter=10)
    program, filled = predicated(24, seed=5)
    asking = [b for b in program if b.predicated]
    brought, complete_at, settled_at = [], {}, []

    async def retire(ctx):
        rng, retired = random.Random(6), START
        while True:
            ctx.set(bench.streamer.retired, retired % (1 << 16))
            for i, block in enumerate(asking):
                if (retired - block.wait) % (1 << 16) < 1 << 15 and i not in complete_at:
                    complete_at[i] = bench.cycle
                    bench.filled |= {block.queue} & filled
            await ctx.tick()
            retired += rng.random() < pace

    async def settle(ctx):
        bit = bench.streamer.o_brought
        for block in asking:
            brought.extend(await get(ctx, bit, 1, stall=stall, seed=block.queue))
            settled_at.append(bench.cycle)

    async def process(ctx):
        await put(ctx, bench.streamer.i_instr, [int.from_bytes(encode(b), "little") for b in program])
        await ctx.tick().until(~bench.streamer.busy)
        while len(brought) < len(asking):
            await ctx.tick()
        await ctx.tick().repeat(2)

    bench.run(process, background=[retire, settle])
    for i, (block, bit) in enumerate(zip(asking, brought, strict=True)):
        if bit == 0:
            assert block.queue not in filled
            assert settled_at[i] > complete_at[i]
        elif block.queue not in filled:
            assert block.speculative
    assert {0, 1} == set(brought)
    bits = iter(brought)
    taken = [block for block in program if not block.predicated or next(bits)]
    for part in RING:
        assert bench.written[part] == [
            word
            for block in taken
            for word in bench.words(part, getattr(block, f"{part}_offset"), getattr(block, f"{part}_words"))
        ]
    assert (bench.events["queue"] > 80) == (pace < 0.1)
    speculated = sum(bit for block, bit in zip(asking, brought, strict=True) if block.queue not in filled)
    assert speculated or pace == 1


@pytest.mark.parametrize("filled", [False, True])
def test_latency_of_a_predicated_block(filled):
    bench = Bench(TINY)
    bench.filled = {5} if filled else set()
    block = Stream(weight_words=1, predicated=1, queue=5, wait=3)
    delays = {}

    async def process(ctx):
        dut = bench.streamer
        for name, retired in (("decided", 3), ("waits", 2)):
            ctx.set(dut.retired, retired)
            await put(ctx, dut.i_instr, [int.from_bytes(encode(block), "little")])
            if name == "waits":
                await ctx.tick().repeat(100)
                assert not ctx.get(dut.o_brought.valid)
                assert bench.events["queue"] > 90
                ctx.set(dut.retired, 3)
            cycles = 0
            while not (ctx.get(dut.o_brought.valid) and (not filled or ctx.get(dut.o_request[0].valid))):
                if ctx.get(dut.o_brought.valid):
                    delays.setdefault(f"{name} bit", cycles)
                await ctx.tick()
                cycles += 1
            delays.setdefault(f"{name} bit", cycles)
            delays[f"{name} request"] = cycles
            assert await get(ctx, dut.o_brought, 1) == [filled]
            await ctx.tick().until(~dut.busy)

    bench.run(process)
    bit, request = DECIDE_LATENCY + 2, 7 + DECIDE_LATENCY if filled else DECIDE_LATENCY + 2
    # From the instruction on it takes a cycle more, through the register at the end of the queue.
    assert delays == {
        "decided bit": bit + 1, "decided request": request + 1, "waits bit": bit, "waits request": request,
    }  # fmt: skip


def test_untaken_bits_keep_the_next_waiting():
    bench = Bench(TINY)
    block = Stream(weight_words=1, predicated=1)

    async def process(ctx):
        dut = bench.streamer
        ctx.set(dut.i_instr.payload, int.from_bytes(encode(block), "little"))
        ctx.set(dut.i_instr.valid, 1)
        accepted = 0
        for _ in range(300):
            _, _, ready = await ctx.tick().sample(dut.i_instr.ready)
            accepted += ready
        assert accepted == BROUGHT_QUEUE_DEPTH + STREAM_QUEUE_DEPTH
        ctx.set(dut.i_instr.valid, 0)
        assert await get(ctx, dut.o_brought, accepted, stall=0.5) == [0] * accepted
        assert not ctx.get(dut.busy)

    bench.run(process)
    assert not bench.memory.reads
    assert bench.events["queue"] > 150


@pytest.mark.parametrize("count", [1, 8])
def test_skipped_blocks_take_few_cycles(count):
    bench = Bench(TINY)
    program = [Stream(weight_words=1, predicated=1)] * count

    async def process(ctx):
        dut = bench.streamer
        ctx.set(dut.o_brought.ready, 1)
        start = bench.cycle
        await put(ctx, dut.i_instr, [int.from_bytes(encode(b), "little") for b in program])
        await ctx.tick().until(~dut.busy)
        assert bench.cycle - start == 2 + (1 + DECIDE_LATENCY) * count  # 2 through the queue

    bench.run(process)


def test_bad_configuration():
    config = dataclasses.replace(CONFIGS["zcu104"], columns=512, depth=32, axi_data_width=32, weight_ports=1)
    with pytest.raises(ConfigError, match="axi_data_width"):
        Streamer(config)
