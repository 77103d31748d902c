"""The wired machine on tiny programs: it starts, copies, computes a layer, ends, and stops on errors."""

import numpy as np
import pytest

from hw.axi_lite_master import Master
from hw.axi_model import AxiMemory
from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.accelerator import Accelerator
from moevit.isa import Begin, DmaIn, DmaOut, End, Linear, Stream, encode_program
from moevit.layout import pack_post, pack_weights, stripe
from moevit.numerics import fixed
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
