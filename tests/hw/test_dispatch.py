"""Dispatch: where instructions go, and which ones are refused, against rules written out in Python."""

import random
from dataclasses import replace

import pytest

from hw.bench import get, put, run
from moevit.config import COMPUTE_QUEUE_DEPTH, CONFIGS
from moevit.errors import EncodingError
from moevit.hw.units.dispatch import CHECK_CYCLES, Dispatch, InstructionCheck
from moevit.hw.units.retirement import Unit
from moevit.isa import Attention, Begin, DmaIn, DmaOut, End, Linear, Stream, decode, encode
from moevit.registers import ErrorCode

RING = 1000

LINEAR = Linear(n_rows=9, src=2, src_stride=16, length=64, tiles=8, dst=100, dst_stride=8, key_tile=8, value_tile=8)
GATE = replace(LINEAR, norm=1, keep=1, route=1, experts=30, top_k=2, token=3)
NARROW_GATE = replace(GATE, tiles=2, key_tile=2, value_tile=2, experts=16)
KEYS = replace(LINEAR, key_tile=4)
GATHER = replace(LINEAR, gather=1, queue=5, activation=1)
SCATTER = replace(LINEAR, scatter=1, queue=5, residual=1, out_type=2)
PREDICATED = Stream(predicated=1, queue=5, post_words=3)
ATTENTION = Attention(
    n_rows=9, src=0, src_stride=8, n_keys=17, heads=3, head_dim=12, key_base=RING, key_stride=12,
    value_base=1200, value_stride=5, score_mult=1, score_shift=2,
    out_mult=3, out_shift=4, dst=0, dst_stride=8,
)  # fmt: skip
DMA_IN = DmaIn(offset=3, segment_bytes=8, dst=1)
DMA_OUT = DmaOut(src=1, words=2, offset=64)


def to_word(instruction):
    return int.from_bytes(encode(instruction), "little")


