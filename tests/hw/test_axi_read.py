# amaranth: UnusedElaboratable=no
import dataclasses
import itertools
import random

import pytest

from hw.axi_model import AxiMemory
from hw.bench import get, put, run
from moevit.config import CONFIGS
from moevit.errors import ConfigError
from moevit.hw.units.axi_read import AxiReadPort

BASE = 0x12_3400_0000
STALLS = {
    "none": {},
    "memory": {"latency": 20, "jitter": 15, "address_stall": 0.5, "data_stall": 0.4},
}


def some_requests(bus_bytes, size, count, seed, most=70):
    rng = random.Random(seed)
    corners = [(0, 1), (4096 - bus_bytes, 2), (4096 - 17 * bus_bytes, 40)]
    corners += [(8192 - 16 * bus_bytes, 16), (8192, 32)]
    while len(corners) < count:
        beats = rng.randint(1, most)
        corners.append((rng.randrange(0, size - beats * bus_bytes, bus_bytes), beats))
    return corners[:count]


def expected(memory, requests, bus_bytes):
    return [
        (int.from_bytes(memory.bytes[offset + i * bus_bytes :][:bus_bytes], "little"), i == beats - 1)
        for offset, beats in requests
        for i in range(beats)
    ]


def as_payloads(requests):
    return [{"addr": BASE + offset, "beats": beats} for offset, beats in requests]


@pytest.mark.parametrize("sink_stall", [0.0, 0.6])
@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("fifo_depth", [16, 64])
def test_data(stalls, sink_stall, fifo_depth):
    dut = AxiReadPort(CONFIGS["tiny"], outstanding=3, fifo_depth=fifo_depth)
    memory = AxiMemory(16384, BASE, **STALLS[stalls])
    requests = some_requests(16, 16384, 16, seed=fifo_depth)
    want = expected(memory, requests, 16)

    async def source(ctx):
        await put(ctx, dut.i_request, as_payloads(requests))

    async def sink(ctx):
        beats = await get(ctx, dut.o_data, len(want), stall=sink_stall)
        assert [(b.data, b.last) for b in beats] == want
        assert ctx.get(dut.idle)
        assert not ctx.get(dut.error)

    run(dut, source, sink, background=[memory.read_port(dut.axi)])
    assert sum(beats for _, beats in memory.reads) == len(want)


