# amaranth: UnusedElaboratable=no
import random

import pytest

from hw.axi_model import AxiMemory
from hw.bench import put, run
from moevit.config import CONFIGS
from moevit.errors import ConfigError
from moevit.hw.units.axi_write import AxiWritePort

BASE = 0x7_0000_0000
STALLS = {
    "none": {},
    "memory": {"latency": 20, "jitter": 10, "address_stall": 0.5, "data_stall": 0.5},
}
REQUESTS = [(0, 1), (4096 - 16, 2), (4096 + 256 - 160, 40), (8192 - 256, 16), (8192 + 16, 3), (12288, 33)]


def words(beats, seed, width=16):
    """Data and strobes; the last word is partial."""
    rng = random.Random(seed)
    full = (1 << width) - 1
    strobes = [full] * (beats - 1) + [rng.choice([full, 1, 0x7F])]
    return [{"data": rng.getrandbits(8 * width), "strb": strb} for strb in strobes]


def apply(image, offset, data, width=16):
    for i, word in enumerate(data):
        for j in range(width):
            if word["strb"] >> j & 1:
                image[offset + i * width + j] = word["data"] >> 8 * j & 0xFF


@pytest.mark.parametrize("source_stall", [0.0, 0.5])
@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize(("outstanding", "fifo_depth"), [(1, 16), (4, 32)])
def test_bytes(stalls, source_stall, outstanding, fifo_depth):
    dut = AxiWritePort(CONFIGS["tiny"], outstanding=outstanding, fifo_depth=fifo_depth)
    memory = AxiMemory(16384, BASE, **STALLS[stalls])
    want = bytearray(memory.bytes)
    data = [words(beats, i) for i, (_, beats) in enumerate(REQUESTS)]
    for (offset, _), part in zip(REQUESTS, data, strict=True):
        apply(want, offset, part)
    done = 0

    async def requests(ctx):
        payloads = [{"addr": BASE + offset, "beats": beats} for offset, beats in REQUESTS]
        await put(ctx, dut.i_request, payloads, stall=source_stall)

    async def source(ctx):
        await put(ctx, dut.i_data, [w for part in data for w in part], stall=source_stall)

    async def finish(ctx):
        nonlocal done
        while done < len(REQUESTS):
            _, _, pulse = await ctx.tick().sample(dut.done)
            done += pulse
        assert ctx.get(dut.idle)
        assert memory.outstanding == 0
        await ctx.tick().repeat(20)
        assert not ctx.get(dut.done)

    run(dut, requests, source, finish, background=[memory.write_port(dut.axi)])
    assert memory.bytes == want


def test_store_and_forward_at_full_rate():
    """Nothing is raised before its data is there, then a beat per cycle."""
    dut = AxiWritePort(CONFIGS["tiny"])
    memory = AxiMemory(16384, BASE)

    async def bench(ctx):
        await put(ctx, dut.i_request, [{"addr": BASE, "beats": 48}])
        await put(ctx, dut.i_data, words(15, 0))
        await ctx.tick().repeat(20)
        assert not memory.writes
        assert not ctx.get(dut.axi.awvalid)
        ctx.set(dut.i_data.payload, words(1, 1)[0])
        ctx.set(dut.i_data.valid, 1)
        await ctx.tick()
        for latency in range(1, 4):
            _, _, awvalid = await ctx.tick().sample(dut.axi.awvalid)
            assert awvalid == (latency == 3)
        beats = cycles = 0
        while beats < 48:  # the source gives one a cycle from here on
            _, _, taken = await ctx.tick().sample(dut.axi.wvalid & dut.axi.wready)
            beats += taken
            cycles += 1
        assert cycles <= 48 + 12

    run(dut, bench, background=[memory.write_port(dut.axi)])


def test_halt_drains_and_clear_recovers():
    dut = AxiWritePort(CONFIGS["tiny"])
    memory = AxiMemory(16384, BASE, latency=30, data_stall=0.7)
    want = bytearray(memory.bytes)
    data = words(28, 1)

    async def bench(ctx):
        await put(ctx, dut.i_request, [{"addr": BASE, "beats": 48}])
        await put(ctx, dut.i_data, data)
        ctx.set(dut.halt, 1)
        ctx.set(dut.clear, 1)  # ignored until idle
        await ctx.tick()
        assert not ctx.get(dut.idle)
        ctx.set(dut.clear, 0)
        await ctx.tick().until(dut.idle)
        assert memory.outstanding == 0
        assert memory.writes == [(BASE, 16)]
        await ctx.tick().repeat(40)
        assert memory.writes == [(BASE, 16)]
        apply(want, 0, data[:16])
        assert memory.bytes == want
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        ctx.set(dut.halt, 0)
        again = words(3, 2)
        await put(ctx, dut.i_request, [{"addr": BASE + 4096, "beats": 3}])
        await put(ctx, dut.i_data, again)
        await ctx.tick().until(dut.done)
        apply(want, 4096, again)
        assert memory.bytes == want

    run(dut, bench, background=[memory.write_port(dut.axi)])


def test_error_is_sticky():
    dut = AxiWritePort(CONFIGS["tiny"], outstanding=1)
    memory = AxiMemory(16384, BASE, write_errors={BASE + 256})

    async def bench(ctx):
        await put(ctx, dut.i_request, [{"addr": BASE, "beats": 48}])
        data = words(48, 0)
        for word in data:
            ctx.set(dut.i_data.payload, word)
            ctx.set(dut.i_data.valid, 1)
            await ctx.tick()
            assert not ctx.get(dut.done)
        ctx.set(dut.i_data.valid, 0)
        for _ in range(100):
            await ctx.tick()
            assert not ctx.get(dut.done)
        assert ctx.get(dut.error)
        assert ctx.get(dut.idle)
        assert memory.writes == [(BASE, 16), (BASE + 256, 16)]
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert not ctx.get(dut.error)
        await put(ctx, dut.i_request, [{"addr": BASE, "beats": 1}])
        await put(ctx, dut.i_data, words(1, 0))
        await ctx.tick().until(dut.done)

    run(dut, bench, background=[memory.write_port(dut.axi)])


@pytest.mark.parametrize("arguments", [{"outstanding": 0}, {"fifo_depth": 15}])
def test_bad_arguments(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        AxiWritePort(CONFIGS["tiny"], **arguments)
