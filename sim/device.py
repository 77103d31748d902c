"""The RTL simulation as a device: the driver's link to a live verilated machine, by its registers and its memory."""

import contextlib
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from moevit.config import AcceleratorConfig
from moevit.driver.arena import Arena
from moevit.driver.link import Buffer, Link
from moevit.errors import DeviceError, SimulationError
from moevit.sim import verilate
from moevit.sim.dram import DramModel

MEMORY_BYTES = 1 << 30  #: what buffers may take together; only what is allocated takes memory of the host
#: where buffers begin: above 4 GB where the bus reaches, so that the upper halves of the addresses count too, and not
#: at a page, so that bursts have boundaries to stop at
MEMORY_BASE = 0x1_4000_07C0
MEMORY_BASE_32 = 0x4000_07C0
WAIT_CYCLES = 20_000  #: between two looks at the clock
CLOSE_TIMEOUT_S = 10.0

_REQUEST = struct.Struct("<cQQ")  # as sim/rtl/serve.h says
_ANSWER = struct.Struct("<BQ")


class RtlBuffer(Buffer):
    """Memory behind the machine's ports. Whatever lies in no buffer answers DECERR."""

    def __init__(self, link: "RtlLink", address: int, size: int) -> None:
        self.address, self.size, self._link = address, size, link
        self._freed = False

    def write(self, data: bytes, offset: int = 0) -> None:
        """See the base class. Raises SimulationError for bytes outside the buffer."""
        self._link.request(b"W", self.address + offset, len(data), data)

    def read(self, size: int, offset: int = 0) -> bytes:
        """See the base class. Raises SimulationError for bytes outside the buffer."""
        return self._link.request_data(b"R", self.address + offset, size)

    def free(self) -> None:
        """See the base class."""
        if not self._freed:
            self._freed = True
            self._link.unmap(self.address)


class RtlLink(Link):
    """A machine that is simulated as long as the link is open; it stands still between two requests.

    Parameters
    ----------
    config : the machine
    dram : the memory model; the configuration's default when None
    executable : the simulation to use instead of the configuration's
    announce : told when something is being built

    Raises
    ------
    ToolError : the simulation cannot be built
    """

    timeout_s = 600.0

    def __init__(
        self, config: AcceleratorConfig, *, dram: DramModel | None = None, executable: Path | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.name = "rtl"
        self.config = config
        self.dram = dram or DramModel.default(config)
        if executable is None:
            executable = verilate.build(config) if announce is None else verilate.build(config, announce=announce)
        base = MEMORY_BASE if config.axi_address_width >= 33 else MEMORY_BASE_32
        self._arena = Arena(base, MEMORY_BYTES, self.name)
        self._folder = tempfile.TemporaryDirectory(prefix="moevit-device-")
        job = Path(self._folder.name) / "job"
        job.write_text(
            f"task 0 0\nbytes_per_cycle {self.dram.bytes_per_cycle}\nlatency {self.dram.latency_cycles}\n"
            f"outstanding {self.dram.outstanding_bursts}\nseed {self.dram.seed or 0}\n"
        )
        self._errors: IO[str] = open(job.with_name("errors"), "w+")  # noqa: SIM115 - closed with the link
        self._process = subprocess.Popen(
            [executable, "--serve", job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    # The link -----------------------------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """See the base class. Raises SimulationError for a register that cannot be read."""
        return self.request(b"r", offset)

    def write(self, offset: int, value: int) -> None:
        """See the base class. Raises SimulationError for a value that the register refuses."""
        self.request(b"w", offset, value)

    def allocate(self, size: int) -> Buffer:
        """See the base class."""
        address = self._arena.take(size)
        self.request(b"m", address, size)
        return RtlBuffer(self, address, size)

    def wait(self, timeout_s: float) -> bool:
        """See the base class; the time is the simulation's own, by the wall clock, and is looked at now and then."""
        limit = time.monotonic() + timeout_s
        while not self.request(b"i", WAIT_CYCLES):
            if time.monotonic() >= limit:
                return False
        return True

    def close(self) -> None:
        """See the base class."""
        process = self._process
        if process.poll() is None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # which ends it
            try:
                process.wait(CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()
        self._folder.cleanup()

    # What only a simulation can do --------------------------------------------------------------------------------

    @property
    def cycles(self) -> int:
        """Cycles since power-up."""
        return self.request(b"c")

    def fault(self, address: int, size: int) -> None:
        """From now on, let ``size`` bytes at ``address`` answer SLVERR; none when 0."""
        self.request(b"f", address, size)

    def unmap(self, address: int) -> None:
        """Give up a buffer."""
        if self._process.poll() is None:
            self.request(b"u", address)
        self._arena.free(address)

    def request(self, operation: bytes, a: int = 0, b: int = 0, data: bytes = b"") -> int:
        """One request of sim/rtl/serve.h, with its numbers; the number that is answered."""
        self._send(operation, a, b, data)
        return self._receive()

    def request_data(self, operation: bytes, a: int, b: int) -> bytes:
        """As :meth:`request`, for one that is answered with data."""
        self._send(operation, a, b)
        return self._take(self._receive())

    def _send(self, operation: bytes, a: int, b: int, data: bytes = b"") -> None:
        if self._errors.closed:
            raise DeviceError("the link is closed", where=self.name)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_REQUEST.pack(operation, a, b) + data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _receive(self) -> int:
        failed, value = _ANSWER.unpack(self._take(_ANSWER.size))
        if failed:
            raise SimulationError(self._take(value).decode(), where=self.name)
        return int(value)

    def _take(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._ended()
        return data

    def _ended(self) -> SimulationError:
        """The simulation is gone: why."""
        status = self._process.wait()
        self._errors.seek(0)
        reason = " ".join(self._errors.read().split()) or f"exit status {status}"
        return SimulationError(f"the simulation failed: {reason}", where=self.name)
