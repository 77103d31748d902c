"""The test bench of the whole machine: a host on AXI4-Lite, a memory behind all other ports, a checker.

One bench is one power-on of the machine: :meth:`TB.create` resets it by its ``rst`` pin.
"""

import functools
import logging
import os
import random
import zlib
from dataclasses import dataclass, field, replace

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiReadBus, AxiResp, AxiWriteBus
from differential.random_program import RandomProgram, random_program
from mixture_program import MixtureProgram, Shape

from moevit.config import CONFIGS, AcceleratorConfig
from moevit.isa import FORMATS, Begin, DmaIn, DmaOut, End, Instruction, Linear, encode_program
from moevit.isa.formats import DmaSource
from moevit.registers import COUNTERS, OFFSETS, ErrorCode, Status
from moevit.sim.isa import IsaSimulator
from system.memory import GUARD, Fault, Memory, ReadSlave, Stalls, WriteSlave
from system.monitor import Monitor

CONFIG: AcceleratorConfig = CONFIGS[os.environ.get("MOEVIT_SYSTEM_CONFIG", "tiny")]

START, SOFT_RESET = 1, 2
IRQ_DONE, IRQ_ERROR = 1, 2
RUN_CYCLES = 60_000  #: within which any program of these tests ends, stalls included
DRAIN_CYCLES = 4_000  #: within which outstanding transfers do
STOP_CYCLES = 12  #: from an error response, or a soft reset, until no new burst is raised


@dataclass(frozen=True)
class Job:
    """A program with its buffers, and what the output buffer holds after it."""

    image: bytes
    entry: int
    inputs: bytes
    output_bytes: int
    expected: bytes
    instructions: tuple[Instruction, ...] = field(repr=False)

    def but(self, **changes) -> "Job":
        return replace(self, **changes)


def job(image: bytes, entry: int, instructions: list[Instruction], inputs: np.ndarray, output_bytes: int) -> Job:
    """The job of a program and one input [input bytes], with the isa simulator's answer."""
    simulator = IsaSimulator(CONFIG, image, instructions, output_bytes)
    memories = simulator.memories(1)
    memories.output[:] = GUARD  # what nobody writes
    simulator.run(inputs[None], memories=memories)
    return Job(image, entry, inputs.tobytes(), output_bytes, memories.output[0].tobytes(), tuple(instructions))


@functools.cache
def random_job(seed: int, length: int = 10, mixtures: bool = False) -> Job:
    p: RandomProgram = random_program(CONFIG, seed, length, mixtures)
    return job(p.image, p.entry, p.instructions, p.inputs[0], p.output_bytes)


@functools.cache
def full_job() -> Job:
    """A random program with every kind of instruction."""
    for seed in range(100):
        found = random_job(seed)
        kinds = {type(i) for i in found.instructions}
        sources = {i.source for i in found.instructions if isinstance(i, DmaIn)}
        if kinds == set(FORMATS) and sources == set(DmaSource):
            return found
    raise AssertionError("no such program")


@functools.cache
def mixture_job() -> Job:
    """A small mixture of experts, of one image."""
    mixture = MixtureProgram(CONFIG, Shape(speculative=True, experts=6, tokens=9))
    (task,) = mixture.program.tasks
    pixels = np.random.default_rng(5).integers(0, 256, task.input_bytes, np.uint8)
    program = mixture.program
    return job(program.image, task.entry, program.instructions(task), pixels, task.output_bytes)


