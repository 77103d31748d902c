"""A board behind a serial line: its registers and memory in the frames of :mod:`moevit.frames`."""

import struct
import time
from typing import Protocol

from moevit import frames
from moevit.driver.arena import Arena
from moevit.driver.link import ALIGNMENT, Buffer, Link
from moevit.errors import DeviceError, DevicePermissionError, DeviceTimeoutError, ToolError, WrongBitstreamError
from moevit.frames import Info, Space, Status
from moevit.registers import OFFSETS

BAUD = 2_000_000  #: of every board that is built here
ATTEMPTS = 8  #: how often a request is sent before the board counts as dead
ANSWER_TIMEOUT_S = 0.25  #: for the whole of an answer; the longest takes 1.5 ms at 2 Mbaud
QUIET_S = 0.05  #: without a byte, after which the board looks for a new frame and nothing of an old answer is left
INSTALL = "pip install 'moevit[serial]'"

_FRAME_BYTES = frames.MAX_WORDS * frames.WORD_BYTES
_MAJOR = 16


class Port(Protocol):
    """What is used of a serial port, as pyserial has it."""

    timeout: float | None

    def write(self, data: bytes, /) -> int | None: ...
    def read(self, size: int = 1, /) -> bytes: ...
    def reset_input_buffer(self) -> None: ...
    def close(self) -> None: ...


def open_port(path: str, baud: int = BAUD) -> Port:
    """A serial port of this computer.

    Raises
    ------
    ToolError : pyserial is missing
    DevicePermissionError : the system does not let this user at it
    DeviceError : there is no such port, or it is in use
    """
    try:
        import serial
    except ModuleNotFoundError as error:
        raise ToolError("pyserial was not found", mend=f"install it with `{INSTALL}`") from error
    try:
        port: Port = serial.Serial(path, baud, timeout=ANSWER_TIMEOUT_S, exclusive=True)
    except (serial.SerialException, OSError, ValueError) as error:
        if getattr(error, "errno", None) == 13:
            mend = "add yourself to the group that owns it (often dialout), and log in again"
            raise DevicePermissionError("no permission to open the port", where=path, mend=mend) from error
        mend = "see that the board is plugged in, and that no other program has the port"
        raise DeviceError(f"the port does not open: {error}", where=path, mend=mend) from error
    return port


class SerialBuffer(Buffer):
    """Bytes of the board's memory."""

    def __init__(self, link: "SerialLink", address: int, size: int) -> None:
        self.address, self.size, self._link = address, size, link
        self._freed = False

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            raise DeviceError(f"bytes {offset} … {offset + size} of a buffer of {self.size}", where=self._link.name)

    def write(self, data: bytes, offset: int = 0) -> None:
        """See the base class. Raises DeviceError for bytes outside the buffer."""
        self._check(offset, len(data))
        self._link.write_memory(self.address + offset, data)

    def read(self, size: int, offset: int = 0) -> bytes:
        """See the base class. Raises DeviceError for bytes outside the buffer."""
        self._check(offset, size)
        return self._link.read_memory(self.address + offset, size)

    def free(self) -> None:
        """See the base class."""
        if not self._freed:
            self._freed = True
            self._link.arena.free(self.address)


