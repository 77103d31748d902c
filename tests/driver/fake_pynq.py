"""PYNQ's interface in front of a simulated machine, as strict as the real one, and with caches that must be flushed."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from moevit.config import AcceleratorConfig
from moevit.sim.device import RtlLink

WAIT_CYCLES = 5000


class FakeBuffer(np.ndarray):
    """The processor's copy of a buffer; the machine's is behind the link."""

    behind: Any

    @property
    def device_address(self) -> int:
        return int(self.behind.address)

    def flush(self) -> None:
        self.behind.write(self.tobytes())

    def invalidate(self) -> None:
        self[:] = np.frombuffer(self.behind.read(self.nbytes), np.uint8)

    def freebuffer(self) -> None:
        self.behind.free()


class FakePynq:
    """What `import pynq` gives: one overlay, whose machine is simulated.

    calls : what was asked for, in order
    connected : whether the interrupt wakes anybody
    free : bytes of contiguous memory
    """

    def __init__(self, config: AcceleratorConfig, address: int, size: int) -> None:
        self.link = RtlLink(config)
        self.address, self.size = address, size
        self.calls: list[str] = []
        self.pins = {"moevit/irq": {"controller": "", "index": 0}}
        self.connected = True
        self.free = 1 << 28
        self.refused: Exception | None = None
        self.Clocks = type("Clocks", (), {"fclk0_mhz": 99.999001})

    def Overlay(self, bitfile_name: str) -> Any:
        assert Path(bitfile_name).is_file() and Path(bitfile_name).with_suffix(".hwh").is_file()
        self.calls.append("Overlay")
        if self.refused is not None:
            raise self.refused
        return type("Overlay", (), {"interrupt_pins": self.pins})()

    def MMIO(self, base_addr: int, length: int) -> "FakeMmio":
        assert (base_addr, length) == (self.address, self.size)
        return FakeMmio(self.link, length)

    def allocate(self, shape: tuple[int, ...], dtype: type) -> FakeBuffer:
        (size,) = shape
        if size > self.free:
            raise RuntimeError("Failed to allocate Memory!")
        buffer = np.full(size, 0xEE, dtype).view(FakeBuffer)
        buffer.behind = self.link.allocate(size)
        self.calls.append("allocate")
        return buffer

    def Interrupt(self, pinname: str) -> "FakeInterrupt":
        assert pinname in self.pins
        return FakeInterrupt(self)


class FakeMmio:
    """As `pynq.MMIO`: whole words inside the range, and plain ints only."""

    def __init__(self, link: RtlLink, length: int) -> None:
        self._link, self._length = link, length

    def read(self, offset: int = 0) -> int:
        assert offset % 4 == 0 and 0 <= offset < self._length
        return self._link.read(offset)

    def write(self, offset: int, data: int) -> None:
        assert offset % 4 == 0 and 0 <= offset < self._length and type(data) is int
        self._link.write(offset, data)


class FakeInterrupt:
    """As `pynq.Interrupt`: made for the loop that is current, and a coroutine waits for it."""

    def __init__(self, pynq: FakePynq) -> None:
        self._pynq = pynq
        self._loop = asyncio.get_event_loop()

    async def wait(self) -> None:
        assert asyncio.get_running_loop() is self._loop
        self._pynq.calls.append("wait")
        while not (self._pynq.link.request(b"i", WAIT_CYCLES) and self._pynq.connected):
            await asyncio.sleep(0)
