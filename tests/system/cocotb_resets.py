"""Soft resets at any moment, with transfers outstanding, and a correct run after each."""

import cocotb
from cocotb.triggers import ClockCycles

from moevit.registers import ErrorCode, Status
from system.bench import SOFT_RESET, STOP_CYCLES, TB, copy_job, mixture_job, random_job


@cocotb.test()
async def in_the_middle_of_runs(dut):
    """Reset after a random time, then at once another program."""
    tb = await TB.create(dut, "middle")
    for seed in range(8):
        await tb.load(random_job(seed))
        await tb.start()
        await ClockCycles(dut.clk, tb.rng.choice([1, 2, 5, 20, 100, 300, 700, 1500]))
        await tb.soft_reset()
        tb.check_violations()
        tb.resume()
    await tb.run(random_job(4, 3))


@cocotb.test()
async def in_the_middle_of_a_mixture(dut):
    """Queues, their walks, credits and bits of predicated STREAMs begin anew: the same program, right away."""
    tb = await TB.create(dut, "mixture", stalls=False)
    await tb.run(mixture_job())
    length = await tb.read("CYCLES")
    for part in range(1, 24):
        await tb.start()
        await ClockCycles(dut.clk, length * part // 24 + tb.rng.randrange(length // 24))
        await tb.soft_reset()
        tb.check_violations()
        tb.resume(stalls=part % 3 == 0)
        await tb.run()
        tb.resume(stalls=False)


@cocotb.test()
async def with_transfers_outstanding(dut):
    """DRAINING shows until the last answer has come; no new burst is raised meanwhile."""
    tb = await TB.create(dut, "outstanding", stalls=False)
    held = set()
    for seed, cycles in ((0, 60), (1, 120), (4, 200), (4, 300), (6, 250), (7, 400)):
        await tb.load(random_job(seed))
        await tb.start()
        await ClockCycles(dut.clk, cycles)
        tb.freeze()
        await ClockCycles(dut.clk, 20)  # now whatever is raised waits
        held |= {p.name for p in tb.monitor.ports.values() if p.outstanding_reads or p.outstanding_writes}
        await tb.write("CONTROL", SOFT_RESET)
        begun = tb.monitor.cycle
        await ClockCycles(dut.clk, 50)
        waiting = tb.monitor.outstanding() or tb.monitor.waiting()
        status = await tb.status()
        assert status == (Status.BUSY | Status.DRAINING if waiting else Status(0)), status
        tb.resume()
        assert await tb.wait_not_busy() == Status(0)
        assert tb.monitor.outstanding() == 0
        assert not tb.monitor.requests_since(begun + STOP_CYCLES)
        tb.check_violations()
        await tb.run(random_job(seed, 3))
    assert {"dma", "w0"} <= held


@cocotb.test()
async def during_writes(dut):
    """Bursts that were raised get all their data and their answer; the rest of the copy is not written."""
    tb = await TB.create(dut, "writes", stalls=False)
    seen = 0
    for seed in range(6):
        await tb.load(copy_job(seed))
        await tb.start()
        while not tb.memory.writes:
            await ClockCycles(dut.clk, 1)
        tb.memory.writes = 0
        await ClockCycles(dut.clk, tb.rng.randrange(60))
        tb.freeze(answers=seed % 2 == 0)
        await ClockCycles(dut.clk, 300)
        seen = max(seen, tb.monitor.ports["dma"].outstanding_writes)
        await tb.write("CONTROL", SOFT_RESET)
        begun = tb.monitor.cycle
        await ClockCycles(dut.clk, 40)
        tb.resume()
        assert await tb.wait_not_busy() == Status(0)
        assert tb.monitor.outstanding() == 0
        assert not tb.monitor.requests_since(begun + STOP_CYCLES)
        tb.check_violations()
        await tb.run(random_job(seed, 3))
    assert seen > 1


@cocotb.test()
async def when_idle_and_twice(dut):
    """A soft reset before any program, after one, and one during another."""
    tb = await TB.create(dut, "idle", stalls=False)
    await tb.soft_reset()
    await tb.run(random_job(1, 3))
    await tb.soft_reset()
    assert await tb.status() == 0  # done is cleared
    await tb.load(random_job(4))
    await tb.start()
    await ClockCycles(dut.clk, 200)
    tb.freeze()
    await tb.write("CONTROL", SOFT_RESET)
    await tb.write("CONTROL", SOFT_RESET)
    tb.resume()
    await tb.wait_not_busy()
    assert await tb.read("ERROR") == ErrorCode.NONE
    await tb.run()


@cocotb.test()
async def pin(dut):
    """The rst pin stops everything at once (the memory is reset with it, so it answers nothing)."""
    tb = await TB.create(dut, "pin 0", stalls=False)
    await tb.load(random_job(0))
    await tb.start()
    await ClockCycles(dut.clk, 400)
    assert await tb.status() & Status.BUSY
    dut.rst.value = 1
    await ClockCycles(dut.clk, 2)
    channels = [c for c in tb.monitor.channels if c.stable]
    assert not any(c.valid.value for c in channels)
    assert not dut.irq.value