class SerialLink(Link):
    """A machine on a board with a serial line.

    Parameters
    ----------
    port : an open serial port, or the path of one; closed with the link
    name : for messages
    answer_timeout_s, quiet_s : see ANSWER_TIMEOUT_S and QUIET_S

    Raises
    ------
    DeviceTimeoutError : nothing answers
    WrongBitstreamError : the board has another version of the protocol
    DeviceError, ToolError : the port cannot be opened
    """

    def __init__(
        self,
        port: Port | str,
        *,
        name: str | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.name = name or (f"serial:{port}" if isinstance(port, str) else "serial")
        self.quiet_s = quiet_s
        self._port = open_port(port) if isinstance(port, str) else port
        self._port.timeout = answer_timeout_s
        self._sequence = 0
        try:
            protocol, memory_bytes, clock_hz = self._ask(Space.INFO, 0, len(Info))
            if protocol >> _MAJOR != frames.PROTOCOL >> _MAJOR:
                raise WrongBitstreamError(
                    f"the board speaks protocol {protocol:#x}, this driver {frames.PROTOCOL:#x}", where=self.name,
                    mend="build the bitstream again with this moevit",
                )  # fmt: skip
        except BaseException:
            self._port.close()
            raise
        self.clock_hz = clock_hz
        self.arena = Arena(0, memory_bytes, self.name)

    # What a link does ---------------------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """See the base class. Raises DeviceError if the machine refuses it."""
        return self._ask(Space.REGISTERS, offset, 1)[0]

    def write(self, offset: int, value: int) -> None:
        """See the base class. Raises DeviceError if the machine refuses it."""
        self._ask(Space.REGISTERS, offset, (value,))

    def allocate(self, size: int) -> Buffer:
        """See the base class."""
        return SerialBuffer(self, self.arena.take(-(-size // ALIGNMENT) * ALIGNMENT), size)

    def wait(self, timeout_s: float) -> bool:
        """See the base class: asks, as the line has no interrupt."""
        limit = time.monotonic() + timeout_s
        while not self.read(OFFSETS["INTERRUPT_STATUS"]) & self.read(OFFSETS["INTERRUPT_ENABLE"]):
            if time.monotonic() > limit:
                return False
        return True

    def close(self) -> None:
        """See the base class."""
        self._port.close()

    # Memory -------------------------------------------------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the board's memory."""
        first = address - address % frames.WORD_BYTES
        data = bytearray()
        while len(data) < address - first + size:
            left = address - first + size - len(data)
            count = min(frames.MAX_WORDS, -(-left // frames.WORD_BYTES))
            data += struct.pack(f"<{count}I", *self._ask(Space.MEMORY, first + len(data), count))
        return bytes(data[address - first : address - first + size])

    def write_memory(self, address: int, data: bytes) -> None:
        """Write bytes of the board's memory; of a word that is written in part, the rest stays."""
        before, after = address % frames.WORD_BYTES, -(address + len(data)) % frames.WORD_BYTES
        if before:
            data = self.read_memory(address - before, before) + data
        if after:
            data += self.read_memory(address - before + len(data), after)
        for at in range(0, len(data), _FRAME_BYTES):
            part = data[at : at + _FRAME_BYTES]
            self._ask(Space.MEMORY, address - before + at, struct.unpack(f"<{len(part) // frames.WORD_BYTES}I", part))

    # Frames -------------------------------------------------------------------------------------------------------

    def _ask(self, space: Space, address: int, words: int | tuple[int, ...]) -> tuple[int, ...]:
        """Send a request until its answer comes; the words that were read."""
        self._sequence = (self._sequence + 1) & 0xFF
        wanted = words if isinstance(words, int) else 0
        frame = frames.request(self._sequence, space, address, words)
        for attempt in range(ATTEMPTS):
            if attempt:
                self._settle()
            self._port.write(frame)
            answer = self._answer()
            if answer is None or answer.sequence != self._sequence:
                continue
            if answer.status != Status.OK:
                what = "read" if isinstance(words, int) else "write"
                raise DeviceError(
                    f"the board refuses to {what} {space.name.lower()} at 0x{address:x}: {answer.status.name}",
                    where=self.name,
                )
            if len(answer.words) == wanted:
                return answer.words
        raise DeviceTimeoutError(
            f"no answer to {ATTEMPTS} requests", where=self.name,
            mend="load the bitstream, and see that this is the board's port",
        )  # fmt: skip

    def _answer(self) -> frames.Answer | None:
        """The next answer; None if none comes or it is damaged."""
        while (first := self._port.read(1)) != bytes([frames.SYNC_ANSWER]):
            if not first:
                return None
        head = first + self._port.read(frames.ANSWER_HEADER.size)
        if len(head) != 1 + frames.ANSWER_HEADER.size:
            return None
        size = frames.answer_bytes(head) - len(head)
        rest = self._port.read(size)
        return frames.parse_answer(head + rest) if len(rest) == size else None

    def _settle(self) -> None:
        """Wait until the board has given up what it had of a frame, and forget what it has sent."""
        time.sleep(self.quiet_s)
        self._port.reset_input_buffer()
