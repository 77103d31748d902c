"""AXI4 memory for Amaranth's simulator: random latency and stalls, error responses, protocol checks."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class AxiMemory:
    """Bytes that any number of ports read and write, from ``base``.

    Every port checks its master: bursts are INCR, aligned to the bus word, at most 16 beats and inside one
    4 KB page and the memory; a valid that waits stays, with its payload. ``reads`` and ``writes`` log
    (address, beats).
    """

    size: int
    base: int = 0
    seed: int = 0
    latency: int = 8  #: cycles from an accepted address to its first beat or response
    jitter: int = 0  #: up to so many more
    address_stall: float = 0.0  #: probability that a cycle is not ready for an address
    data_stall: float = 0.0  #: ... that a cycle brings no read data, or takes no write data
    read_errors: set[int] = field(default_factory=set)  #: addresses of bus words that answer SLVERR
    write_errors: set[int] = field(default_factory=set)  #: addresses of bursts that answer DECERR
    frozen: bool = False  #: accepts no address, for as long as it is set

    def __post_init__(self) -> None:
        self.bytes = bytearray(random.Random(self.seed).randbytes(self.size))
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.outstanding = 0  #: bursts accepted and not yet answered in full

    def _check_address(self, addr: int, length: int, size: int, burst: int, bus_bytes: int) -> None:
        beats = length + 1
        assert (1 << size, burst) == (bus_bytes, 1)
        assert beats <= 16
        assert addr % bus_bytes == 0, f"unaligned {addr:#x}"
        end = addr + beats * bus_bytes
        assert addr // 4096 == (end - 1) // 4096, f"burst {addr:#x} + {beats} crosses 4 KB"
        assert self.base <= addr < end <= self.base + self.size, f"outside: {addr:#x}"

    def _due(self, cycle: int, rng: random.Random) -> int:
        return cycle + self.latency + rng.randint(0, self.jitter)

    def read_port(self, axi: Any, seed: int = 1) -> Any:
        """The process that answers ``axi``, an AxiReadSignature."""

        async def process(ctx: Any) -> None:
            rng = random.Random(seed)
            bus_bytes = len(axi.rdata) // 8
            bursts: deque[list[int]] = deque()  # due, address, beats left
            waiting = None
            cycle = arready = rvalid = rlast = 0
            address = (axi.araddr, axi.arlen, axi.arsize, axi.arburst)
            while True:
                _, _, arvalid, addr, length, size, burst, rready = await ctx.tick().sample(
                    axi.arvalid, *address, axi.rready
                )
                cycle += 1
                assert rready, "rready fell"
                if waiting is not None:
                    assert (arvalid, *waiting) == (1, addr, length), "an address changed while it waited"
                waiting = (addr, length) if arvalid and not arready else None
                if rvalid and rlast:
                    self.outstanding -= 1
                if arvalid and arready:
                    self._check_address(addr, length, size, burst, bus_bytes)
                    self.reads.append((addr, length + 1))
                    bursts.append([self._due(cycle, rng), addr, length + 1])
                    self.outstanding += 1
                arready = int(not self.frozen and rng.random() >= self.address_stall)
                rvalid = int(bool(bursts) and bursts[0][0] <= cycle and rng.random() >= self.data_stall)
                ctx.set(axi.arready, arready)
                ctx.set(axi.rvalid, rvalid)
                if rvalid:
                    _, addr, left = bursts[0]
                    offset = addr - self.base
                    rlast = int(left == 1)
                    ctx.set(axi.rdata, int.from_bytes(self.bytes[offset : offset + bus_bytes], "little"))
                    ctx.set(axi.rresp, 2 if addr in self.read_errors else 0)
                    ctx.set(axi.rlast, rlast)
                    bursts[0][1:] = addr + bus_bytes, left - 1
                    if rlast:
                        bursts.popleft()
                else:
                    ctx.set(axi.rdata, rng.getrandbits(8 * bus_bytes))
                    ctx.set(axi.rlast, rng.getrandbits(1))

        return process

    def write_port(self, axi: Any, seed: int = 2) -> Any:
        """The process that answers ``axi``, an AxiWriteSignature. It takes data only after the address."""

        async def process(ctx: Any) -> None:
            rng = random.Random(seed)
            bus_bytes = len(axi.wdata) // 8
            bursts: deque[list[int]] = deque()  # address, beats left, first address
            answers: deque[tuple[int, int]] = deque()  # due, response
            waiting = waiting_data = None
            cycle = awready = wready = bvalid = 0
            address = (axi.awaddr, axi.awlen, axi.awsize, axi.awburst)
            data = (axi.wdata, axi.wstrb, axi.wlast)
            while True:
                _, _, awvalid, addr, length, size, burst, wvalid, wdata, wstrb, wlast, bready = await (
                    ctx.tick().sample(axi.awvalid, *address, axi.wvalid, *data, axi.bready)
                )
                cycle += 1
                assert bready, "bready fell"
                if waiting is not None:
                    assert (awvalid, *waiting) == (1, addr, length), "an address changed while it waited"
                if waiting_data is not None:
                    assert (wvalid, *waiting_data) == (1, wdata, wstrb, wlast), "data changed while it waited"
                waiting = (addr, length) if awvalid and not awready else None
                waiting_data = (wdata, wstrb, wlast) if wvalid and not wready else None
                if bvalid:
                    self.outstanding -= 1
                if awvalid and awready:
                    self._check_address(addr, length, size, burst, bus_bytes)
                    self.writes.append((addr, length + 1))
                    bursts.append([addr, length + 1, addr])
                    self.outstanding += 1
                if wvalid and wready:
                    addr, left, first = bursts[0]
                    for i in range(bus_bytes):
                        if wstrb >> i & 1:
                            self.bytes[addr - self.base + i] = wdata >> 8 * i & 0xFF
                    assert wlast == (left == 1), "wlast"
                    bursts[0][:2] = addr + bus_bytes, left - 1
                    if wlast:
                        answers.append((self._due(cycle, rng), 3 if first in self.write_errors else 0))
                        bursts.popleft()
                awready = int(not self.frozen and rng.random() >= self.address_stall)
                wready = int(bool(bursts) and rng.random() >= self.data_stall)
                bvalid = int(bool(answers) and answers[0][0] <= cycle)
                ctx.set(axi.awready, awready)
                ctx.set(axi.wready, wready)
                ctx.set(axi.bvalid, bvalid)
                ctx.set(axi.bresp, answers.popleft()[1] if bvalid else rng.getrandbits(2))

        return process
