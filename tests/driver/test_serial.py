"""The serial link on a board that is a few lines of Python: lost and damaged bytes, refusals, wrong boards."""

import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moevit import frames
from moevit.driver.serial import SerialLink, open_port
from moevit.errors import DeviceError, DeviceTimeoutError, ToolError, WrongBitstreamError
from moevit.frames import Info, Space, Status
from moevit.registers import OFFSETS

MEMORY_BYTES = 4096


class Board:
    """A port with a board that takes frames as the gateware does, and a line that damages bytes.

    rate : of bytes that are lost or damaged, in both directions
    """

    def __init__(self, rate: float = 0.0, protocol: int = frames.PROTOCOL) -> None:
        self.timeout: float | None = None
        self.rate, self.rng, self.damaged, self.closed = rate, random.Random(1), 0, False
        self.info = {Info.PROTOCOL: protocol, Info.MEMORY_BYTES: MEMORY_BYTES, Info.CLOCK_HZ: 1}
        self.memory = bytearray(MEMORY_BYTES)
        self.registers = dict.fromkeys(OFFSETS.values(), 0)
        self.writes: list[tuple[int, int]] = []
        self.received, self.sent, self.lost = b"", b"", False
        self.last: tuple[int, Status] | None = None

    def line(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            draw = self.rng.random()
            self.damaged += draw < self.rate
            if draw >= self.rate / 2:
                out.append(byte ^ (1 << self.rng.randrange(8) if draw < self.rate else 0))
        return bytes(out)

    def write(self, data: bytes) -> int:
        if not self.lost:
            self.received += self.line(data)
            self.work()
        return len(data)

    def read(self, size: int = 1) -> bytes:
        data, self.sent = self.sent[:size], self.sent[size:]
        return data

    def reset_input_buffer(self) -> None:
        """The driver does this when the line has been idle for a while."""
        self.sent, self.received, self.lost = b"", b"", False

    def close(self) -> None:
        self.closed = True

    def work(self) -> None:
        """Do what a whole frame says."""
        head = 1 + frames.REQUEST_HEADER.size
        start = self.received.find(frames.SYNC_REQUEST)
        self.received = self.received[start:] if start >= 0 else b""
        if len(self.received) < head:
            return
        sequence, operation, count, address = frames.REQUEST_HEADER.unpack_from(self.received, 1)
        write, space = operation & 1, operation >> 1
        end = head + write * count * 4
        if not 1 <= count <= frames.MAX_WORDS:
            self.lost = True
            return
        if len(self.received) < end + frames.CRC_BYTES:
            return
        body, check = self.received[1:end], self.received[end : end + frames.CRC_BYTES]
        self.received = self.received[end + frames.CRC_BYTES :]
        if frames.crc(body) != int.from_bytes(check, "big"):
            self.lost = True
            return
        words: list[int] = []
        if write and self.last is not None and self.last[0] == sequence:
            status = self.last[1]
        else:
            data = struct.unpack_from(f"<{count}I", body, frames.REQUEST_HEADER.size) if write else (None,) * count
            status = self.access(space, address, data, words)
            self.last = sequence, status
        words = words if status == Status.OK else []
        answer = frames.ANSWER_HEADER.pack(sequence, status, len(words)) + struct.pack(f"<{len(words)}I", *words)
        frame = bytes([frames.SYNC_ANSWER]) + answer + frames.crc(answer).to_bytes(frames.CRC_BYTES, "big")
        self.sent += self.line(frame)

    def access(self, space: int, address: int, data: tuple[int | None, ...], words: list[int]) -> Status:
        for value in data:
            if space == Space.INFO:
                words.append(self.info[Info(address // 4)])
            elif space == Space.MEMORY:
                if address >= MEMORY_BYTES:
                    return Status.BUS
                if value is None:
                    words.append(int.from_bytes(self.memory[address : address + 4], "little"))
                else:
                    self.memory[address : address + 4] = value.to_bytes(4, "little")
            else:
                if address not in self.registers:
                    return Status.BUS
                if value is None:
                    words.append(self.registers[address])
                else:
                    self.registers[address] = value
                    self.writes.append((address, value))
            address += 4
        return Status.OK


def test_a_bad_line_costs_time_only() -> None:
    board = Board()
    link = SerialLink(board, quiet_s=0)
    board.rate = 0.0005
    rng = random.Random(0)
    image = bytearray(MEMORY_BYTES)
    written = []
    for _ in range(300):
        size = rng.randrange(1, 600)
        address = rng.randrange(MEMORY_BYTES - size)
        image[address : address + size] = data = rng.randbytes(size)
        link.write_memory(address, data)
        assert link.read_memory(address, size) == data
        written.append((OFFSETS["PROGRAM"], rng.getrandbits(32)))
        link.write(*written[-1])
    assert board.memory == image
    assert board.damaged > 50
    assert board.writes == written, "each once, in order, although answers were lost"


def test_nobody_there() -> None:
    board = Board(rate=1.0)
    with pytest.raises(DeviceTimeoutError, match="serial: no answer to 8 requests; load the bitstream"):
        SerialLink(board, quiet_s=0)
    assert board.closed


def test_another_protocol() -> None:
    board = Board(protocol=frames.PROTOCOL + (1 << 16))
    with pytest.raises(WrongBitstreamError, match="the board speaks protocol 0x20000, this driver 0x10000"):
        SerialLink(board)
    assert board.closed
    SerialLink(Board(protocol=frames.PROTOCOL + 1))  # a newer minor version understands the same requests


def test_refusals() -> None:
    link = SerialLink(Board())
    actions: list[tuple[str, Callable[[], object]]] = [
        ("refuses to read registers at 0xffc: BUS", lambda: link.read(0xFFC)),
        ("refuses to write registers at 0xffc: BUS", lambda: link.write(0xFFC, 0)),
        ("refuses to read memory at 0x1000: BUS", lambda: link.read_memory(MEMORY_BYTES, 1)),
        ("no room for a buffer of 8,192 bytes", lambda: link.allocate(2 * MEMORY_BYTES)),
    ]
    for message, action in actions:
        with pytest.raises(DeviceError, match=message):
            action()
    buffer = link.allocate(MEMORY_BYTES)
    buffer.free()
    buffer.free()
    assert link.allocate(MEMORY_BYTES).address == 0


def test_waiting() -> None:
    board = Board()
    link = SerialLink(board)
    assert not link.wait(0.01)
    board.registers[OFFSETS["INTERRUPT_STATUS"]] = 2
    assert not link.wait(0.01)
    board.registers[OFFSETS["INTERRUPT_ENABLE"]] = 3
    assert link.wait(1)


def test_ports_that_do_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="nothing: the port does not open"):
        open_port(str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(ToolError, match=r"pyserial was not found; install it with `pip install 'moevit\[serial\]'`"):
        open_port("/dev/ttyUSB0")


def test_frames() -> None:
    for words in (1, frames.MAX_WORDS):
        assert len(frames.request(0, Space.MEMORY, 0, words)) == 1 + frames.REQUEST_HEADER.size + frames.CRC_BYTES
    for wrong in (0, frames.MAX_WORDS + 1, (), (0,) * (frames.MAX_WORDS + 1)):
        with pytest.raises(ValueError, match="a frame has 1 … 64 words"):
            frames.request(0, Space.MEMORY, 0, wrong)
    assert frames.crc(b"123456789") == 0x29B1  # the check value of CRC-16/CCITT-FALSE
