"""Control through its AXI4-Lite port: registers, start, stop, soft reset, interrupt, counters."""

import random

import pytest

from hw.axi_lite_master import Master
from hw.bench import run
from moevit import registers
from moevit.config import CONFIGS
from moevit.hw.units.control import OKAY, SLVERR, STAGES, Control
from moevit.registers import COUNTERS, OFFSETS, REGISTERS, Access, ErrorCode, Status

CONFIG = CONFIGS["tiny"]
WRITABLE = [r.name for r in REGISTERS if r.access is Access.READ_WRITE and r.name != "INTERRUPT_STATUS"]
START, SOFT_RESET = 1, 2


def check(test, *, timeout_cycles=10_000, stall=0.0, **options):
    """Run ``test(ctx, dut, master)`` on an idle machine."""
    dut = Control(CONFIG, **options)

    async def bench(ctx):
        ctx.set(dut.idle, 1)
        await test(ctx, dut, Master(ctx, dut.axil, stall=stall))

    run(dut, bench, timeout_cycles=timeout_cycles)


@pytest.mark.parametrize("stall", [0, 0.6])
def test_registers_keep_their_values(stall):
    async def test(ctx, dut, master):
        assert await master.value("IDENTITY") == registers.IDENTITY
        assert await master.value("VERSION") == registers.VERSION
        assert await master.value("DIGEST_LO") | await master.value("DIGEST_HI") << 32 == CONFIG.digest
        rng = random.Random(1)
        mask = {"INTERRUPT_ENABLE": 3, "IMAGE_HI": 0xFF, "INPUT_HI": 0xFF, "OUTPUT_HI": 0xFF}
        values = {name: rng.getrandbits(32) & mask.get(name, 0xFFFF_FFC0) for name in WRITABLE}
        for name, value in values.items():
            assert await master.write(name, value) == OKAY
        for name, value in values.items():
            assert await master.value(name) == value
        assert await master.value("STATUS") == 0

    check(test, stall=stall)


def test_strobes():
    async def test(ctx, dut, master):
        await master.write("IMAGE_BYTES", 0x11223344)
        await master.write("IMAGE_BYTES", 0xAABBCCDD, strobe=0b0101)
        assert await master.value("IMAGE_BYTES") == 0x11BB33DD
        assert await master.write("IMAGE_LO", 0xFF3F, strobe=0b0010) == OKAY  # the misaligned byte is not meant
        assert await master.value("IMAGE_LO") == 0xFF00
        await master.write("CONTROL", START, strobe=0b1110)
        assert await master.value("STATUS") == 0

    check(test)


def test_refused_accesses_do_nothing():
    async def test(ctx, dut, master):
        known = {r.offset: r for r in REGISTERS}
        for offset in range(0, 1 << registers.ADDRESS_WIDTH, 4):
            if offset > 0x180 and offset % 0x140:
                continue  # samples are enough there
            access = known[offset].access.value if offset in known else ""
            _, response = await master.read(offset)
            assert response == (OKAY if "r" in access else SLVERR), hex(offset)
            response = await master.write(offset, 0)
            assert response == (OKAY if "w" in access else SLVERR), hex(offset)
        wrong = {"IMAGE_LO": 32, "PROGRAM": 1, "INPUT_LO": 8, "OUTPUT_LO": 15, "IMAGE_HI": 256}
        for name, value in (wrong | {"INTERRUPT_ENABLE": 4}).items():
            assert await master.write(name, value) == SLVERR
            assert await master.value(name) == 0
        assert await master.write("CONTROL", START | SOFT_RESET) == SLVERR
        assert await master.value("STATUS") == 0

    check(test)


def pulses(dut, signals):
    """A background process that logs the cycles in which each signal is high."""
    log = {name: [] for name in signals}

    async def process(ctx):
        cycle = 0
        async for _, _, *values in ctx.tick().sample(*(getattr(dut, n) for n in signals)):
            for name, value in zip(signals, values, strict=True):
                if value:
                    log[name].append(cycle)
            cycle += 1

    return log, process


