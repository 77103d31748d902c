"""The wired machine on tiny programs: it starts, copies, computes a layer, ends, and stops on errors."""

import numpy as np
import pytest

from hw.axi_lite_master import Master
from hw.axi_model import AxiMemory
from hw.bench import run
from hw.norm_model import random_norm
from moevit.config import CONFIGS
from moevit.hw.accelerator import Accelerator
from moevit.hw.units.streamer import Part, word_beats
from moevit.isa import Begin, DmaIn, DmaOut, End, Linear, NormMode, OutputType, Stream, encode_program
from moevit.layout import pack_norm, pack_post, pack_rows, pack_weights, stripe, unpack_rows
from moevit.numerics import fixed
from moevit.numerics.route import RouteOrder, apply_score, route
from moevit.registers import ErrorCode, Status

CONFIG = CONFIGS["tiny"]
BASE = 0x10_0000
IMAGE, INPUT, OUTPUT = 0, 0x4000, 0x6000  # offsets in the memory
INPUT_BYTES, OUTPUT_BYTES = 256, 256
SENTINEL = 0xA5
SMALL_IN = DmaIn(offset=0, segment_bytes=8, dst=0)


def begin(instructions, **values):
    defaults = {"digest": CONFIG.digest, "ring_words": 64, "count": len(instructions) + 2}
    return encode_program([Begin(**(defaults | values)), *instructions, End()])


class Machine:
    """An accelerator and its memory in one simulation."""

    def __init__(self, image):
        self.dut = Accelerator(CONFIG, stall_cycles=300)
        self.memory = AxiMemory(0x8000, base=BASE, jitter=20)
        self.memory.bytes[IMAGE : IMAGE + len(image)] = image
        self.memory.bytes[OUTPUT - 64 : OUTPUT + OUTPUT_BYTES + 64] = bytes([SENTINEL]) * (OUTPUT_BYTES + 128)
        self.image_bytes = len(image)

    @property
    def input(self):
        return bytes(self.memory.bytes[INPUT : INPUT + INPUT_BYTES])

    @property
    def output(self):
        assert set(self.memory.bytes[OUTPUT - 64 : OUTPUT]) == {SENTINEL}
        assert set(self.memory.bytes[OUTPUT + OUTPUT_BYTES :][:64]) == {SENTINEL}
        return bytes(self.memory.bytes[OUTPUT : OUTPUT + OUTPUT_BYTES])

    async def execute(self, master, ctx, program=0):
        """Start, wait for the interrupt, and return STATUS."""
        values = {"IMAGE_LO": BASE + IMAGE, "IMAGE_BYTES": self.image_bytes, "PROGRAM": program}
        values |= {"INPUT_LO": BASE + INPUT, "INPUT_BYTES": INPUT_BYTES}
        values |= {"OUTPUT_LO": BASE + OUTPUT, "OUTPUT_BYTES": OUTPUT_BYTES, "INTERRUPT_ENABLE": 3}
        for name, value in values.items():
            await master.write(name, value)
        await master.write("INTERRUPT_STATUS", 3)
        await master.write("CONTROL", 1)
        await ctx.tick().until(self.dut.irq)
        assert self.memory.outstanding == 0
        return await master.value("STATUS")

    def run(self, test, timeout_cycles=6000):
        async def bench(ctx):
            await test(ctx, Master(ctx, self.dut.s_axil))

        axi = [self.memory.read_port(self.dut.m_axi_dma), self.memory.write_port(self.dut.m_axi_dma)]
        axi += [self.memory.read_port(port, seed=3 + i) for i, port in enumerate(self.dut.m_axi_w)]
        run(self.dut, bench, timeout_cycles=timeout_cycles, background=axi)


