# amaranth: UnusedElaboratable=no
import itertools
import random

import pytest

from hw.axi_model import AxiMemory
from hw.bench import get, put, run
from moevit.config import CONFIGS
from moevit.errors import ConfigError
from moevit.hw.units.read_mux import ReadMux

BASE = 0x8000_0000


def requests_of(client, count):
    rng = random.Random(client)
    out = []
    while len(out) < count:
        beats = rng.choice([1, 2, 4, 30])
        out.append((rng.randrange(0, 16384 - beats * 16, 16), beats))
    return out


def expected(memory, requests):
    return [
        (int.from_bytes(memory.bytes[offset + i * 16 : offset + i * 16 + 16], "little"), i == beats - 1)
        for offset, beats in requests
        for i in range(beats)
    ]


def as_payloads(requests):
    return [{"addr": BASE + offset, "beats": beats} for offset, beats in requests]


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_each_client_gets_its_own(clients, stall):
    dut = ReadMux(CONFIGS["tiny"], clients, outstanding=5, fifo_depth=32)
    memory = AxiMemory(16384, BASE, latency=20, jitter=10, address_stall=stall, data_stall=stall)
    processes = []
    for i in range(clients):
        requests = requests_of(i, 12)

        async def source(ctx, i=i, requests=requests):
            await put(ctx, dut.i_request[i], as_payloads(requests), stall=stall / 2)

        async def sink(ctx, i=i, want=expected(memory, requests)):
            beats = await get(ctx, dut.o_data[i], len(want), stall=stall, seed=i)
            assert [(b.data, b.last) for b in beats] == want

        processes += [source, sink]
    run(dut, *processes, background=[memory.read_port(dut.axi)])


def test_one_that_consumes_nothing_blocks_nobody():
    dut = ReadMux(CONFIGS["tiny"], 2, fifo_depth=(16, 64))
    memory = AxiMemory(16384, BASE)
    want = expected(memory, [(1024, 500)])

    async def stuck(ctx):
        await put(ctx, dut.i_request[0], as_payloads([(0, 200)]))

    async def other(ctx):
        await put(ctx, dut.i_request[1], as_payloads([(1024, 500)]))
        assert [(b.data, b.last) for b in await get(ctx, dut.o_data[1], 500)] == want

    run(dut, stuck, other, background=[memory.read_port(dut.axi)])


def test_both_at_full_load_share_the_bus():
    """Two greedy clients: no cycle of the bus is lost and each gets half."""
    dut = ReadMux(CONFIGS["tiny"], 2, fifo_depth=128)
    memory = AxiMemory(16384, BASE, latency=30)
    finished = []

    def client(i):
        async def process(ctx):
            await put(ctx, dut.i_request[i], as_payloads([(4096 * i, 250)]))
            await get(ctx, dut.o_data[i], 250)
            finished.append(i)

        return process

    async def clock(ctx):
        cycles = 0
        while len(finished) < 2:
            await ctx.tick()
            cycles += 1
        assert cycles <= 500 + 30 + 15

    run(dut, client(0), client(1), clock, background=[memory.read_port(dut.axi)])
    owners = [addr >= BASE + 4096 for addr, _ in memory.reads]
    assert sum(a != b for a, b in itertools.pairwise(owners)) >= len(owners) - 4


def test_error_belongs_to_one_client():
    dut = ReadMux(CONFIGS["tiny"], 2)
    memory = AxiMemory(16384, BASE, read_errors={BASE + 4096})

    async def bench(ctx):
        await put(ctx, dut.i_request[0], as_payloads([(0, 2)]))
        await put(ctx, dut.i_request[1], as_payloads([(4096, 2)]))
        assert len(await get(ctx, dut.o_data[0], 2)) == 2
        await ctx.tick().repeat(30)
        assert ctx.get(dut.error) == 0b10
        assert not ctx.get(dut.o_data[1].valid)
        assert ctx.get(dut.idle)
        reads = len(memory.reads)
        await put(ctx, dut.i_request[0], as_payloads([(0, 2)]))
        await ctx.tick().repeat(30)
        assert len(memory.reads) == reads, "a burst was raised after an error"
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert ctx.get(dut.error) == 0
        await put(ctx, dut.i_request[1], as_payloads([(256, 5)]))
        beats = await get(ctx, dut.o_data[1], 5)
        assert [(b.data, b.last) for b in beats] == expected(memory, [(256, 5)])

    run(dut, bench, background=[memory.read_port(dut.axi)])


def test_halt_drains():
    dut = ReadMux(CONFIGS["tiny"], 2)
    memory = AxiMemory(16384, BASE, latency=40)

    async def bench(ctx):
        for i in range(2):
            await put(ctx, dut.i_request[i], as_payloads([(4096 * i, 100)]))
        await ctx.tick().repeat(10)
        ctx.set(dut.halt, 1)
        await ctx.tick().until(dut.idle)
        assert memory.outstanding == 0
        reads = len(memory.reads)
        assert 0 < reads < 14
        await ctx.tick().repeat(30)
        assert len(memory.reads) == reads

    run(dut, bench, background=[memory.read_port(dut.axi)])


@pytest.mark.parametrize(
    "arguments", [{"clients": 0}, {"clients": 2, "fifo_depth": (16,)}, {"clients": 2, "fifo_depth": 8}]
)
def test_bad_arguments(arguments):
    with pytest.raises(ConfigError, match=list(arguments)[-1]):
        ReadMux(CONFIGS["tiny"], **arguments)
