"""The driver: what is done with a machine, over any link to one."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from moevit.config import AcceleratorConfig
from moevit.driver.link import ALIGNMENT, Buffer, Link
from moevit.errors import DeviceError, DeviceTimeoutError, InputError, MachineError, WrongBitstreamError
from moevit.isa.disassemble import disassemble
from moevit.program import Program, Task
from moevit.registers import COUNTERS, IDENTITY, OFFSETS, VERSION, ErrorCode, Status

CONTROL_START, CONTROL_RESET = 1, 2
INTERRUPT_DONE, INTERRUPT_ERROR = 1, 2
RESET_TIMEOUT_S = 5.0  #: what is outstanding when a reset begins is some bursts
MAJOR = 16  #: where the major version begins in VERSION


@dataclass(frozen=True)
class Run:
    """One program that ended well.

    output : the output buffer
    cycles : the machine's own count, from start to done
    retired : instructions
    seconds : from the start bit to the interrupt, as the host sees it
    """

    output: bytes
    cycles: int
    retired: int
    seconds: float


class Device:
    """A machine behind a link: load a container, select a task, run it.

    Opening one checks that what answers is a machine of this version, and resets it.

    Parameters
    ----------
    link : the way to it; closed with the device, and when it cannot be opened
    config : the configuration that the bitstream should have, where the caller knows it

    Raises
    ------
    WrongBitstreamError : something else answers, or a machine of another version or configuration
    DeviceTimeoutError : nothing does, or a reset does not end
    """

    def __init__(self, link: Link, config: AcceleratorConfig | None = None) -> None:
        self.link = link
        self._program: Program | None = None
        self._task: Task | None = None
        self._image: Buffer | None = None
        self._input: Buffer | None = None
        self._output: Buffer | None = None
        try:
            self.digest = self._identify()
            if config is not None:
                self._require_digest(config, f"the bitstream should hold configuration '{config.name}'")
            self.reset()
        except BaseException:
            link.close()
            raise

    # What there is ------------------------------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """A register by its name."""
        return self.link.read(OFFSETS[name])

    def write(self, name: str, value: int) -> None:
        """Write a register by its name."""
        self.link.write(OFFSETS[name], value)

    @property
    def status(self) -> Status:
        """The STATUS register."""
        return Status(self.read("STATUS"))

    @property
    def program(self) -> Program:
        """What was loaded. Raises DeviceError if nothing was."""
        if self._program is None:
            raise DeviceError("no container is loaded", where=self.link.name, mend="call load() first")
        return self._program

    @property
    def task(self) -> Task:
        """What was selected. Raises DeviceError if nothing was loaded."""
        program = self.program
        return program.task() if self._task is None else self._task

    def holds(self, program: Program) -> bool:
        """Whether this very program is loaded."""
        return self._program is program

    def counters(self) -> dict[str, dict[str, int]]:
        """Cycles by stage and cause, of the current or last program; see ``registers.COUNTERS``."""
        out: dict[str, dict[str, int]] = {}
        for stage, cause, _ in COUNTERS:
            out.setdefault(stage, {})[cause] = self.read(f"COUNT_{stage}_{cause}".upper())
        return out

    def power_w(self) -> float | None:
        """What the board draws now, in watts, where it has a sensor."""
        return self.link.power_w()

    # What is done -------------------------------------------------------------------------------------------------

    def load(self, program: Program) -> None:
        """Write a container's image to memory and select its first task. What was loaded before is given up.

        Raises
        ------
        WrongBitstreamError : the container was compiled for another configuration
        DeviceError : there is no room, or the memory lies where the machine's addresses do not reach
        """
        self._require_digest(program.config, f"the container was compiled for configuration '{program.config.name}'")
        self.unload()
        try:
            self._image = self._allocate(len(program.image), program.config)
            self._input = self._allocate(max(t.input_bytes for t in program.tasks), program.config)
            self._output = self._allocate(max(t.output_bytes for t in program.tasks), program.config)
            self._image.write(program.image)
        except BaseException:
            self.unload()
            raise
        self._write_address("IMAGE", self._image.address, len(program.image))
        self._program = program
        self.select(None)

    def select(self, task: str | None) -> Task:
        """Choose the task to run; the first when None. Nothing is loaded for it.

        Raises
        ------
        InputError : there is no such task
        """
        chosen = self.program.task(task)
        assert self._input is not None and self._output is not None
        self.write("PROGRAM", chosen.entry)
        self._write_address("INPUT", self._input.address, chosen.input_bytes)
        self._write_address("OUTPUT", self._output.address, chosen.output_bytes)
        self._task = chosen
        return chosen

    def run(self, data: bytes, *, timeout_s: float | None = None) -> Run:
        """Run the selected task on one input buffer, as ``moevit.sim.inputs.pack`` makes it.

        Raises
        ------
        InputError : the buffer has the wrong size
        MachineError : the machine stopped with an error code; it takes nothing more before a :meth:`reset`
        DeviceTimeoutError : it neither ended nor stopped in ``timeout_s`` (the link's own when None)
        DeviceError : nothing is loaded, or the machine is not ready
        """
        task = self.task
        assert self._input is not None and self._output is not None
        if len(data) != task.input_bytes:
            what = f"an input buffer has {task.input_bytes} bytes, not {len(data)}"
            raise InputError(what, where=f"task {task.name!r}")
        status = self.status
        if status & (Status.BUSY | Status.ERROR):
            raise DeviceError(
                f"the machine is not ready: STATUS is {_flags(status)}", where=self.link.name, mend="call reset() first"
            )
        self._input.write(data)
        self.write("INTERRUPT_STATUS", INTERRUPT_DONE | INTERRUPT_ERROR)
        self.write("INTERRUPT_ENABLE", INTERRUPT_DONE | INTERRUPT_ERROR)
        limit = self.link.timeout_s if timeout_s is None else timeout_s
        started = time.perf_counter()
        self.write("CONTROL", CONTROL_START)
        raised = self.link.wait(limit)
        seconds = time.perf_counter() - started
        status = self.status
        self.write("INTERRUPT_STATUS", INTERRUPT_DONE | INTERRUPT_ERROR)
        if status & Status.ERROR:
            raise self._stopped()
        if not raised or status != Status.DONE:
            raise self._hung(raised, status, limit)
        return Run(self._output.read(task.output_bytes), self.read("CYCLES"), self.read("RETIRED"), seconds)

    def reset(self) -> None:
        """Soft reset: stop what runs, wait for outstanding transfers, clear all state. What is loaded stays.

        Raises
        ------
        DeviceTimeoutError : it does not end: a transfer is never answered
        """
        self.write("CONTROL", CONTROL_RESET)
        limit = time.monotonic() + RESET_TIMEOUT_S
        while status := self.status:
            if time.monotonic() > limit:
                raise DeviceTimeoutError(
                    f"a reset did not end in {RESET_TIMEOUT_S:g} s: STATUS is {_flags(status)}", where=self.link.name,
                    mend="a bus transfer is never answered; load the bitstream again",
                )  # fmt: skip

    def unload(self) -> None:
        """Give up what is loaded, and its memory."""
        for buffer in (self._image, self._input, self._output):
            if buffer is not None:
                buffer.free()
        self._program = self._task = self._image = self._input = self._output = None

    def close(self) -> None:
        """Stop the machine, give back its memory and close the link, whatever state it is in."""
        try:
            if self.status & Status.BUSY:
                self.reset()  # it must not write to memory that is somebody else's soon
            self.unload()
        finally:
            self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------------------

    def _identify(self) -> int:
        """The machine's configuration digest, once it is known to be one."""
        identity = self.read("IDENTITY")
        if identity in (0, 0xFFFF_FFFF):
            raise DeviceTimeoutError(
                f"nothing answers: the IDENTITY register reads 0x{identity:08x}", where=self.link.name,
                mend="load the bitstream, and see that its clock runs",
            )  # fmt: skip
        if identity != IDENTITY:
            raise WrongBitstreamError(
                f"no machine of moevit: the IDENTITY register reads 0x{identity:08x}, not 0x{IDENTITY:08x}",
                where=self.link.name, mend="load a bitstream that `moevit build` made",
            )  # fmt: skip
        version = self.read("VERSION")
        if version >> MAJOR != VERSION >> MAJOR or version < VERSION:
            raise WrongBitstreamError(
                f"the machine has version {_version(version)} of the registers, this driver needs {_version(VERSION)}",
                where=self.link.name, mend="build the bitstream again with this moevit",
            )  # fmt: skip
        return self.read("DIGEST_HI") << 32 | self.read("DIGEST_LO")

    def _require_digest(self, config: AcceleratorConfig, because: str) -> None:
        if config.digest != self.digest:
            raise WrongBitstreamError(
                f"{because} (digest {config.digest:016x}), but the machine has digest {self.digest:016x}",
                where=self.link.name,
                mend="load the bitstream of that configuration, or compile the model for the machine's",
            )

    def _allocate(self, size: int, config: AcceleratorConfig) -> Buffer:
        buffer = self.link.allocate(max(size, ALIGNMENT))
        if (buffer.address + buffer.size - 1) >> config.axi_address_width:
            address = buffer.address
            buffer.free()
            raise DeviceError(
                f"a buffer lies at 0x{address:x}, which {config.axi_address_width} address bits do not reach",
                where=self.link.name, mend="build the machine with a larger axi_address_width",
            )  # fmt: skip
        return buffer

    def _write_address(self, name: str, address: int, size: int) -> None:
        self.write(f"{name}_LO", address & 0xFFFF_FFFF)
        self.write(f"{name}_HI", address >> 32)
        self.write(f"{name}_BYTES", size)

    def _stopped(self) -> MachineError:
        """What the error registers say."""
        code, number = self.read("ERROR"), self.read("ERROR_INSTRUCTION")
        known = {int(e): e.name for e in ErrorCode}
        instructions = self.program.instructions(self.task)
        named = f" ({disassemble(instructions[number])})" if number < len(instructions) else ""
        return MachineError(
            f"task {self.task.name!r} stopped with {known.get(code, f'error code {code}')} "
            f"at instruction {number}{named}",
            code=code, instruction=number, where=self.link.name, mend="reset the machine before it is run again",
        )  # fmt: skip

    def _hung(self, raised: bool, status: Status, limit: float) -> DeviceTimeoutError:
        """Neither done nor stopped: what can be said about it."""
        retiring = sum(i.retires for i in self.program.instructions(self.task))
        seen = "the interrupt came, but" if raised else f"no interrupt in {limit:g} s, and"
        ended = status == Status.DONE
        return DeviceTimeoutError(
            f"task {self.task.name!r}: {seen} STATUS is {_flags(status)}; {self.read('RETIRED')} of {retiring} "
            f"instructions have retired in {self.read('CYCLES'):,} cycles",
            where=self.link.name,
            mend="see that the interrupt line is connected" if ended else "allow more time, or reset the machine",
        )


def _flags(status: Status) -> str:
    """STATUS in words."""
    return "|".join(flag.name or "" for flag in Status if flag & status) or "0"


def _version(version: int) -> str:
    return f"{version >> MAJOR}.{version & (1 << MAJOR) - 1}"