@functools.cache
def copy_job(seed: int) -> Job:
    """DMA alone: kilobytes in from an odd address, and out in two parts, so many bursts at once."""
    rng = np.random.default_rng(seed)
    words = int(rng.integers(500, 900)) * 8 // CONFIG.columns
    first, offset = int(rng.integers(1, words)), int(rng.integers(0, 64))
    second_offset = -(-first * CONFIG.columns // 64) * 64
    inputs = rng.integers(0, 256, offset + words * CONFIG.columns + int(rng.integers(0, 64)), np.uint8)
    dst = int(rng.integers(0, CONFIG.activation_words - words))
    program = [
        Begin(digest=CONFIG.digest, ring_words=1, count=5),
        DmaIn(offset=offset, segment_bytes=words * CONFIG.columns, dst=dst * CONFIG.columns),
        DmaOut(wait=1, src=dst, words=first, offset=0),
        DmaOut(wait=1, src=dst + first, words=words - first, offset=second_offset),
        End(),
    ]
    return job(encode_program(program), 0, program, inputs, second_offset + (words - first) * CONFIG.columns)


class TB:
    """See the module; one in each test, since it drives the pins until the test ends.

    ``stalls=False`` makes memory and host as fast as they can be.
    """

    def __init__(self, dut, seed: int | str, stalls: bool) -> None:
        self.dut = dut
        self.rng = random.Random(zlib.crc32(f"{CONFIG.name} {seed}".encode()))
        self.stalls = Stalls(self.rng, none=not stalls)
        self.monitor = Monitor(dut, CONFIG)
        self.memory = Memory(CONFIG, self.monitor)
        self.job: Job | None = None
        self.axil = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk)
        slaves = [("dma", ReadSlave, AxiReadBus), ("dma", WriteSlave, AxiWriteBus)]
        slaves += [(f"w{i}", ReadSlave, AxiReadBus) for i in range(CONFIG.weight_ports)]
        self.slaves = [
            slave(name, bus.from_prefix(dut, f"m_axi_{name}"), dut.clk, self.memory, self.stalls)
            for name, slave, bus in slaves
        ]

    @classmethod
    async def create(cls, dut, seed: int | str, *, stalls: bool = True) -> "TB":
        for name in ("cocotbext", f"cocotb.{dut._name}"):
            logging.getLogger(name).setLevel(logging.WARNING)
        dut.rst.value = 1
        cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
        tb = cls(dut, seed, stalls)
        await ClockCycles(dut.clk, 4)
        dut.rst.value = 0
        await ClockCycles(dut.clk, 2)
        cocotb.start_soon(tb.monitor.run())
        tb.resume()
        return tb

    @property
    def master_channels(self) -> list:
        write, read = self.axil.write_if, self.axil.read_if
        return [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]

    def resume(self, stalls: bool | None = None) -> None:
        """Every channel gets a new habit of pausing and every port a new queue, or none has any."""
        if stalls is not None:
            self.stalls.none = not stalls
        for slave in self.slaves:
            slave.ahead.resume()
        for channel in [*self.master_channels, *(c for s in self.slaves for c in s.channels)]:
            generator = self.stalls.generator()
            channel.set_pause_generator(generator)
            if generator is None:
                channel.pause = False

    def freeze(self, *, answers: bool = False) -> None:
        """The memory accepts and answers nothing, or only answers nothing, until :meth:`resume`."""
        for slave in self.slaves:
            for channel in slave.channels[-1:] if answers else slave.channels:
                channel.clear_pause_generator()
                channel.pause = True

    # -- registers ---------------------------------------------------------------

    async def read(self, name: str, resp: AxiResp = AxiResp.OKAY) -> int:
        return await self.read_at(OFFSETS[name], resp)

    async def read_at(self, offset: int, resp: AxiResp = AxiResp.OKAY) -> int:
        answer = await self.axil.read(offset, 4)
        assert answer.resp == resp, f"read of {offset:#x}: {answer.resp!r}"
        return int.from_bytes(answer.data, "little")

    async def write(self, name: str, value: int, resp: AxiResp = AxiResp.OKAY) -> None:
        await self.write_at(OFFSETS[name], value.to_bytes(4, "little"), resp)

    async def write_at(self, offset: int, data: bytes, resp: AxiResp = AxiResp.OKAY) -> None:
        answer = await self.axil.write(offset, data)
        assert answer.resp == resp, f"write of {data.hex()} at {offset:#x}: {answer.resp!r}"

    async def status(self) -> Status:
        return Status(await self.read("STATUS"))

    async def counters(self) -> dict[str, dict[str, int]]:
        values: dict[str, dict[str, int]] = {}
        for stage, cause, _ in COUNTERS:
            values.setdefault(stage, {})[cause] = await self.read(f"COUNT_{stage}_{cause}".upper())
        return values

    # -- running -----------------------------------------------------------------

    async def load(self, job: Job, **registers: int) -> None:
        """Put a job into memory at random addresses and write the registers, some with other values."""
        self.job = job
        image, inputs, output = self._places(len(job.image))
        self.memory.buffers.clear()
        self.memory.place("image", image, job.image)
        self.memory.place("input", inputs, job.inputs)
        self.memory.place("output", output, bytes([GUARD]) * job.output_bytes, writable=True)
        values = {"PROGRAM": job.entry, "INTERRUPT_ENABLE": IRQ_DONE | IRQ_ERROR}
        for name, buffer in self.memory.buffers.items():
            prefix = name.upper()
            values |= {f"{prefix}_LO": buffer.base & 0xFFFF_FFFF, f"{prefix}_HI": buffer.base >> 32}
            values[f"{prefix}_BYTES"] = buffer.size
        for name, value in (values | registers).items():
            await self.write(name, value)

    def _places(self, image_bytes: int) -> tuple[int, int, int]:
        """Base addresses anywhere, megabytes apart; every other image lies across a multiple of 4 GB."""
        quarter = 1 << CONFIG.axi_address_width - 2
        first = self.rng.randrange(quarter)
        if self.rng.random() < 0.5:
            first = (first >> 32) + 1 << 32
            first -= self.rng.randrange(image_bytes)
        places = [first, self.rng.randrange(quarter), self.rng.randrange(quarter)]
        self.rng.shuffle(quarters := [0, 1, 2])
        image, inputs, output = (q * quarter + place for q, place in zip(quarters, places, strict=True))
        bus = CONFIG.axi_bytes
        return image // 64 * 64, inputs // bus * bus, output // bus * bus

    def clear_output(self) -> None:
        """As it was before the run."""
        old = self.memory.buffers["output"]
        self.memory.place("output", old.base, bytes([GUARD]) * old.size, writable=True)

    async def start(self) -> None:
        await self.write("CONTROL", START)

    async def wait_irq(self, cycles: int = RUN_CYCLES) -> None:
        """Until the interrupt line is high; fails when that takes longer."""
        end = self.monitor.cycle + cycles
        while not self.dut.irq.value:
            await RisingEdge(self.dut.clk)
            if self.monitor.cycle > end:
                raise AssertionError(f"no interrupt in {cycles} cycles; {await self.report()}")

    async def wait_not_busy(self, cycles: int = DRAIN_CYCLES) -> Status:
        end = self.monitor.cycle + cycles
        while (status := await self.status()) & Status.BUSY:
            assert self.monitor.cycle < end, f"busy after {cycles} cycles; {await self.report()}"
        return status

    async def report(self) -> str:
        """The machine's state, for messages."""
        names = ("STATUS", "ERROR", "ERROR_INSTRUCTION", "RETIRED", "CYCLES")
        state = {name: await self.read(name) for name in names}
        ports = {p.name: (p.outstanding_reads, p.outstanding_writes) for p in self.monitor.ports.values()}
        return f"{state}, outstanding {ports}, {await self.counters()}, violations {self.monitor.violations[:5]}"

    async def run(self, job: Job | None = None) -> None:
        """Run a job (the loaded one if None) to its end, by interrupt, and check everything about it."""
        if job is not None:
            await self.load(job)
        else:
            self.clear_output()
        await self.start()
        await self.wait_irq()
        await self.finish()

    async def finish(self) -> None:
        """The checks after a run, and the interrupt's acknowledgement."""
        assert self.job is not None
        status = await self.status()
        assert status == Status.DONE, f"{status!r}; {await self.report()}"
        assert await self.read("INTERRUPT_STATUS") == IRQ_DONE
        self.check_output()
        retiring = sum(i.retires for i in self.job.instructions)
        assert await self.read("RETIRED") == retiring
        assert await self.read("ERROR") == ErrorCode.NONE
        assert self.monitor.outstanding() == 0
        await self.check_counters()
        await self.write("INTERRUPT_STATUS", IRQ_DONE)
        assert await self.read("INTERRUPT_STATUS") == 0
        assert not self.dut.irq.value

    def check_output(self) -> None:
        assert self.job is not None
        self.check_violations()
        got = np.frombuffer(self.memory.buffers["output"].content, np.uint8)
        want = np.frombuffer(self.job.expected, np.uint8)
        wrong = np.flatnonzero(got != want)
        assert not wrong.size, f"{wrong.size} of {got.size} output bytes differ, first at {wrong[:8]}: got " \
            f"{got[wrong[:8]]}, want {want[wrong[:8]]}"  # fmt: skip

    def check_violations(self) -> None:
        assert not self.monitor.violations, "; ".join(self.monitor.violations[:5])
        assert self.memory.guards_intact()

    async def check_counters(self) -> None:
        cycles, counters = await self.read("CYCLES"), await self.counters()
        assert 0 < cycles <= self.monitor.cycle
        for stage, causes in counters.items():
            assert sum(causes.values()) <= cycles, f"{stage}: {causes} in {cycles} cycles"
        assert counters["dma"]["busy"] > 0
        if any(isinstance(i, Linear) for i in self.job.instructions):
            assert all(counters[stage]["busy"] > 0 for stage in ("stream", "load", "mac", "post")), counters

    # -- errors and resets -------------------------------------------------------

    async def soft_reset(self) -> None:
        await self.write("CONTROL", SOFT_RESET)
        assert await self.wait_not_busy() == Status(0)
        assert self.monitor.outstanding() == 0
        assert not self.monitor.waiting()
        assert await self.read("ERROR") == ErrorCode.NONE
        assert await self.read("INTERRUPT_STATUS") == 0
        assert not self.dut.irq.value

    async def run_to_error(self, code: ErrorCode, fault: Fault | None = None, cycles: int = RUN_CYCLES) -> int:
        """Run the loaded job until it stops with this error; the answer is the number of its instruction."""
        self.monitor.error_cycle = None
        await self.start()
        await self.wait_irq(cycles)
        assert await self.read("INTERRUPT_STATUS") == IRQ_ERROR, await self.report()
        assert await self.status() == Status.ERROR, await self.report()
        error = ErrorCode(await self.read("ERROR"))
        assert error == code, f"{error!r}, not {code!r}; {await self.report()}"
        number = await self.read("ERROR_INSTRUCTION")
        assert self.monitor.outstanding() == 0
        if fault is not None:
            assert fault.hits > 0
            late = self.monitor.requests_since(self.monitor.error_cycle + STOP_CYCLES)
            assert not late, f"bursts on {late} after the error response"
        requests = self.monitor.requests_since(0)
        await ClockCycles(self.dut.clk, 100)
        assert self.monitor.requests_since(0) == requests, "bursts after the machine had stopped"
        assert not self.monitor.waiting()
        await self.write("CONTROL", START, AxiResp.SLVERR)  # only a soft reset brings it back
        assert await self.status() == Status.ERROR
        assert self.dut.irq.value
        await self.write("INTERRUPT_STATUS", IRQ_ERROR)
        assert await self.read("INTERRUPT_STATUS") == 0
        assert not self.dut.irq.value
        self.check_violations()
        return number

    async def recover(self, job: Job) -> None:
        """After an error: soft reset, then a correct run."""
        self.memory.faults.clear()
        await self.soft_reset()
        await self.run(job)