@pytest.mark.parametrize("width", [32, 512])
def test_bus_widths(width):
    config = dataclasses.replace(CONFIGS["zcu104"], axi_data_width=width, weight_ports=1)
    dut = AxiReadPort(config, fifo_depth=32)
    memory = AxiMemory(16384, BASE, latency=10)
    requests = some_requests(width // 8, 16384, 8, seed=1)
    want = expected(memory, requests, width // 8)

    async def source(ctx):
        await put(ctx, dut.i_request, as_payloads(requests))

    async def sink(ctx):
        assert [(b.data, b.last) for b in await get(ctx, dut.o_data, len(want))] == want

    run(dut, source, sink, background=[memory.read_port(dut.axi)])


def test_latency_and_throughput():
    """Full rate at a latency of 60 cycles with the default depth, from inside a burst's stretch."""
    dut = AxiReadPort(CONFIGS["tiny"])
    memory = AxiMemory(16384, BASE, latency=60)
    beats = 600

    async def bench(ctx):
        ctx.set(dut.o_data.ready, 1)
        ctx.set(dut.i_request.payload, {"addr": BASE + 5 * 16, "beats": beats})
        ctx.set(dut.i_request.valid, 1)
        await ctx.tick().until(dut.i_request.ready)
        ctx.set(dut.i_request.valid, 0)
        start, raised, times = 0, None, []
        while len(times) < beats:
            _, _, arvalid, valid = await ctx.tick().sample(dut.axi.arvalid, dut.o_data.valid)
            start += 1
            if arvalid and raised is None:
                raised = start
            if valid:
                times.append(start)
        assert raised == 4
        assert times[0] <= raised + 60 + 5
        assert times[-1] - times[0] == beats - 1

    run(dut, bench, background=[memory.read_port(dut.axi)])


def test_no_request_beyond_the_room():
    """Nothing is taken: only as much is requested as the FIFO holds."""
    dut = AxiReadPort(CONFIGS["tiny"], fifo_depth=40)
    memory = AxiMemory(16384, BASE)

    async def bench(ctx):
        await put(ctx, dut.i_request, as_payloads([(0, 100)]))
        await ctx.tick().repeat(100)
        assert memory.reads == [(BASE, 16), (BASE + 256, 16)]
        assert ctx.get(dut.idle)
        assert len(await get(ctx, dut.o_data, 100, stall=0.3)) == 100

    run(dut, bench, background=[memory.read_port(dut.axi)])


@pytest.mark.parametrize("accept_late", [False, True])
def test_halt_drains_and_clear_recovers(accept_late):
    dut = AxiReadPort(CONFIGS["tiny"], fifo_depth=64)
    memory = AxiMemory(16384, BASE, latency=30, address_stall=0.3, frozen=accept_late)

    async def bench(ctx):
        await put(ctx, dut.i_request, as_payloads([(0, 100)]))
        await ctx.tick().repeat(10)
        ctx.set(dut.halt, 1)
        await ctx.tick()
        assert not ctx.get(dut.idle)
        ctx.set(dut.clear, 1)  # ignored until idle
        await ctx.tick().repeat(5)
        assert not ctx.get(dut.idle)
        ctx.set(dut.clear, 0)
        raised = len(memory.reads) + ctx.get(dut.axi.arvalid)
        memory.frozen = False
        await ctx.tick().until(dut.idle)
        assert memory.outstanding == 0
        assert len(memory.reads) == raised
        await ctx.tick().repeat(50)
        assert len(memory.reads) == raised
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        ctx.set(dut.halt, 0)
        want = expected(memory, [(1024, 70)], 16)
        await put(ctx, dut.i_request, as_payloads([(1024, 70)]))
        assert [(b.data, b.last) for b in await get(ctx, dut.o_data, 70)] == want

    run(dut, bench, background=[memory.read_port(dut.axi)])


def test_hold_delays_bursts_and_nothing_else():
    dut = AxiReadPort(CONFIGS["tiny"])
    memory = AxiMemory(16384, BASE, latency=30)
    turn = 50  # a cycle in so many
    raised = []

    async def holder(ctx):
        cycle = 0
        while True:
            ctx.set(dut.hold, cycle % turn != turn - 1)
            _, _, accepted = await ctx.tick().sample(dut.axi.arvalid & dut.axi.arready)
            cycle += 1
            if accepted:
                raised.append(cycle)

    async def bench(ctx):
        await put(ctx, dut.i_request, as_payloads([(0, 100)]))
        await ctx.tick().repeat(turn - 10)
        assert not memory.reads and ctx.get(dut.idle)
        want = expected(memory, [(0, 100)], 16)
        assert [(b.data, b.last) for b in await get(ctx, dut.o_data, 100)] == want

    run(dut, bench, background=[holder, memory.read_port(dut.axi)])
    # A burst each turn, though there is room for all seven from the beginning.
    assert [b - a for a, b in itertools.pairwise(raised)] == [turn] * 6


def test_error_is_sticky_and_stops_the_data():
    dut = AxiReadPort(CONFIGS["tiny"], fifo_depth=64)
    memory = AxiMemory(16384, BASE, read_errors={BASE + 37 * 16})

    async def bench(ctx):
        await put(ctx, dut.i_request, as_payloads([(0, 200)]))
        want = [d for d, _ in expected(memory, [(0, 37)], 16)]
        assert [b.data for b in await get(ctx, dut.o_data, 37)] == want
        ctx.set(dut.o_data.ready, 1)
        for _ in range(100):
            _, _, valid = await ctx.tick().sample(dut.o_data.valid)
            assert not valid
        assert ctx.get(dut.error)
        assert ctx.get(dut.idle)
        assert len(memory.reads) < 200 // 16
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert not ctx.get(dut.error)
        ctx.set(dut.o_data.ready, 0)
        await put(ctx, dut.i_request, as_payloads([(4096, 3)]))
        assert [(b.data, b.last) for b in await get(ctx, dut.o_data, 3)] == expected(memory, [(4096, 3)], 16)

    run(dut, bench, background=[memory.read_port(dut.axi)])


@pytest.mark.parametrize("arguments", [{"outstanding": 0}, {"fifo_depth": 15}])
def test_bad_arguments(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        AxiReadPort(CONFIGS["tiny"], **arguments)