def test_empty_program_and_copies():
    """BEGIN and END alone; then DMA_IN and DMA_OUT, twice without a reset between them."""
    copy = [
        DmaIn(offset=16, segment_bytes=100, dst=24),
        DmaOut(wait=1, src=3, words=12, offset=32),
    ]
    machine = Machine(begin([]) + begin(copy))

    async def test(ctx, master):
        assert await machine.execute(master, ctx) == Status.DONE
        assert set(machine.output) == {SENTINEL}
        assert await master.value("RETIRED") == 0
        assert 10 < await master.value("CYCLES") < 200
        for _ in range(2):
            assert await machine.execute(master, ctx, program=128) == Status.DONE
            assert await master.value("RETIRED") == 2
            assert machine.output[32:128] == machine.input[16:112]
            assert set(machine.output[:32] + machine.output[128:]) == {SENTINEL}
            machine.memory.bytes[INPUT : INPUT + INPUT_BYTES] = machine.memory.bytes[:INPUT_BYTES]

    machine.run(test)


def test_a_linear_layer():
    rng = np.random.default_rng(1)
    rows, length, outputs = 6, 20, 16
    c = CONFIG.columns
    weight = rng.integers(-128, 128, (outputs, length))
    bias, mult = rng.integers(-2000, 2000, outputs), rng.integers(1 << 15, 1 << 16, outputs)
    shift = np.full(outputs, 24)
    post = stripe(pack_post(bias, mult, shift, CONFIG), CONFIG.weight_ports)
    weights = stripe(pack_weights(weight, CONFIG), CONFIG.weight_ports)
    words = -(-length // c)
    tiles = outputs // c
    layer = [
        Stream(
            post_offset=16,
            post_words=tiles,
            weight_offset=20,
            weight_words=len(weights) // CONFIG.operand_word_bytes,
        ),
        DmaIn(segments=rows, segment_bytes=length, dst_segment=words * c, dst=0, offset=0),
        Linear(
            wait=1, n_rows=rows, src=0, src_stride=words, length=length, tiles=tiles, dst=100,
            dst_stride=tiles, key_tile=tiles, value_tile=tiles,
        ),
        DmaOut(wait=2, src=100, words=rows * tiles, offset=0),
    ]  # fmt: skip
    image = begin(layer).ljust(1024, b"\0") + post
    image = image.ljust(20 * 64, b"\0") + weights
    machine = Machine(image)

    async def test(ctx, master):
        assert await machine.execute(master, ctx) == Status.DONE
        x = np.frombuffer(machine.input, np.int8)[: rows * length].reshape(rows, length)
        acc = x.astype(np.int64) @ weight.T
        wanted = fixed.saturate(fixed.requantise(acc, bias, mult, shift), 8)
        got = np.frombuffer(machine.output, np.int8)[: rows * outputs].reshape(rows, outputs)
        np.testing.assert_array_equal(got, wanted)
        assert len(np.unique(wanted)) > 20
        assert await master.value("COUNT_MAC_BUSY") == -(-rows // CONFIG.rows) * tiles * (length // CONFIG.depth)
        assert await master.value("COUNT_POST_BUSY") == rows * tiles

    machine.run(test)


class Image:
    """A program's blocks, behind it in the image."""

    def __init__(self, instructions):
        self.start = self.end = 64 * (instructions + 2)
        self.data = b""

    def part(self, name, words):
        """Fields of a STREAM for these words."""
        data = stripe(words, CONFIG.weight_ports)
        block, self.end = self.end // 64, self.end + -(-len(data) // 64) * 64
        self.data = self.data.ljust(64 * block - self.start, b"\0") + data
        return {f"{name}_offset": block, f"{name}_words": len(words)}


class Dense:
    """Weights and scaling of a linear layer."""

    def __init__(self, rng, outputs, length, bias=0, shift=17):
        self.weight = rng.integers(-128, 128, (outputs, length))
        self.bias = rng.integers(-3000, 3000, outputs) + bias
        self.scale = rng.integers(1 << 15, 1 << 16, outputs), np.full(outputs, shift)

    def __call__(self, x):
        return fixed.requantise(x @ self.weight.T, self.bias, *self.scale)

    def stream(self, image, **values):
        parts = image.part("post", pack_post(self.bias, *self.scale, CONFIG))
        return Stream(**parts, **image.part("weight", pack_weights(self.weight, CONFIG)), **values)


TOKENS, CHANNELS, EXPERTS = 8, 16, 6
EMPTY = {0: 1, 3: 0}  # experts that get no token, and whether their STREAMs are speculative


def mixture(allowed=TOKENS):
    """A mixture of experts over the input's rows: its image, and a function from rows to rows."""
    rng = np.random.default_rng(3)
    norm = random_norm(rng, NormMode.LAYERNORM, CHANNELS, signed=True)
    never = np.zeros(CONFIG.columns, np.int64)
    never[list(EMPTY)] = -(1 << 30)
    gate = Dense(rng, CONFIG.columns, CHANNELS, bias=never)
    experts = [(Dense(rng, CHANNELS, CHANNELS, shift=24), Dense(rng, CHANNELS, CHANNELS)) for _ in range(EXPERTS)]
    image = Image(4 + 4 * EXPERTS)
    rows, kept, hidden = 0, 64, 96  # word addresses
    wide, narrow = 2 * CHANNELS // CONFIG.columns, CHANNELS // CONFIG.columns
    constants = norm.constants
    order = RouteOrder.SOFTMAX_TOPK
    program = [
        gate.stream(image, **image.part("norm", pack_norm(norm.gamma, norm.beta, CONFIG))),
        DmaIn(segment_bytes=INPUT_BYTES, dst=rows, offset=0),
        Linear(
            wait=1, n_rows=TOKENS, src=rows, src_stride=wide, length=CHANNELS, norm=norm.mode,
            inverse_mult=constants.inverse_mult, inverse_shift=constants.inverse_shift,
            epsilon=constants.epsilon, norm_shift=constants.output_shift, keep=1, keep_dst=kept, keep_stride=narrow,
            tiles=1, key_tile=1, value_tile=1, dst=0, dst_stride=0, route=order, experts=EXPERTS, top_k=2, clear=1,
        ),
    ]  # fmt: skip
    for expert, layers in enumerate(experts):
        values = {"queue": expert, "predicated": 1, "speculative": EMPTY.get(expert, expert % 2), "wait": 2}
        program += [layer.stream(image, **values) for layer in layers]
        shape = {"n_rows": allowed, "length": CHANNELS, "tiles": narrow, "key_tile": narrow, "value_tile": narrow}
        shape["queue"] = expert
        done = 2 + 2 * expert
        program += [
            Linear(**shape, wait=done, gather=1, src=kept, src_stride=narrow, dst=hidden, dst_stride=narrow),
            Linear(**shape, wait=done + 1, scatter=1, src=hidden, src_stride=narrow, residual=1, res=rows, dst=rows,
                   dst_stride=wide, out_type=OutputType.INT16),
        ]  # fmt: skip
    program.append(DmaOut(wait=2 + 2 * EXPERTS, src=rows, words=TOKENS * wide, offset=0))

    def compute(x):
        normal, out = norm.apply(x), x.astype(np.int64)
        scores = route(gate(normal)[:, :EXPERTS], 2, order)
        assert [e for e in range(EXPERTS) if not scores[:, e].any()] == list(EMPTY)
        for expert, (up, down) in enumerate(experts):
            tokens = scores[:, expert].nonzero()[0]
            added = apply_score(down(fixed.saturate(up(normal[tokens]), 8)), scores[tokens, expert, None])
            out[tokens] = fixed.saturate(out[tokens] + added, 16)
        return out

    return begin(program) + image.data, compute


def test_a_mixture_of_experts():
    """Two experts get no token; the words of one are streamed on suspicion and thrown away."""
    image, compute = mixture()
    machine = Machine(image)
    x = np.random.default_rng(4).integers(-3000, 3000, (TOKENS, CHANNELS))
    machine.memory.bytes[INPUT : INPUT + INPUT_BYTES] = pack_rows(x, CONFIG.columns, 16).tobytes()
    wanted = compute(x)

    async def test(ctx, master):
        for _ in range(2):
            assert await machine.execute(master, ctx) == Status.DONE
            data = np.frombuffer(machine.output, np.uint8).reshape(TOKENS, -1)
            np.testing.assert_array_equal(unpack_rows(data, CHANNELS, CONFIG.columns, 16, True), wanted)
            assert await master.value("RETIRED") == 3 + 2 * EXPERTS
        beats = word_beats(CONFIG)
        tiles = CHANNELS // CONFIG.columns
        streamed = [expert for expert in range(EXPERTS) if EMPTY.get(expert, 1)]
        steps = CHANNELS // CONFIG.depth * beats[Part.WEIGHTS]
        one = tiles * (beats[Part.POST] + steps)
        gate = tiles * beats[Part.NORM] + beats[Part.POST] + steps
        assert await master.value("COUNT_STREAM_BUSY") == gate + 2 * one * len(streamed)
        assert await master.value("COUNT_STREAM_QUEUE") > 0
        assert np.count_nonzero(wanted - x) > x.size // 2

    machine.run(test, timeout_cycles=12000)


@pytest.mark.parametrize("full", [False, True])
def test_queues_that_are_too_long(full):
    """An expert that may have one token only; and more tokens than all queues hold."""
    image, _ = mixture(allowed=1)
    number = 10  # the first LINEAR of expert 1
    if full:
        gate = Dense(np.random.default_rng(5), CONFIG.columns, 8)
        blocks, number = Image(2), 2
        stream = gate.stream(blocks)
        overflow = Linear(
            n_rows=CONFIG.queue_entries // 4 + 1, src=0, src_stride=0, length=8, tiles=1, key_tile=1, value_tile=1,
            dst=0, dst_stride=0, route=RouteOrder.TOPK_SOFTMAX, experts=8, top_k=4, clear=1,
        )  # fmt: skip
        image = begin([stream, overflow]) + blocks.data
    machine = Machine(image)

    async def test(ctx, master):
        assert await machine.execute(master, ctx) == Status.ERROR
        assert await master.value("ERROR") == ErrorCode.QUEUE_RANGE
        assert await master.value("ERROR_INSTRUCTION") == number

    machine.run(test, timeout_cycles=12000)


@pytest.mark.parametrize(
    ("instructions", "number", "code"),
    [
        ([DmaIn(offset=200, segment_bytes=57, dst=0)], 1, ErrorCode.INPUT_RANGE),
        ([SMALL_IN, DmaOut(src=0, words=8, offset=208)], 2, ErrorCode.OUTPUT_RANGE),
        ([DmaOut(src=CONFIG.activation_words - 1, words=2, offset=0)], 1, ErrorCode.ACTIVATION_RANGE),
        ([DmaOut(src=0, words=2, offset=8)], 1, ErrorCode.ILLEGAL_INSTRUCTION),
        ([SMALL_IN, DmaOut(wait=7, src=0, words=1, offset=0)], 2, ErrorCode.STALLED),
    ],
)
def test_stops_on_an_error_and_starts_again(instructions, number, code):
    good = [DmaIn(offset=0, segment_bytes=256, dst=0), DmaOut(wait=1, src=0, words=32, offset=0)]
    bad = begin(instructions)
    machine = Machine(bad + begin(good))

    async def test(ctx, master):
        assert await machine.execute(master, ctx) == Status.ERROR
        assert await master.value("ERROR") == code
        assert await master.value("ERROR_INSTRUCTION") == number
        assert set(machine.output) == {SENTINEL}
        await master.write("CONTROL", 2)
        while await master.value("STATUS"):
            pass
        assert await machine.execute(master, ctx, program=len(bad)) == Status.DONE
        assert machine.output == machine.input

    machine.run(test)


def test_a_bus_error_is_reported():
    machine = Machine(begin([DmaIn(offset=0, segment_bytes=256, dst=0)]))
    machine.memory.read_errors.add(BASE + INPUT + 64)

    async def test(ctx, master):
        assert await machine.execute(master, ctx) == Status.ERROR
        assert await master.value("ERROR") == ErrorCode.BUS_DMA_READ
        assert await master.value("ERROR_INSTRUCTION") == 1

    machine.run(test)
