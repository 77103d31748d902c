"""The ULX3S' gateware in Amaranth's simulator: the line, the frames, the memory behind AXI4."""

import random
import struct
from collections import deque
from typing import Any

import pytest
from amaranth import Module, Signal
from amaranth.lib.wiring import connect

from hw import bench
from moevit import frames
from moevit.boards.ulx3s.gateware.clock import dividers
from moevit.boards.ulx3s.gateware.link import HostLink
from moevit.boards.ulx3s.gateware.memory import DECERR, OKAY, BlockMemory
from moevit.boards.ulx3s.gateware.uart import Receiver, Transmitter
from moevit.config import CONFIGS
from moevit.errors import ConfigError
from moevit.frames import Info, Space, Status, request

DIVISOR = 4
IDLE_BITS = 30
CONFIG = CONFIGS["ulx3s"]
MEMORY_BYTES = 512


async def send(ctx: Any, line: Any, data: bytes, divisor: int = DIVISOR, stop: int = 1) -> None:
    """Bytes on a line, one after the other."""
    for byte in data:
        for bit in [0, *(byte >> i & 1 for i in range(8)), stop]:
            ctx.set(line, bit)
            await ctx.tick().repeat(divisor)
    ctx.set(line, 1)


class Listener:
    """What is on a line, byte by byte; a stop bit that is low fails."""

    def __init__(self, line: Any, divisor: int = DIVISOR) -> None:
        self.line, self.divisor, self.bytes = line, divisor, deque[int]()

    async def run(self, ctx: Any) -> None:
        while True:
            while ctx.get(self.line):
                await ctx.tick()
            await ctx.tick().repeat(self.divisor + self.divisor // 2)
            byte = 0
            for i in range(8):
                byte |= ctx.get(self.line) << i
                await ctx.tick().repeat(self.divisor)
            assert ctx.get(self.line), "no stop bit"
            self.bytes.append(byte)

    async def take(self, ctx: Any, count: int) -> bytes:
        while len(self.bytes) < count:
            await ctx.tick()
        return bytes(self.bytes.popleft() for _ in range(count))

    async def answer(self, ctx: Any) -> frames.Answer:
        head = await self.take(ctx, 1 + frames.ANSWER_HEADER.size)
        rest = await self.take(ctx, frames.answer_bytes(head) - len(head))
        answer = frames.parse_answer(head + rest)
        assert answer is not None, (head + rest).hex()
        return answer


class Registers:
    """An AXI4-Lite slave of 32 words; the others are refused. Takes address and data when it likes."""

    def __init__(self, axil: Any, seed: int) -> None:
        self.axil, self.words, self.writes, self.rng = axil, [0] * 32, list[tuple[int, int]](), random.Random(seed)

    async def channel(self, ctx: Any, valid: Any, ready: Any, *signals: Any) -> list[int]:
        while not ctx.get(valid):
            await ctx.tick()
        await ctx.tick().repeat(self.rng.randrange(1, 4))
        values = [ctx.get(s) for s in signals]
        ctx.set(ready, 1)
        await ctx.tick()
        ctx.set(ready, 0)
        return values

    async def writer(self, ctx: Any) -> None:
        axil = self.axil
        while True:
            channels = [(axil.awvalid, axil.awready, axil.awaddr), (axil.wvalid, axil.wready, axil.wdata)]
            swapped = self.rng.random() < 0.5
            values = [await self.channel(ctx, *c) for c in (channels[::-1] if swapped else channels)]
            (address,), (data,) = values[::-1] if swapped else values
            self.writes.append((address, data))
            good = address < 128
            if good:
                self.words[address // 4] = data
            ctx.set(axil.bresp, 0 if good else 2)
            await self.respond(ctx, axil.bvalid, axil.bready)

    async def reader(self, ctx: Any) -> None:
        axil = self.axil
        while True:
            (address,) = await self.channel(ctx, axil.arvalid, axil.arready, axil.araddr)
            good = address < 128
            ctx.set(axil.rdata, self.words[address // 4] if good else 0xDEAD)
            ctx.set(axil.rresp, 0 if good else 2)
            await self.respond(ctx, axil.rvalid, axil.rready)

    async def respond(self, ctx: Any, valid: Any, ready: Any) -> None:
        await ctx.tick().repeat(self.rng.randrange(1, 4))
        ctx.set(valid, 1)
        await ctx.tick().until(ready)
        ctx.set(valid, 0)


class Bench:
    """A host link with registers and a memory behind it."""

    def __init__(self, seed: int = 0) -> None:
        self.dut = Module()
        info = {Info.PROTOCOL: frames.PROTOCOL, Info.MEMORY_BYTES: MEMORY_BYTES, Info.CLOCK_HZ: 50_000_000}
        self.dut.submodules.link = self.link = HostLink(DIVISOR, info, IDLE_BITS)
        self.dut.submodules.memory = memory = BlockMemory(CONFIG, MEMORY_BYTES, 1)
        connect(self.dut, self.link.memory, memory.host)
        self.line = Signal(init=1)
        self.dut.d.comb += self.link.rx.eq(self.line)
        self.listener = Listener(self.link.tx)
        self.registers = Registers(self.link.axil, seed)

    def run(self, process: Any, cycles: int = 100_000) -> None:
        background = (self.listener.run, self.registers.writer, self.registers.reader)
        bench.run(self.dut, process, background=background, timeout_cycles=cycles)

    async def ask(self, ctx: Any, sequence: int, space: Space, address: int, words: Any) -> frames.Answer:
        await send(ctx, self.line, request(sequence, space, address, words))
        answer = await self.listener.answer(ctx)
        assert answer.sequence == sequence
        return answer

    async def silent(self, ctx: Any) -> None:
        """Nothing is answered, and the link looks for a frame again."""
        await ctx.tick().repeat((IDLE_BITS + 2) * DIVISOR)
        assert not self.listener.bytes
        assert not ctx.get(self.link.active)


@pytest.mark.parametrize(("divisor", "drift"), [(4, 0), (5, 0), (25, 0), (25, -0.03), (25, 0.03)])
def test_line(divisor: int, drift: float) -> None:
    """All bytes go through the transmitter and, with a clock that is off by 3 %, into the receiver."""
    m = Module()
    m.submodules.receiver = receiver = Receiver(divisor)
    m.submodules.transmitter = transmitter = Transmitter(divisor)
    line = Signal(init=1)
    m.d.comb += receiver.line.eq(line)
    data = bytes(range(0, 256, 7)) + b"\x00\xff\x55\xaa"
    heard = Listener(transmitter.line, divisor)
    received: list[int] = []

    async def source(ctx: Any) -> None:
        await bench.put(ctx, transmitter.i_data, data)

    async def off(ctx: Any) -> None:
        edge = 0.0
        for byte in data:
            for bit in [0, *(byte >> i & 1 for i in range(8)), 1]:
                ctx.set(line, bit)
                until = edge + divisor * (1 + drift)
                await ctx.tick().repeat(round(until) - round(edge))
                edge = until
        await ctx.tick().repeat(2 * divisor + 8)

    async def watch(ctx: Any) -> None:
        while True:
            _, _, valid, value, broken = await ctx.tick().sample(receiver.valid, receiver.data, receiver.broken)
            assert not broken
            if valid:
                received.append(value)

    async def listen(ctx: Any) -> None:
        assert await heard.take(ctx, len(data)) == data

    bench.run(m, source, off, listen, background=(watch, heard.run), timeout_cycles=20_000)
    assert bytes(received) == data


def test_registers_and_memory() -> None:
    b = Bench()

    async def process(ctx: Any) -> None:
        info = await b.ask(ctx, 1, Space.INFO, 0, 3)
        assert info == frames.Answer(1, Status.OK, (frames.PROTOCOL, MEMORY_BYTES, 50_000_000))
        assert (await b.ask(ctx, 2, Space.REGISTERS, 8, (1, 0xFFFF_FFFF, 3))).status == Status.OK
        assert b.registers.words[1:6] == [0, 1, 0xFFFF_FFFF, 3, 0]
        assert (await b.ask(ctx, 3, Space.REGISTERS, 4, 4)).words == (0, 1, 0xFFFF_FFFF, 3)
        rng = random.Random(0)
        content = [rng.getrandbits(32) for _ in range(MEMORY_BYTES // 4)]
        for sequence, first in enumerate(range(0, len(content), frames.MAX_WORDS)):
            words = tuple(content[first : first + frames.MAX_WORDS])
            assert (await b.ask(ctx, 4 + sequence, Space.MEMORY, 4 * first, words)).status == Status.OK
        assert (await b.ask(ctx, 10, Space.MEMORY, 4 * 101, (7,))).status == Status.OK
        content[101] = 7
        for first in (0, 64):
            answer = await b.ask(ctx, 11 + first, Space.MEMORY, 4 * first, 64)
            assert answer.words == tuple(content[first : first + 64])

    b.run(process, 400_000)


def test_refusals() -> None:
    b = Bench()

    async def process(ctx: Any) -> None:
        assert await b.ask(ctx, 1, Space.REGISTERS, 128, 1) == frames.Answer(1, Status.BUS, ())
        assert (await b.ask(ctx, 2, Space.REGISTERS, 0x1000, (5,))).status == Status.BUS
        assert (await b.ask(ctx, 3, Space.MEMORY, MEMORY_BYTES, 1)).status == Status.BUS
        assert (await b.ask(ctx, 4, Space.MEMORY, 0xFFFF_FFFC, (1,))).status == Status.BUS
        assert (await b.ask(ctx, 5, Space.MEMORY, 2, 1)).status == Status.FORMAT
        assert (await b.ask(ctx, 6, Space.INFO, 0, (1,))).status == Status.FORMAT
        assert (await b.ask(ctx, 7, Space.INFO, 4 * len(Info), 1)).status == Status.BUS
        assert (await b.ask(ctx, 8, Space.REGISTERS, 0, 1)).status == Status.OK
        # What is before the refused access of a frame is done, what is behind it is not.
        assert (await b.ask(ctx, 9, Space.REGISTERS, 120, (1, 2, 3, 4))).status == Status.BUS
        assert b.registers.words[30:] == [1, 2]
        assert b.registers.writes[-1] == (128, 3)
        body = bytes([10, 0xF0, 1, 0, 0, 0, 0])  # no such operation
        await send(ctx, b.line, bytes([frames.SYNC_REQUEST]) + body + frames.crc(body).to_bytes(2, "big"))
        assert (await b.listener.answer(ctx)).status == Status.FORMAT

    b.run(process)


def test_a_repeated_write_is_done_once() -> None:
    b = Bench()

    async def process(ctx: Any) -> None:
        for _ in range(3):
            assert (await b.ask(ctx, 0, Space.REGISTERS, 16, (1,))).status == Status.OK
        assert b.registers.writes == [(16, 1)]
        for _ in range(2):
            assert (await b.ask(ctx, 1, Space.REGISTERS, 200, (1,))).status == Status.BUS
        assert b.registers.writes == [(16, 1), (200, 1)]
        assert (await b.ask(ctx, 2, Space.REGISTERS, 16, (2,))).status == Status.OK
        assert b.registers.words[4] == 2

    b.run(process)


@pytest.mark.parametrize("damage", ["bit", "short", "stop bit", "no words", "too many words"])
def test_damaged_frames_do_nothing(damage: str) -> None:
    b = Bench()
    good = request(1, Space.REGISTERS, 0, (0x1234_5678, 0xA5A5_A5A5))  # with bytes that look like a frame's first
    wrong_count = {"no words": 0, "too many words": frames.MAX_WORDS + 1}

    async def process(ctx: Any) -> None:
        if damage == "bit":
            for bit in (9, 70, 100, 8 * len(good) - 1):
                bad = bytearray(good)
                bad[bit // 8] ^= 1 << bit % 8
                await send(ctx, b.line, bytes(bad))
                await b.silent(ctx)
        elif damage == "short":
            for length in (1, 5, 8, 12, len(good) - 1):
                await send(ctx, b.line, good[:length])
                await b.silent(ctx)
        elif damage == "stop bit":
            await send(ctx, b.line, good[:6])
            await send(ctx, b.line, good[6:7], stop=0)
            await ctx.tick().repeat(DIVISOR)
            await send(ctx, b.line, good[7:])
            await b.silent(ctx)
        else:
            body = frames.REQUEST_HEADER.pack(1, 1, wrong_count[damage], 0) + struct.pack("<2I", 1, 2)
            await send(ctx, b.line, bytes([frames.SYNC_REQUEST]) + body + frames.crc(body).to_bytes(2, "big"))
            await b.silent(ctx)
        assert b.registers.writes == []
        await send(ctx, b.line, b"\x00\x5a\xff")  # what is between frames is overlooked
        await send(ctx, b.line, good)
        assert (await b.listener.answer(ctx)).status == Status.OK
        assert b.registers.words[:2] == [0x1234_5678, 0xA5A5_A5A5]

    b.run(process)


class Axi:
    """A master of one of the memory's ports, which stalls now and then."""

    def __init__(self, ctx: Any, axi: Any, seed: int) -> None:
        self.ctx, self.axi, self.rng = ctx, axi, random.Random(seed)

    async def read(self, address: int, beats: int, burst: int = 1, size: int = 3) -> list[tuple[int, int]]:
        ctx, axi = self.ctx, self.axi
        for signal, value in (("araddr", address), ("arlen", beats - 1), ("arburst", burst), ("arsize", size)):
            ctx.set(getattr(axi, signal), value)
        ctx.set(axi.arvalid, 1)
        await ctx.tick().until(axi.arready)
        ctx.set(axi.arvalid, 0)
        out: list[tuple[int, int]] = []
        while len(out) < beats:
            ready = self.rng.random() < 0.7
            ctx.set(axi.rready, ready)
            _, _, valid, data, resp, last = await ctx.tick().sample(axi.rvalid, axi.rdata, axi.rresp, axi.rlast)
            if ready and valid:
                out.append((data, resp))
                assert last == (len(out) == beats)
        ctx.set(axi.rready, 0)
        return out

    async def write(self, address: int, words: list[tuple[int, int]], burst: int = 1) -> int:
        ctx, axi = self.ctx, self.axi
        for signal, value in (("awaddr", address), ("awlen", len(words) - 1), ("awburst", burst), ("awsize", 3)):
            ctx.set(getattr(axi, signal), value)
        ctx.set(axi.awvalid, 1)
        await ctx.tick().until(axi.awready)
        ctx.set(axi.awvalid, 0)
        for i, (data, strobe) in enumerate(words):
            await ctx.tick().repeat(self.rng.randrange(1, 3))
            ctx.set(axi.wdata, data)
            ctx.set(axi.wstrb, strobe)
            ctx.set(axi.wlast, i == len(words) - 1)
            ctx.set(axi.wvalid, 1)
            await ctx.tick().until(axi.wready)
            ctx.set(axi.wvalid, 0)
        await ctx.tick().repeat(self.rng.randrange(1, 4))
        ctx.set(axi.bready, 1)
        (resp,) = await ctx.tick().sample(axi.bresp).until(axi.bvalid)
        ctx.set(axi.bready, 0)
        return resp


def test_memory_ports() -> None:
    """Two readers and the writer at once, each in a part of its own, and the host in all."""
    memory = BlockMemory(CONFIG, MEMORY_BYTES, 2)
    words = MEMORY_BYTES // 8
    content = [0] * words
    filled = Signal()

    async def host(ctx: Any) -> None:
        rng, port = random.Random(5), memory.host

        async def access(address: int, data: int | None) -> tuple[int, int]:
            ctx.set(port.addr, address)
            ctx.set(port.write, data is not None)
            ctx.set(port.wdata, data or 0)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)
            error, value = await ctx.tick().sample(port.error, port.rdata).until(port.done)
            return error, value

        for i in range(2 * words):
            half = rng.getrandbits(32)
            content[i // 2] |= half << 32 * (i % 2)
            assert (await access(4 * i, half))[0] == 0
        ctx.set(filled, 1)
        for _ in range(300):
            i = rng.randrange(words)  # in the readers' half
            assert await access(4 * i, None) == (0, content[i // 2] >> 32 * (i % 2) & 0xFFFF_FFFF)
        assert (await access(MEMORY_BYTES, None))[0] == 1
        assert (await access(MEMORY_BYTES, 1))[0] == 1

    def reader(index: int) -> Any:
        async def process(ctx: Any) -> None:
            await ctx.tick().until(filled)
            axi = Axi(ctx, memory.read[index], index)
            for _ in range(60):
                first = axi.rng.randrange(words // 2)
                beats = min(axi.rng.choice([1, 2, 7, 16]), words // 2 - first)
                assert await axi.read(8 * first, beats) == [(w, OKAY) for w in content[first : first + beats]]
            for address, beats, burst, size in ((MEMORY_BYTES - 8, 2, 1, 3), (4, 1, 1, 3), (0, 2, 2, 3), (0, 2, 1, 2)):
                assert {resp for _, resp in await axi.read(address, beats, burst, size)} == {DECERR}
            assert await axi.read(8, 1) == [(content[1], OKAY)]

        return process

    async def writer(ctx: Any) -> None:
        await ctx.tick().until(filled)
        axi = Axi(ctx, memory.write, 9)
        for _ in range(40):
            first = axi.rng.randrange(words // 2, words)
            beats = min(axi.rng.choice([1, 2, 7, 16]), words - first)
            data = [(axi.rng.getrandbits(64), axi.rng.getrandbits(8)) for _ in range(beats)]
            assert await axi.write(8 * first, data) == OKAY
            for i, (value, strobe) in enumerate(data, first):
                mask = sum(0xFF << 8 * lane for lane in range(8) if strobe >> lane & 1)
                content[i] = content[i] & ~mask | value & mask
        assert await axi.write(MEMORY_BYTES - 8, [(1, 255), (2, 255)]) == DECERR
        assert await axi.write(8, [(1, 255), (2, 255)], burst=0) == DECERR

    bench.run(memory_with(memory, filled), host, reader(0), reader(1), writer, timeout_cycles=60_000)


def memory_with(memory: BlockMemory, filled: Signal) -> Module:
    """The memory, and a flag between the processes of a bench."""
    m = Module()
    m.submodules.memory = memory
    unused = Signal()
    m.d.sync += unused.eq(filled)
    return m


def test_dividers() -> None:
    assert vars(dividers(50)) == {"input": 1, "feedback": 2, "output": 12}
    assert vars(dividers(62.5)) == {"input": 2, "feedback": 5, "output": 10}
    with pytest.raises(ConfigError, match=r"no PLL setting makes 51\.3 MHz"):
        dividers(51.3)
