"""The AXI4-Lite registers: values, access rules, strobes, refusals."""

import cocotb
from cocotb.triggers import Combine
from cocotbext.axi import AxiResp

from moevit.registers import ADDRESS_WIDTH, IDENTITY, OFFSETS, REGISTERS, VERSION, Access, ErrorCode, Status
from system.bench import CONFIG, SOFT_RESET, START, TB, random_job

SLVERR = AxiResp.SLVERR
WORD = 0xFFFF_FFFF
HIGH = (1 << CONFIG.axi_address_width - 32) - 1
BUS = ~(CONFIG.axi_bytes - 1) & WORD
#: what may be written to each register that keeps its value
ALLOWED = {
    "INTERRUPT_ENABLE": 3,
    "IMAGE_LO": WORD - 63, "IMAGE_HI": HIGH, "IMAGE_BYTES": WORD, "PROGRAM": WORD - 63,
    "INPUT_LO": BUS, "INPUT_HI": HIGH, "INPUT_BYTES": WORD,
    "OUTPUT_LO": BUS, "OUTPUT_HI": HIGH, "OUTPUT_BYTES": WORD,
}  # fmt: skip


def check_allowed_is_complete() -> None:
    kept = {r.name for r in REGISTERS if r.access is Access.READ_WRITE} - {"INTERRUPT_STATUS"}
    assert kept == set(ALLOWED)


@cocotb.test()
async def identity(dut):
    check_allowed_is_complete()
    tb = await TB.create(dut, "identity")
    expected = {
        "IDENTITY": IDENTITY, "VERSION": VERSION,
        "DIGEST_LO": CONFIG.digest & WORD, "DIGEST_HI": CONFIG.digest >> 32,
    }  # fmt: skip
    for register in REGISTERS:
        if register.access is not Access.WRITE:
            assert await tb.read(register.name) == expected.get(register.name, 0), register.name
    assert not dut.irq.value


@cocotb.test()
async def read_back(dut):
    """Every writable register keeps what it was given, and only it changes, also over a soft reset."""
    tb = await TB.create(dut, "read back")
    kept = dict.fromkeys(ALLOWED, 0)
    for _ in range(3):
        for name, mask in tb.rng.sample(sorted(ALLOWED.items()), len(ALLOWED)):
            kept[name] = tb.rng.getrandbits(32) & mask
            await tb.write(name, kept[name])
        for name, value in kept.items():
            assert await tb.read(name) == value, name
    await tb.soft_reset()
    for name, value in kept.items():
        assert await tb.read(name) == value, f"{name} after a soft reset"


@cocotb.test()
async def strobes(dut):
    tb = await TB.create(dut, "strobes")
    for name, mask in ALLOWED.items():
        value = 0
        for first in range(4):
            for end in range(first + 1, 5):
                lanes = sum(0xFF << 8 * i for i in range(first, end))
                new = tb.rng.getrandbits(32) & mask
                value = value & ~lanes | new & lanes
                await tb.write_at(OFFSETS[name] + first, new.to_bytes(4, "little")[first:end])
                assert await tb.read(name) == value, (name, first, end)
    # Bytes of CONTROL that are not strobed start nothing.
    await tb.write_at(OFFSETS["CONTROL"] + 1, b"\xff\xff\xff")
    assert await tb.status() == 0


@cocotb.test()
async def refused(dut):
    """SLVERR, and nothing changes: unknown offsets, forbidden accesses, impossible values."""
    tb = await TB.create(dut, "refused")
    known = set(OFFSETS.values())
    unknown = [o for o in range(0, 1 << ADDRESS_WIDTH, 4) if o not in known]
    edge = [max(known) + 4, max(o for o in known if o < 0x100) + 4, 0xFC, (1 << ADDRESS_WIDTH) - 4]
    for offset in {*edge, *tb.rng.sample(unknown, 20)}:
        await tb.read_at(offset, SLVERR)
        await tb.write_at(offset, b"\xff" * 4, SLVERR)
    for register in REGISTERS:
        if register.access is Access.READ:
            before = await tb.read(register.name)
            await tb.write(register.name, ~before & WORD, SLVERR)
            assert await tb.read(register.name) == before, register.name
    await tb.read("CONTROL", SLVERR)
    for name, mask in ALLOWED.items():
        value = tb.rng.getrandbits(32) & mask
        await tb.write(name, value)
        for bit in range(32):
            if not mask >> bit & 1:
                await tb.write(name, value | 1 << bit, SLVERR)
        assert await tb.read(name) == value, name
    await tb.write("CONTROL", START | SOFT_RESET, SLVERR)
    await tb.write("CONTROL", 0)
    assert await tb.status() == 0


@cocotb.test()
async def reads_beside_writes(dut):
    """The two directions are independent, and transfers may follow each other without a pause."""
    tb = await TB.create(dut, "beside", stalls=False)
    for stalls in (False, True):
        tb.resume(stalls)
        await tb.write("OUTPUT_BYTES", 0x1234_5678)

        async def writes():
            for i in range(30):
                await tb.write("INPUT_BYTES", i)

        async def reads():
            for _ in range(30):
                assert await tb.read("OUTPUT_BYTES") == 0x1234_5678

        await Combine(cocotb.start_soon(writes()), cocotb.start_soon(reads()))
        assert await tb.read("INPUT_BYTES") == 29
        tb.check_violations()


@cocotb.test()
async def writes_during_a_run(dut):
    """Addresses and sizes are those at the start; what is written meanwhile is for the next program."""
    tb = await TB.create(dut, "during", stalls=False)
    first, second = random_job(3, 3), random_job(0, 3)
    await tb.load(first)
    values = {name: await tb.read(name) for name in ALLOWED}
    await tb.start()
    for name, mask in ALLOWED.items():
        if name != "INTERRUPT_ENABLE":
            await tb.write(name, 0xAAAA_AAAA & mask)
    assert await tb.status() & Status.BUSY, "the program was over before all was written: choose a longer one"
    await tb.wait_irq()
    await tb.finish()
    for name, value in values.items():
        await tb.write(name, value)
    await tb.run()
    await tb.run(second)
    assert await tb.read("ERROR") == ErrorCode.NONE
