"""The memory behind the machine's ports: buffers between guard bytes, latencies, and error responses."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import cocotb
from cocotb.queue import Queue
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiReadBus, AxiResp, AxiWriteBus
from cocotbext.axi.axi_channels import AxiARSink, AxiAWSink, AxiBSource, AxiRSource, AxiWSink

from moevit.config import AcceleratorConfig
from system.monitor import Monitor

GUARD = 0xA5
GUARD_BYTES = 256


@dataclass
class Buffer:
    """``size`` bytes from ``base``; ``data`` has GUARD_BYTES more on both sides."""

    name: str
    base: int
    size: int
    data: bytearray
    writable: bool

    @property
    def content(self) -> bytes:
        return bytes(self.data[GUARD_BYTES : GUARD_BYTES + self.size])

    def guards_intact(self) -> bool:
        guards = self.data[:GUARD_BYTES] + self.data[GUARD_BYTES + self.size :]
        return guards == bytes([GUARD]) * len(guards)


@dataclass
class Fault:
    """Accesses of a port to ``first`` … ``end - 1`` are answered with ``resp``."""

    port: str
    write: bool
    first: int
    end: int
    resp: AxiResp
    hits: int = 0

    def covers(self, port: str, write: bool, addr: int, size: int) -> bool:
        return (port, write) == (self.port, self.write) and addr < self.end and addr + size > self.first


class Memory:
    """What all ports share. Accesses that no buffer allows are violations, which the monitor records."""

    def __init__(self, config: AcceleratorConfig, monitor: Monitor) -> None:
        self.config, self.monitor = config, monitor
        self.buffers: dict[str, Buffer] = {}
        self.faults: list[Fault] = []
        self.reads = 0
        self.writes = 0

    def place(self, name: str, base: int, content: bytes, *, writable: bool = False) -> Buffer:
        guard = bytes([GUARD]) * GUARD_BYTES
        self.buffers[name] = Buffer(name, base, len(content), bytearray(guard + content + guard), writable)
        return self.buffers[name]

    def guards_intact(self) -> bool:
        return all(buffer.guards_intact() for buffer in self.buffers.values())

    def _fault(self, port: str, write: bool, addr: int, size: int) -> AxiResp:
        for fault in self.faults:
            if fault.covers(port, write, addr, size):
                fault.hits += 1
                return fault.resp
        return AxiResp.OKAY

    def read(self, port: str, addr: int) -> tuple[int, AxiResp]:
        """One bus word. A word of which a buffer has any byte may be read; the rest of it is guard bytes."""
        size = self.config.axi_bytes
        self.reads += 1
        for buffer in self.buffers.values():
            if buffer.base - size < addr < buffer.base + buffer.size:
                start = addr - buffer.base + GUARD_BYTES
                data = int.from_bytes(buffer.data[start : start + size], "little")
                return data, self._fault(port, False, addr, size)
        self.monitor.violate(f"{port}: read at {addr:#x} is outside every buffer")
        return 0, AxiResp.DECERR

    def write(self, port: str, addr: int, data: int, strobe: int) -> AxiResp:
        """One bus word; every byte that is written must lie in a writable buffer."""
        size = self.config.axi_bytes
        self.writes += 1
        resp = self._fault(port, True, addr, size)
        for i, value in enumerate(data.to_bytes(size, "little")):
            if strobe >> i & 1:
                self._write_byte(port, addr + i, value if resp == AxiResp.OKAY else None)
        return resp

    def _write_byte(self, port: str, addr: int, value: int | None) -> None:
        for buffer in self.buffers.values():
            if buffer.writable and buffer.base <= addr < buffer.base + buffer.size:
                if value is not None:
                    buffer.data[addr - buffer.base + GUARD_BYTES] = value
                return
        self.monitor.violate(f"{port}: write at {addr:#x} is outside the output buffer")


@dataclass
class Stalls:
    """How slow the memory and the host are; each channel draws its own habit."""

    rng: random.Random
    none: bool = False

    def generator(self) -> Iterator[bool] | None:
        """Pauses of a channel: never, now and then, mostly, or in long runs."""
        habit = None if self.none else self.rng.choice(["never", "some", "most", "runs", "runs"])
        if habit in (None, "never"):
            return None
        return self._runs() if habit == "runs" else self._each(0.25 if habit == "some" else 0.75)

    def _each(self, probability: float) -> Iterator[bool]:
        while True:
            yield self.rng.random() < probability

    def _runs(self) -> Iterator[bool]:
        pause = False
        while True:
            for _ in range(self.rng.randint(1, 60 if pause else 100)):
                yield pause
            pause = not pause

    def latency(self) -> int:
        """Cycles from a burst's acceptance to its first answer."""
        return 0 if self.none else self.rng.choice([0, 0, 1, 3, 10, 40, 120])

    def accepted(self) -> int:
        """Addresses that a port takes ahead of answering them."""
        return 32 if self.none else self.rng.choice([1, 2, 4, 32])