def verdict(config, word, ring=RING):
    """(illegal, operand range) of an instruction word."""
    try:
        i = decode(word.to_bytes(64, "little"))
    except EncodingError:
        return True, False
    t, c, k = config.rows, config.columns, config.depth
    illegal = isinstance(i, Begin)
    outside = False
    if isinstance(i, DmaOut):
        illegal = bool(i.offset % config.axi_bytes)
    if isinstance(i, Stream):
        illegal = bool(i.predicated and i.norm_words)
    if isinstance(i, Linear):
        expert = bool(i.gather or i.scatter)
        wide_in, wide_out = i.norm != 0, i.out_type == 2
        again = i.n_rows > t or not i.release or expert
        illegal = (
            i.length > config.tile_depth
            or (again and i.tiles * -(-i.length // k) > ring)
            or i.tiles > config.post_words
            or (wide_in and -(-i.length // c) > config.norm_words)
            or (wide_in and bool(i.src % 2 or i.src_stride % 2))
            or (wide_out and bool(i.dst % 2))
            or ((wide_out or bool(i.residual)) and bool(i.dst_stride % 2))
            or (bool(i.residual) and bool(i.res % 2))
            or not i.key_tile <= i.value_tile <= i.tiles
            or (i.key_tile < i.tiles and bool(i.token % t))
            or (i.keep and (i.norm == 0 or expert))
            or (expert and (i.norm != 0 or not i.release or i.key_tile != i.tiles or i.route != 0))
            or (i.scatter and (not i.residual or i.out_type != 2 or i.activation != 0))
            or (i.route and not 1 <= i.top_k <= min(4, i.experts))
            or (i.route and not i.experts <= min(64, i.tiles * c))
            or (i.route and bool(i.residual or i.activation or i.key_tile != i.tiles))
        )
    if isinstance(i, Attention):
        illegal = i.n_keys > config.tile_depth or i.head_dim > config.tile_depth
        channel_tiles = i.heads * -(-i.head_dim // c)
        last_key = i.key_base + (-(-i.n_keys // c) - 1) * i.key_stride + channel_tiles * c // k - 1
        last_value = i.value_base + (channel_tiles - 1) * i.value_stride + -(-i.n_keys // k) - 1
        outside = min(i.key_base, i.value_base) < ring or max(last_key, last_value) >= config.operand_words
    return illegal, outside


def mutations(config, count):
    """Instruction words around valid ones: fields at and around their limits, and random bits."""
    rng = random.Random(7)
    limits = [
        0,
        1,
        2,
        3,
        4,
        8,
        16,
        64,
        config.tile_depth,
        config.post_words,
        config.norm_words * config.columns,
        RING,
    ]
    limits += [config.operand_words]
    linears = (LINEAR, KEYS, GATE, NARROW_GATE, GATHER, SCATTER)
    for instruction in (*linears, ATTENTION, DMA_IN, DMA_OUT, Stream(), PREDICATED, End()):
        word = to_word(instruction)
        yield word
        yield word | 1 << 511
        for field in instruction.fields():
            top = (1 << field.width) - 1
            for value in {*limits, top, field.maximum + 1, *(v + 1 for v in limits)}:
                if value <= top:
                    yield word & ~(top << field.offset) | value << field.offset
    for _ in range(count):
        instruction = rng.choice((*linears, ATTENTION))
        word = to_word(instruction)
        for field in rng.sample(instruction.fields(), 3):
            top = (1 << field.width) - 1
            value = rng.choice([rng.randint(0, top), rng.randint(0, min(top, 40)), rng.choice(limits) & top])
            word = word & ~(top << field.offset) | value << field.offset
        yield word
    for opcode in (*range(10), 255):
        yield opcode
        yield to_word(DMA_OUT) & ~0xFF | opcode
    yield to_word(Begin(digest=config.digest, ring_words=1, count=2))


@pytest.mark.parametrize(
    "config",
    [CONFIGS["tiny"], CONFIGS["wide"], replace(CONFIGS["zcu104"], norm_words=16, post_words=100)],
    ids=lambda c: c.name,
)
def test_verdicts(config):
    """Each word's verdict CHECK_CYCLES later."""
    dut = InstructionCheck(config)
    words = list(mutations(config, 400))
    wanted = [verdict(config, word) for word in words]
    assert 150 < sum(illegal for illegal, _ in wanted) < len(words) / 2
    for instruction in (LINEAR, KEYS, GATE, NARROW_GATE, GATHER, SCATTER, PREDICATED):
        assert verdict(config, to_word(instruction)) == (False, False)
    assert sum(outside and not illegal for illegal, outside in wanted) > 10

    async def bench(ctx):
        ctx.set(dut.ring_words, RING)
        for word, (illegal, outside) in zip(words, wanted, strict=True):
            ctx.set(dut.word, word)
            await ctx.tick().repeat(CHECK_CYCLES)
            assert ctx.get(dut.illegal) == illegal, hex(word)
            if not illegal:
                assert ctx.get(dut.operand_range) == outside, hex(word)

    run(dut, bench, timeout_cycles=CHECK_CYCLES * len(words) + 100)


def fetched(program, number=1):
    for i, instruction in enumerate(program):
        word = instruction if isinstance(instruction, int) else to_word(instruction)
        yield {"word": word, "number": number + i, "last": i + 1 == len(program)}


@pytest.mark.parametrize(("source", "sink"), [(0, 0), (0.9, 0), (0, 0.95), (0.5, 0.5)])
def test_routes_in_order(source, sink):
    dut = Dispatch(CONFIGS["tiny"])
    rng = random.Random(3)
    program = [rng.choice([LINEAR, ATTENTION, DMA_IN, DMA_OUT, Stream()]) for _ in range(40)] + [End()]
    taken = []  # not empty once END has been taken
    kinds = {"stream": Stream, "dma": (DmaIn, DmaOut), "compute": (Linear, Attention)}
    order = [
        (Unit.DMA if isinstance(i, DmaIn | DmaOut) else Unit.COMPUTE, n) for n, i in enumerate(program, 1) if i.retires
    ]

    def receiver(name, kind):
        async def process(ctx):
            port = getattr(dut, f"o_{name}")
            wanted = [to_word(i) for i in program if isinstance(i, kind)]
            assert await get(ctx, port, len(wanted), stall=sink, seed=len(name)) == wanted

        return process

    async def source_process(ctx):
        ctx.set(dut.ring_words, RING)
        await put(ctx, dut.i_instr, fetched(program), stall=source)
        taken.append(True)

    async def order_process(ctx):
        got = [(p.unit, p.number) for p in await get(ctx, dut.o_order, len(order), stall=sink / 2, seed=9)]
        assert got == order
        while not taken:
            await ctx.tick()
        await ctx.tick().repeat(CHECK_CYCLES + 10)
        assert not ctx.get(dut.done)
        ctx.set(dut.all_retired, 1)
        ctx.set(dut.streamer_busy, 1)
        await ctx.tick().repeat(5)
        assert not ctx.get(dut.done)
        ctx.set(dut.streamer_busy, 0)
        await ctx.tick().repeat(2)
        assert (ctx.get(dut.done), ctx.get(dut.fault)) == (1, 0)
        assert ctx.get(dut.compute_number) == max(n for unit, n in order if unit == Unit.COMPUTE)

    run(dut, source_process, order_process, *(receiver(n, k) for n, k in kinds.items()))


def test_latency_and_queue_depth():
    dut = Dispatch(CONFIGS["tiny"])

    async def bench(ctx):
        ctx.set(dut.ring_words, RING)
        ctx.set(dut.o_order.ready, 1)
        ctx.set(dut.i_instr.payload, next(fetched([LINEAR, End()])))
        ctx.set(dut.i_instr.valid, 1)
        await ctx.tick().repeat(10)
        assert ctx.get(dut.o_order.valid)
        assert not ctx.get(dut.o_compute.valid)
        await ctx.tick()
        assert ctx.get(dut.o_compute.valid)
        await ctx.tick().repeat(100)
        accepted = 0
        while ctx.get(dut.o_compute.valid):
            ctx.set(dut.i_instr.valid, 0)
            ctx.set(dut.o_compute.ready, 1)
            await ctx.tick()
            accepted += 1
        assert accepted == COMPUTE_QUEUE_DEPTH + 1  # one more was on its way

    run(dut, bench)


@pytest.mark.parametrize(
    ("program", "number", "code"),
    [
        ([LINEAR, 99, End()], 2, ErrorCode.ILLEGAL_INSTRUCTION),
        ([LINEAR, Begin(digest=0, ring_words=1, count=2), End()], 2, ErrorCode.ILLEGAL_INSTRUCTION),
        ([replace(LINEAR, key_tile=9), End()], 1, ErrorCode.ILLEGAL_INSTRUCTION),
        ([Stream(), End(), LINEAR], 2, ErrorCode.ILLEGAL_INSTRUCTION),
        ([Stream(), DMA_IN], 2, ErrorCode.ILLEGAL_INSTRUCTION),
        ([DMA_IN, replace(ATTENTION, key_base=RING - 1), End()], 2, ErrorCode.OPERAND_RANGE),
    ],
)
def test_stops_at_what_cannot_be_executed(program, number, code):
    dut = Dispatch(CONFIGS["tiny"])
    gone = []

    async def watch(ctx):
        async for _, _, valid, ready, payload in ctx.tick().sample(
            dut.o_order.valid, dut.o_order.ready, dut.o_order.payload
        ):
            if valid and ready:
                gone.append(payload.number)

    async def bench(ctx):
        ctx.set(dut.ring_words, RING)
        ctx.set(dut.all_retired, 1)
        for port in (dut.o_stream, dut.o_dma, dut.o_compute, dut.o_order):
            ctx.set(port.ready, 1)
        await put(ctx, dut.i_instr, list(fetched(program))[:number])
        await ctx.tick().repeat(40)
        assert (ctx.get(dut.fault), ctx.get(dut.fault_code), ctx.get(dut.number)) == (1, code, number)
        assert not ctx.get(dut.done)
        assert not ctx.get(dut.i_instr.ready)
        assert number not in gone

    run(dut, bench, background=[watch])