def test_start_to_done():
    dut = Control(CONFIG)
    log, logger = pulses(dut, ["start", "halt"])

    async def bench(ctx):
        master = Master(ctx, dut.axil)
        ctx.set(dut.idle, 1)
        values = {"IMAGE_LO": 0x1000, "IMAGE_HI": 0x12, "IMAGE_BYTES": 77, "PROGRAM": 640, "INPUT_LO": 0x20}
        values |= {"INPUT_BYTES": 5, "OUTPUT_HI": 3, "INTERRUPT_ENABLE": 1}
        for name, value in values.items():
            await master.write(name, value)
        assert ctx.get(dut.core_reset)
        assert await master.write("CONTROL", START) == OKAY
        assert not ctx.get(dut.core_reset)
        assert await master.write("CONTROL", START) == SLVERR  # busy
        assert (ctx.get(dut.image_base), ctx.get(dut.image_bytes), ctx.get(dut.program)) == (
            0x12_0000_1000,
            77,
            640,
        )
        assert (ctx.get(dut.input_base), ctx.get(dut.input_bytes), ctx.get(dut.output_base)) == (
            0x20,
            5,
            3 << 32,
        )
        await master.write("IMAGE_BYTES", 1)  # for the next program
        assert ctx.get(dut.image_bytes) == 77
        assert await master.value("STATUS") == Status.BUSY
        ctx.set(dut.retired, 12)
        ctx.set(dut.idle, 0)
        ctx.set(dut.done, 1)
        await ctx.tick().repeat(10)
        assert await master.value("STATUS") == Status.BUSY  # a transfer is outstanding
        assert not ctx.get(dut.irq)
        ctx.set(dut.idle, 1)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.irq)
        ctx.set(dut.done, 0)
        ctx.set(dut.retired, 0)
        assert await master.value("STATUS") == Status.DONE
        assert ctx.get(dut.core_reset)
        assert await master.value("RETIRED") == 12
        assert await master.value("INTERRUPT_STATUS") == 1
        await master.write("INTERRUPT_STATUS", 2)
        assert ctx.get(dut.irq)
        await master.write("INTERRUPT_STATUS", 1)
        await ctx.tick().repeat(2)
        assert not ctx.get(dut.irq)
        assert len(log["start"]) == 1
        await master.write("CONTROL", START)
        assert await master.value("STATUS") == Status.BUSY  # a start clears done
        assert ctx.get(dut.image_bytes) == 1
        assert not log["halt"]

    run(dut, bench, background=[logger])


def test_start_latency():
    dut = Control(CONFIG)

    async def bench(ctx):
        axil = dut.axil
        ctx.set(dut.idle, 1)
        for signal, value in ((axil.awaddr, OFFSETS["CONTROL"]), (axil.wdata, START), (axil.wstrb, 15)):
            ctx.set(signal, value)
        ctx.set(axil.awvalid, 1)
        ctx.set(axil.wvalid, 1)
        await ctx.tick()  # now the write is done
        ctx.set(axil.awvalid, 0)
        ctx.set(axil.wvalid, 0)
        await ctx.tick().repeat(Control.START_CYCLES)
        assert ctx.get(dut.start)
        await ctx.tick()
        assert not ctx.get(dut.start)

    run(dut, bench)


def test_error_drains_then_waits_for_soft_reset():
    async def test(ctx, dut, master):
        await master.write("INTERRUPT_ENABLE", 2)
        await master.write("CONTROL", START)
        await ctx.tick().repeat(10)
        ctx.set(dut.idle, 0)
        ctx.set(dut.fault, 1)
        ctx.set(dut.fault_code, ErrorCode.INPUT_RANGE)
        ctx.set(dut.fault_number, 123)
        await ctx.tick().repeat(2)
        assert ctx.get(dut.halt)
        ctx.set(dut.fault, 0)
        ctx.set(dut.fault_code, ErrorCode.BUS_FETCH)
        assert await master.value("STATUS") == Status.BUSY | Status.ERROR | Status.DRAINING
        assert not ctx.get(dut.irq)
        assert await master.write("CONTROL", START) == SLVERR
        assert not ctx.get(dut.clear)
        ctx.set(dut.idle, 1)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.irq)
        assert await master.value("STATUS") == Status.ERROR
        assert await master.value("ERROR") == ErrorCode.INPUT_RANGE
        assert await master.value("ERROR_INSTRUCTION") == 123
        assert await master.write("CONTROL", START) == SLVERR
        assert ctx.get(dut.halt)
        assert ctx.get(dut.core_reset)
        await master.write("CONTROL", SOFT_RESET)
        await ctx.tick().repeat(10)
        for name in ("STATUS", "ERROR", "ERROR_INSTRUCTION", "INTERRUPT_STATUS"):
            assert await master.value(name) == 0, name
        assert not ctx.get(dut.halt)
        assert await master.value("INTERRUPT_ENABLE") == 2
        assert await master.write("CONTROL", START) == OKAY

    check(test)


