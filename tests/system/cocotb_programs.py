"""Programs from start to interrupt: the output is the isa simulator's, whatever memory and host do."""

import functools
import os

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiResp

from moevit.hw.units.axi_read import BURST_BEATS
from moevit.registers import Status
from system.bench import CONFIG, IRQ_DONE, RUN_CYCLES, START, TB, Job, copy_job, job, mixture_job, random_job

SEEDS = range(int(os.environ.get("MOEVIT_SYSTEM_SEEDS", "4")))


@functools.cache
def fixture_job() -> Job:
    """A compiled model and one real input."""
    from compile_helpers import SMALL, compiled, float_inputs, quantised_inputs

    program = compiled(SMALL, CONFIG.name).program
    task = program.tasks[0]
    inputs = np.zeros(task.input_bytes, np.uint8)
    values = quantised_inputs(task, float_inputs(SMALL))
    for i in task.inputs:
        data = values[i.name][0].reshape(-1)
        inputs[i.offset : i.offset + data.size] = data
    return job(program.image, task.entry, program.instructions(task), inputs, task.output_bytes)


@cocotb.test()
@cocotb.parametrize(seed=SEEDS)
async def random_programs(dut, seed):
    """Each under two draws of latencies and back-pressure, the second without a reset in between."""
    tb = await TB.create(dut, f"random {seed}")
    await tb.run(random_job(seed, mixtures=seed % 2 == 1))
    tb.resume()
    await tb.run()


@cocotb.test()
async def copies(dut):
    """DMA alone: long bursts, several at once in both directions, and back-pressure in the middle of them."""
    tb = await TB.create(dut, "copies", stalls=False)
    await tb.run(copy_job(0))
    dma = tb.monitor.ports["dma"]
    assert dma.longest == BURST_BEATS
    assert dma.most_reads > 1
    for seed in range(1, 7):
        tb.resume(stalls=True)
        await tb.run(copy_job(seed))


@cocotb.test()
async def one_after_the_other(dut):
    """Different programs without a reset in between, on a memory that never waits: nothing is left behind."""
    tb = await TB.create(dut, "sequence", stalls=False)
    for seed in range(100, 106):
        await tb.run(random_job(seed, 6, mixtures=True))


@cocotb.test()
async def compiled_model(dut):
    """Fast once, to see that bursts overlap, and then with every channel held up."""
    tb = await TB.create(dut, "model", stalls=False)
    await tb.run(fixture_job())
    for port in tb.monitor.ports.values():
        assert port.longest == BURST_BEATS, port
        assert port.most_reads > 1, port
    for channel in tb.monitor.channels:
        channel.waits = 0
    while unheld := [c.name for c in tb.monitor.channels if c.stable and not c.waits]:
        assert tb.monitor.cycle < RUN_CYCLES, unheld
        tb.resume(stalls=True)
        await tb.run()


@cocotb.test()
async def mixture(dut):
    """Experts on suspicion, again and again on a memory that answers as it likes."""
    tb = await TB.create(dut, "mixture", stalls=False)
    await tb.run(mixture_job())
    for _ in range(8):
        tb.resume(stalls=True)
        await tb.run()


@cocotb.test()
async def same_cycles(dut):
    """The same program on a memory of the same timing takes the same cycles, whatever ran before."""
    tb = await TB.create(dut, "cycles", stalls=False)
    taken = []
    for other in (0, 1, 2):
        await tb.run(random_job(other, 3))
        await tb.load(random_job(4, 3))
        for name in ("IMAGE", "INPUT", "OUTPUT"):  # bursts depend on where the buffers lie
            buffer = tb.memory.buffers[name.lower()]
            buffer.base = 0x1000 * (1 + ("IMAGE", "INPUT", "OUTPUT").index(name) * 16)
            await tb.write(f"{name}_LO", buffer.base)
            await tb.write(f"{name}_HI", 0)
        await tb.run()
        taken.append((await tb.read("CYCLES"), await tb.counters()))
    assert taken[0] == taken[1] == taken[2]


@cocotb.test()
async def without_interrupt(dut):
    """Polled: the line stays low, the status bits come all the same; enabling it later raises it."""
    tb = await TB.create(dut, "polled")
    await tb.load(random_job(1, 3), INTERRUPT_ENABLE=0)
    await tb.start()
    assert await tb.status() & Status.BUSY
    while await tb.status() & Status.BUSY:
        assert not dut.irq.value
        assert tb.monitor.cycle < RUN_CYCLES, await tb.report()
    assert await tb.status() == Status.DONE
    assert not dut.irq.value
    await tb.write("INTERRUPT_ENABLE", 2)  # errors only
    await ClockCycles(dut.clk, 5)
    assert not dut.irq.value
    await tb.write("INTERRUPT_ENABLE", IRQ_DONE)
    await ClockCycles(dut.clk, 5)
    assert dut.irq.value
    await tb.finish()
    await tb.run()


@cocotb.test()
async def start_while_busy(dut):
    """Is refused and disturbs nothing."""
    tb = await TB.create(dut, "busy")
    await tb.load(random_job(5))
    await tb.start()
    for _ in range(5):
        await tb.write("CONTROL", START, AxiResp.SLVERR)
        await ClockCycles(dut.clk, 50)
    assert await tb.status() & Status.BUSY, "the program was over before the last start: choose a longer one"
    assert not await tb.status() & Status.DONE
    await tb.wait_irq()
    await tb.finish()