class Ahead:
    """Address channel with a queue: bursts are answered in order, each a while after it was accepted."""

    def __init__(self, sink, memory: Memory, stalls: Stalls) -> None:
        self.sink, self.memory, self.stalls = sink, memory, stalls
        self.queue: Queue = Queue()
        sink.queue_occupancy_limit = 1
        self.resume()
        cocotb.start_soon(self._stamp())

    def resume(self) -> None:
        """Take another number of bursts ahead."""
        self.room = self.stalls.accepted()

    async def _stamp(self) -> None:
        while True:
            while self.queue.qsize() >= self.room:
                await RisingEdge(self.sink.clock)
            transaction = await self.sink.recv()
            await self.queue.put((transaction, self.memory.monitor.cycle + self.stalls.latency()))

    async def next(self):
        """The next burst, when its time has come."""
        transaction, due = await self.queue.get()
        while self.memory.monitor.cycle < due:
            await RisingEdge(self.sink.clock)
        return transaction


class ReadSlave:
    """Answers a port's reads."""

    def __init__(self, name: str, bus: AxiReadBus, clock, memory: Memory, stalls: Stalls) -> None:
        self.name, self.memory = name, memory
        self.ar, self.r = AxiARSink(bus.ar, clock), AxiRSource(bus.r, clock)
        self.r.queue_occupancy_limit = 2
        self.ahead = Ahead(self.ar, memory, stalls)
        self.channels = [self.ar, self.r]
        cocotb.start_soon(self._answer())

    async def _answer(self) -> None:
        while True:
            request = await self.ahead.next()
            addr, beats = int(request.araddr), int(request.arlen) + 1
            for beat in range(beats):
                answer = self.r._transaction_obj()
                data, resp = self.memory.read(self.name, addr + beat * self.memory.config.axi_bytes)
                answer.rid, answer.rdata, answer.rresp, answer.rlast = (
                    int(request.arid),
                    data,
                    resp,
                    beat == beats - 1,
                )
                await self.r.send(answer)


class WriteSlave:
    """Answers a port's writes."""

    def __init__(self, name: str, bus: AxiWriteBus, clock, memory: Memory, stalls: Stalls) -> None:
        self.name, self.memory, self.stalls, self.clock = name, memory, stalls, clock
        self.aw, self.w, self.b = AxiAWSink(bus.aw, clock), AxiWSink(bus.w, clock), AxiBSource(bus.b, clock)
        self.w.queue_occupancy_limit = 4
        self.b.queue_occupancy_limit = 8
        self.ahead = Ahead(self.aw, memory, stalls)
        self.channels = [self.aw, self.w, self.b]
        cocotb.start_soon(self._answer())

    async def _answer(self) -> None:
        while True:
            request = await self.ahead.next()
            addr, beats = int(request.awaddr), int(request.awlen) + 1
            answer = self.b._transaction_obj()
            answer.bid, answer.bresp = int(request.awid), AxiResp.OKAY
            for beat in range(beats):
                word = await self.w.recv()
                place = addr + beat * self.memory.config.axi_bytes
                resp = self.memory.write(self.name, place, int(word.wdata), int(word.wstrb))
                answer.bresp = max(answer.bresp, resp)
            await self.b.send(answer)
