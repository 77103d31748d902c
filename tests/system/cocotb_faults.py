"""Programs that must not run: each stops with its code, at its instruction, and writes nothing elsewhere."""

import dataclasses

import cocotb
import numpy as np
from cocotbext.axi import AxiResp

from moevit.config import CONFIGS
from moevit.isa import (
    INSTRUCTION_BYTES,
    ISA_VERSION,
    Attention,
    DmaIn,
    DmaOut,
    End,
    Instruction,
    Linear,
    Stream,
    encode,
)
from moevit.isa.formats import DmaSource
from moevit.registers import ErrorCode
from moevit.sim.isa import IsaSimulator
from system.bench import CONFIG, TB, Job, full_job, mixture_job, random_job

SMALL = random_job(4, 3)
WORDS, BYTES = CONFIG.activation_words, CONFIG.activation_words * CONFIG.columns


def find(job: Job, kind: type, **fields: int) -> int:
    """Number of the first instruction of a kind, with these field values."""
    for number, instruction in enumerate(job.instructions):
        if isinstance(instruction, kind) and all(getattr(instruction, n) == v for n, v in fields.items()):
            return number
    raise AssertionError(f"the program has no {kind.mnemonic()} with {fields}")


def poke(instruction: Instruction, **fields: int) -> bytes:
    """The encoding with these fields, in or out of range."""
    word = int.from_bytes(encode(instruction), "little")
    for field in instruction.fields():
        if field.name in fields:
            mask = (1 << field.width) - 1
            assert fields[field.name] <= mask
            word = word & ~(mask << field.offset) | fields[field.name] << field.offset
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def patch(job: Job, number: int, data: bytes) -> Job:
    """The job with other bytes from an instruction on."""
    at = job.entry + number * INSTRUCTION_BYTES
    return job.but(image=job.image[:at] + data + job.image[at + len(data) :])


def changed(job: Job, number: int, **fields: int) -> Job:
    return patch(job, number, poke(job.instructions[number], **fields))


async def check(
    tb: TB, job: Job, code: ErrorCode, number: int | range, recovery: Job, **registers: int
) -> None:
    """Load and run it into its error."""
    await tb.load(job, **registers)
    got = await tb.run_to_error(code)
    numbers = number if isinstance(number, range) else [number]
    assert got in numbers, f"instruction {got}, not {number}"
    tb.resume()
    await tb.recover(recovery)


async def sweep(dut, name: str, cases: dict, *, stalls: bool = True, recovery: Job = SMALL) -> None:
    """Cases of (job, code, number or range[, registers]), a soft reset and a correct run after each."""
    tb = await TB.create(dut, name, stalls=stalls)
    for case, (job, code, number, *registers) in cases.items():
        try:
            await check(tb, job, code, number, recovery, **(registers[0] if registers else {}))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