@pytest.mark.parametrize("when", ["idle", "starting", "running", "draining", "done"])
def test_soft_reset(when):
    dut = Control(CONFIG)
    log, logger = pulses(dut, ["clear", "start"])

    async def bench(ctx):
        master = Master(ctx, dut.axil)
        ctx.set(dut.idle, 1)
        if when != "idle":
            await master.write("CONTROL", START)
        if when in ("running", "draining", "done"):
            await ctx.tick().repeat(10)
            ctx.set(dut.idle, 0)
        if when == "draining":
            ctx.set(dut.fault, 1)
            await ctx.tick()
            ctx.set(dut.fault, 0)
        if when == "done":
            ctx.set(dut.done, 1)
            ctx.set(dut.idle, 1)
            await ctx.tick()
        del log["clear"][:]
        assert await master.write("CONTROL", SOFT_RESET) == OKAY
        if when in ("running", "draining"):
            await ctx.tick().repeat(20)
            assert await master.value("STATUS") & (Status.BUSY | Status.DRAINING) == Status.BUSY | Status.DRAINING
            assert ctx.get(dut.halt)
            assert not log["clear"]
        ctx.set(dut.done, 0)
        ctx.set(dut.idle, 1)
        await ctx.tick().repeat(12)
        assert await master.value("STATUS") == 0
        assert await master.value("INTERRUPT_STATUS") == 0
        assert ctx.get(dut.core_reset)
        assert len(log["clear"]) == 1 + (when == "starting")  # the start's own comes after its write is answered
        # An error after that is an error, not the reset's end.
        await master.write("CONTROL", START)
        await ctx.tick().repeat(10)
        ctx.set(dut.fault, 1)
        await ctx.tick().repeat(12)
        assert await master.value("STATUS") == Status.ERROR

    run(dut, bench, background=[logger])


def test_stall_is_an_error():
    async def test(ctx, dut, master):
        ctx.set(dut.oldest, 42)
        await master.write("CONTROL", START)
        for _ in range(4):  # something moves now and then
            await ctx.tick().repeat(60)
            ctx.set(dut.events.mac.busy, 1)
            await ctx.tick()
            ctx.set(dut.events.mac.busy, 0)
            await ctx.tick().repeat(60)
            ctx.set(dut.idle, 0)
            await ctx.tick()
            ctx.set(dut.idle, 1)
        assert await master.value("STATUS") == Status.BUSY
        await ctx.tick().repeat(120)
        assert await master.value("STATUS") == Status.ERROR
        assert await master.value("ERROR") == ErrorCode.STALLED
        assert await master.value("ERROR_INSTRUCTION") == 42

    check(test, stall_cycles=100)


def test_counters():
    async def test(ctx, dut, master):
        ctx.set(dut.events[STAGES[0]], {"busy": 1, "ring": 1, "dram": 1})
        await ctx.tick().repeat(10)  # not running: not counted
        ctx.set(dut.events[STAGES[0]], {})
        for _ in range(2):  # the second program counts from zero
            await master.write("CONTROL", START)
            await ctx.tick().repeat(5)
            for n, (stage, cause, _) in enumerate(COUNTERS):
                ctx.set(dut.events[stage][cause], 1)
                await ctx.tick().repeat(n + 1)
                ctx.set(dut.events[stage][cause], 0)
            await ctx.tick().repeat(2)
            ctx.set(dut.done, 1)
            await ctx.tick().repeat(2)
            ctx.set(dut.done, 0)
            for n, (stage, cause, _) in enumerate(COUNTERS):
                assert await master.value(f"COUNT_{stage}_{cause}".upper()) == n + 1
            total = sum(range(1, len(COUNTERS) + 1))
            assert total < await master.value("CYCLES") < total + 20

    check(test)
