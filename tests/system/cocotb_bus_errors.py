"""SLVERR and DECERR on every port: the code, the instruction, a quiet bus, and a correct run afterwards."""

import cocotb
from cocotbext.axi import AxiResp

from moevit.isa import INSTRUCTION_BYTES, DmaIn, DmaOut, Stream
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.registers import ErrorCode
from system.bench import CONFIG, TB, Job, copy_job, full_job, random_job
from system.memory import Fault

RESPONSES = [AxiResp.SLVERR, AxiResp.DECERR]
SMALL = random_job(4, 3)  # what runs after each error


def numbers(job: Job, kind: type, **fields: int) -> list[int]:
    """Of the instructions of a kind, with these field values."""
    return [
        n for n, i in enumerate(job.instructions)
        if isinstance(i, kind) and all(getattr(i, name) == value for name, value in fields.items())
    ]  # fmt: skip


async def check(tb: TB, fault: Fault, code: ErrorCode) -> int:
    tb.memory.faults.append(fault)
    number = await tb.run_to_error(code, fault)
    assert await tb.read("RETIRED") < sum(i.retires for i in tb.job.instructions)
    tb.resume()
    await tb.recover(SMALL)
    return number


@cocotb.test()
@cocotb.parametrize(resp=RESPONSES, stalls=[False, True])
async def fetch(dut, resp, stalls):
    """An instruction, from BEGIN to END, that cannot be read; named is what was fetched before."""
    tb = await TB.create(dut, f"fetch {resp} {stalls}", stalls=stalls)
    job = full_job()
    for number in (0, 1, tb.rng.randrange(2, len(job.instructions) - 1), len(job.instructions) - 1):
        await tb.load(job)
        first = tb.memory.buffers["image"].base + job.entry + number * INSTRUCTION_BYTES
        first += tb.rng.randrange(INSTRUCTION_BYTES)
        fault = Fault("dma", False, first, first + 1, resp)
        assert await check(tb, fault, ErrorCode.BUS_FETCH) <= number


@cocotb.test()
@cocotb.parametrize(port=range(CONFIG.weight_ports), resp=RESPONSES, stalls=[False, True])
async def weights(dut, port, resp, stalls):
    """A word of a weight block, on each port."""
    tb = await TB.create(dut, f"weights {port} {resp} {stalls}", stalls=stalls)
    job = full_job()
    sizes = {
        "norm": CONFIG.norm_word_bytes,
        "post": CONFIG.post_word_bytes,
        "weight": CONFIG.operand_word_bytes,
    }
    for number in tb.rng.sample(numbers(job, Stream), 2):
        stream = job.instructions[number]
        part = tb.rng.choice([p for p in sizes if getattr(stream, f"{p}_words")])
        await tb.load(job)
        slice_bytes = getattr(stream, f"{part}_words") * sizes[part] // CONFIG.weight_ports
        first = tb.memory.buffers["image"].base + getattr(stream, f"{part}_offset") * BLOCK_BYTES
        first += port * slice_bytes + tb.rng.randrange(slice_bytes)
        fault = Fault(f"w{port}", False, first, first + 1, resp)
        assert number <= await check(tb, fault, ErrorCode.BUS_STREAM) <= len(job.instructions)


@cocotb.test()
@cocotb.parametrize(resp=RESPONSES, stalls=[False, True])
async def dma_read(dut, resp, stalls):
    """The input buffer, a tensor in the image, and the middle of a long copy."""
    tb = await TB.create(dut, f"dma read {resp} {stalls}", stalls=stalls)
    job = full_job()
    for source, name in ((DmaSource.INPUT, "input"), (DmaSource.IMAGE, "image")):
        copies = numbers(job, DmaIn, source=source)
        assert copies, f"the program has no DMA_IN of the {name}"
        for number in {copies[0], copies[-1]}:
            copy = job.instructions[number]
            await tb.load(job)
            first = tb.memory.buffers[name].base + copy.offset + tb.rng.randrange(copy.segments * copy.segment_bytes)
            fault = Fault("dma", False, first, first + 1, resp)
            assert await check(tb, fault, ErrorCode.BUS_DMA_READ) == number

    job = copy_job(0)
    await tb.load(job)
    first = tb.memory.buffers["input"].base + len(job.inputs) // 2
    assert await check(tb, Fault("dma", False, first, first + 1, resp), ErrorCode.BUS_DMA_READ) == 1


@cocotb.test()
@cocotb.parametrize(resp=RESPONSES, stalls=[False, True])
async def dma_write(dut, resp, stalls):
    """A row, the middle of a long copy, and its last word."""
    tb = await TB.create(dut, f"dma write {resp} {stalls}", stalls=stalls)
    for long, offset in ((copy_job(0), 1600), (copy_job(1), copy_job(1).output_bytes - 1)):
        await tb.load(long)
        first = tb.memory.buffers["output"].base + offset
        number = 2 if offset < long.instructions[3].offset else 3
        assert await check(tb, Fault("dma", True, first, first + 1, resp), ErrorCode.BUS_DMA_WRITE) == number
    job = full_job()
    for number in numbers(job, DmaOut):
        copy = job.instructions[number]
        await tb.load(job)
        first = tb.memory.buffers["output"].base + copy.offset + tb.rng.randrange(copy.words * CONFIG.columns)
        fault = Fault("dma", True, first, first + 1, resp)
        assert await check(tb, fault, ErrorCode.BUS_DMA_WRITE) == number


@cocotb.test()
async def several_at_once(dut):
    """Every port fails from the start on: one error is reported, all outstanding answers are awaited."""
    tb = await TB.create(dut, "several")
    job = full_job()
    await tb.load(job)
    image, inputs = tb.memory.buffers["image"], tb.memory.buffers["input"]
    everything, data = (image.base, image.base + image.size), (image.base, image.base + job.entry)
    ports = [f"w{i}" for i in range(CONFIG.weight_ports)]
    tb.memory.faults += [Fault(port, False, *everything, AxiResp.SLVERR) for port in ports]
    tb.memory.faults.append(Fault("dma", False, *data, AxiResp.DECERR))
    tb.memory.faults.append(Fault("dma", False, inputs.base, inputs.base + inputs.size, AxiResp.SLVERR))
    await tb.start()
    await tb.wait_irq()
    assert await tb.read("ERROR") in (ErrorCode.BUS_STREAM, ErrorCode.BUS_DMA_READ)
    assert tb.monitor.outstanding() == 0
    tb.check_violations()
    await tb.recover(job)