@cocotb.test()
async def begin(dut):
    job = full_job()
    bad, wrong, image = ErrorCode.ILLEGAL_INSTRUCTION, ErrorCode.WRONG_CONFIGURATION, ErrorCode.IMAGE_RANGE
    other = next(c for c in CONFIGS.values() if c.digest != CONFIG.digest)
    size = len(job.image)
    after = job.entry + INSTRUCTION_BYTES
    await sweep(dut, "begin", {
        "no BEGIN": (job.but(entry=after), bad, 0),
        "zeros": (patch(job, 0, bytes(INSTRUCTION_BYTES)), bad, 0),
        "magic": (changed(job, 0, magic=0x4D4F4556), bad, 0),
        "version": (changed(job, 0, version=ISA_VERSION + 1), wrong, 0),
        "digest": (changed(job, 0, digest=other.digest), wrong, 0),
        "one bit of the digest": (changed(job, 0, digest=CONFIG.digest ^ 1 << 63), wrong, 0),
        "no ring": (changed(job, 0, ring_words=0), bad, 0),
        "ring larger than memory": (changed(job, 0, ring_words=CONFIG.operand_words + 1), bad, 0),
        "count": (changed(job, 0, count=1), bad, 0),
        "program at the image's end": (job.but(entry=-(-size // 64) * 64), image, 0),
        "program far beyond": (job.but(entry=0xFFFF_FFC0), image, 0),
        "program longer than the image": (changed(job, 0, count=(1 << 24) - 1), image, 0),
        "image cut before END": (job, image, 0, {"IMAGE_BYTES": size - 1}),
        "image cut in BEGIN": (job, image, 0, {"IMAGE_BYTES": job.entry + 63}),
        "no image": (job, image, 0, {"IMAGE_BYTES": 0}),
    })  # fmt: skip


@cocotb.test()
async def illegal(dut):
    """Opcodes, fields, order."""
    job = full_job()
    end = len(job.instructions) - 1
    linear, attention, stream = find(job, Linear), find(job, Attention), find(job, Stream)
    copy_in, copy_out = find(job, DmaIn), find(job, DmaOut)
    # Only where there are K or V must a token be a multiple of T.
    keys = next(n for n, i in enumerate(job.instructions) if isinstance(i, Linear) and i.key_tile < i.tiles)
    cases: dict[str, tuple[Job, int]] = {
        "opcode 0": (patch(job, copy_in, b"\0"), copy_in),
        "opcode 8": (patch(job, linear, b"\x08"), linear),
        "opcode 255": (patch(job, end, b"\xff"), end),
        "BEGIN again": (patch(job, linear, encode(job.instructions[0])), linear),
        "END early": (patch(job, linear, encode(End())), linear),
        "no END": (patch(job, end, encode(job.instructions[copy_out])), end),
        "bits beyond END's fields": (patch(job, end, encode(End())[:40] + b"\1" + bytes(23)), end),
        "bits beyond STREAM's fields": (
            patch(job, stream, encode(job.instructions[stream])[:63] + b"\x80"),
            stream,
        ),
    }
    fields = [
        (linear, {"n_rows": 0}), (linear, {"length": 0}), (linear, {"tiles": 0}), (linear, {"norm": 3}),
        (linear, {"out_type": 3}), (linear, {"length": CONFIG.tile_depth + 1}), (keys, {"token": 1}),
        (linear, {"key_tile": 1000}), (linear, {"tiles": 900, "key_tile": 900, "value_tile": 900}),
        (attention, {"n_rows": 0}), (attention, {"n_keys": 0}), (attention, {"heads": 0}),
        (attention, {"head_dim": 0}), (attention, {"n_keys": CONFIG.tile_depth + 1}),
        (copy_in, {"count0": 0}), (copy_in, {"count1": 0}), (copy_in, {"segments": 0}),
        (copy_in, {"segment_bytes": 0}), (copy_out, {"words": 0}), (copy_out, {"offset": 4}),
    ]  # fmt: skip
    for number, change in fields:
        name = f"{job.instructions[number].mnemonic()} {change}"
        cases[name] = (changed(job, number, **change), number)
    await sweep(dut, "illegal", {
        name: (bad, ErrorCode.ILLEGAL_INSTRUCTION, number) for name, (bad, number) in cases.items()
    })  # fmt: skip


@cocotb.test()
async def dram_ranges(dut):
    """Buffers that are too small, and offsets beyond them."""
    job = full_job()
    count = len(job.instructions)
    from_input, from_image = (
        find(job, DmaIn, source=DmaSource.INPUT),
        find(job, DmaIn, source=DmaSource.IMAGE),
    )
    stream, out = find(job, Stream), find(job, DmaOut)
    last_out = max(n for n, i in enumerate(job.instructions) if isinstance(i, DmaOut))
    out_end = job.instructions[last_out].offset + job.instructions[last_out].words * CONFIG.columns
    inputs, outputs, image = ErrorCode.INPUT_RANGE, ErrorCode.OUTPUT_RANGE, ErrorCode.IMAGE_RANGE
    streams = range(stream, count + 1)
    far = 0xFFFF_FFC0
    await sweep(dut, "dram", {
        "no input": (job, inputs, from_input, {"INPUT_BYTES": 0}),
        "input offset": (changed(job, from_input, offset=len(job.inputs)), inputs, from_input),
        "input offset far": (changed(job, from_input, offset=far), inputs, from_input),
        "input stride": (changed(job, from_input, count0=2, src_stride0=(1 << 28) - 1), inputs, from_input),
        "no output": (job, outputs, out, {"OUTPUT_BYTES": 0}),
        "output a byte short": (job, outputs, last_out, {"OUTPUT_BYTES": out_end - 1}),
        "output offset": (changed(job, out, offset=-(-job.output_bytes // 64) * 64), outputs, out),
        "output offset far": (changed(job, out, offset=far), outputs, out),
        "image offset": (changed(job, from_image, offset=len(job.image) - 1), image, from_image),
        "image offset far": (changed(job, from_image, offset=far), image, from_image),
        "weights": (changed(job, stream, weight_offset=len(job.image) // 64 + 1), image, streams),
        "weights far": (changed(job, stream, weight_offset=0xFFFF_FFFF), image, streams),
        "weights many": (changed(job, stream, weight_words=(1 << 17) - 1), image, streams),
        "post": (changed(job, stream, post_offset=0x0400_0000), image, streams),
        "norm": (changed(job, stream, norm_offset=0xFFFF_FFFF, norm_words=1), image, streams),
    })  # fmt: skip


@cocotb.test()
async def activation_range(dut):
    """Reads and writes of every unit beyond the activation memory."""
    job = full_job()
    code = ErrorCode.ACTIVATION_RANGE
    copy_in, copy_out, attention = find(job, DmaIn), find(job, DmaOut), find(job, Attention)
    linear = next(n for n, i in enumerate(job.instructions) if isinstance(i, Linear) and i.key_tile > 0)
    changes = [
        (copy_in, {"dst": BYTES - 1}), (copy_in, {"dst": BYTES}), (copy_in, {"dst": (1 << 24) - 1}),
        (copy_in, {"count1": 4095, "dst_stride1": (1 << 24) - 1, "src_stride1": 0}),
        (copy_out, {"src": WORDS}), (copy_out, {"src": WORDS - 1, "words": 2}),
        (copy_out, {"src": (1 << 18) - 1}),
        (linear, {"src": (1 << 18) - 2}), (linear, {"dst": (1 << 18) - 2}),
        (attention, {"src": (1 << 18) - 1}), (attention, {"dst": (1 << 18) - 1}),
    ]  # fmt: skip
    cases = {}
    for number, change in changes:
        cases[f"{job.instructions[number].mnemonic()} {change}"] = (
            changed(job, number, **change),
            code,
            number,
        )
    await sweep(dut, "activation", cases)


@cocotb.test()
async def operand_range(dut):
    """K and V into the weight ring, or beyond the memory, written by LINEAR or read by ATTENTION."""
    job = full_job()
    ring = job.instructions[0].ring_words
    attention = find(job, Attention)
    linear = next(n for n, i in enumerate(job.instructions) if isinstance(i, Linear) and i.key_tile < i.tiles)
    cases = {}
    for number in (linear, attention):
        for field in ("key_base", "value_base"):
            for base in (0, ring - 1, CONFIG.operand_words, CONFIG.operand_words - 1, (1 << 16) - 1):
                bad = changed(job, number, **{field: base})
                name = f"{job.instructions[number].mnemonic()} {field}={base}"
                cases[name] = (bad, ErrorCode.OPERAND_RANGE, number)
    await sweep(dut, "operand", cases)


def gate_and_expert(job: Job) -> tuple[int, int, int]:
    """Numbers of the gate, and of the gather and the scatter of the expert that has most tokens."""
    simulator = IsaSimulator(CONFIG, job.image, list(job.instructions), job.output_bytes)
    ((gate, lengths),) = simulator.run(np.frombuffer(job.inputs, np.uint8)[None]).lengths.items()
    busiest = int(lengths[0].argmax())
    return gate, find(job, Linear, gather=1, queue=busiest), find(job, Linear, scatter=1, queue=busiest)


@cocotb.test()
async def illegal_experts(dut):
    """Gates and experts that are none."""
    job = mixture_job()
    gate, gather, scatter = gate_and_expert(job)
    fields = [
        (gate, {"route": 3}), (gate, {"experts": 0}), (gate, {"experts": 65}), (gate, {"experts": CONFIG.columns + 1}),
        (gate, {"top_k": 0}), (gate, {"top_k": 5}), (gate, {"experts": 1}), (gate, {"residual": 1}),
        (gate, {"activation": 1}), (gate, {"key_tile": 0}), (gate, {"gather": 1}), (gate, {"norm": 0}),
        (gather, {"norm": 1}), (gather, {"release": 0}), (gather, {"key_tile": 0}), (gather, {"keep": 1}),
        (scatter, {"residual": 0}), (scatter, {"out_type": 0}), (scatter, {"activation": 2}), (scatter, {"dst": 1}),
    ]  # fmt: skip
    await sweep(dut, "illegal experts", {
        f"{number} {change}": (changed(job, number, **change), ErrorCode.ILLEGAL_INSTRUCTION, number)
        for number, change in fields
    }, recovery=job)  # fmt: skip


@cocotb.test()
async def queues(dut):
    """More tokens than an instruction allows, or than there is room for; rows of tokens outside the memory."""
    job = mixture_job()
    gate, gather, scatter = gate_and_expert(job)
    full = ErrorCode.QUEUE_RANGE
    outside = ErrorCode.ACTIVATION_RANGE
    end = len(job.instructions)
    many = CONFIG.queue_entries // 4 + 10
    assert (many + 20) * job.instructions[gate].keep_stride < WORDS
    last = (1 << 18) - 2
    await sweep(dut, "queues", {
        "too long": (changed(job, gather, n_rows=1), full, gather),
        "full": (changed(job, gate, n_rows=many, top_k=4, src_stride=0, src=0, keep_dst=0), full, range(gate + 1)),
        "gathered": (changed(job, gather, src=last), outside, gather),
        "scattered": (changed(job, scatter, res=last, dst=last), outside, range(gate, end)),
        "kept": (changed(job, gate, keep_dst=last), outside, range(gate, end)),
    }, recovery=job)  # fmt: skip


@cocotb.test()
async def never_complete(dut):
    """A predicated STREAM, or an expert, that waits for more instructions than there are."""
    job = mixture_job()
    _, gather, _ = gate_and_expert(job)
    stream = find(job, Stream, predicated=1)
    cases = {
        "stream": changed(job, stream, speculative=0, wait=1000),
        "linear": changed(job, gather, wait=1000),
    }
    await sweep(dut, "never complete", {
        name: (bad, ErrorCode.STALLED, range(1, len(job.instructions))) for name, bad in cases.items()
    }, stalls=False, recovery=job)  # fmt: skip


@cocotb.test()
async def stalled(dut):
    """A LINEAR whose weights nobody streams."""
    job = full_job()
    stream = find(job, Stream)
    first = job.instructions[stream]
    less = patch(job, stream, encode(dataclasses.replace(first, weight_words=0)))
    await sweep(
        dut,
        "stalled",
        {"no weights": (less, ErrorCode.STALLED, range(1, len(job.instructions)))},
        stalls=False,
    )


@cocotb.test()
async def unaligned_registers(dut):
    """Addresses that the machine could not use are refused, and leave what was there."""
    tb = await TB.create(dut, "unaligned", stalls=False)
    await tb.load(SMALL)
    for name, value in (
        ("PROGRAM", 32),
        ("IMAGE_LO", 16),
        ("INPUT_LO", 1),
        ("OUTPUT_LO", CONFIG.axi_bytes - 1),
    ):
        await tb.write(name, value, AxiResp.SLVERR)
    await tb.start()
    await tb.wait_irq()
    await tb.finish()
