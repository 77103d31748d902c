"""ActivationMemory against a byte array, with three readers and three writers at random."""

import dataclasses
import random

import pytest

from hw.bench import run
from moevit.config import get_config
from moevit.hw.interfaces import ACTIVATION_READ_LATENCY
from moevit.hw.units.activation_memory import READERS, ULTRA_PAIRS, WRITERS, ActivationMemory


def _clients(dut, names, kind):
    return [getattr(dut, f"{kind}_{name}") for name in names]


def _kinds():
    return [f"read_{name}" for name in READERS] + [f"write_{name}" for name in WRITERS]


CONFIGS = [
    get_config("tiny"),
    get_config("wide"),
    dataclasses.replace(get_config("wide"), name="deep", activation_words=2 * ULTRA_PAIRS),  # banks of two memories
    dataclasses.replace(get_config("tiny"), name="odd", activation_words=12_000),  # not a power of two
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_random_traffic(config):
    dut = ActivationMemory(config)
    columns, pairs = config.columns, config.activation_words // 2
    memory = [bytearray(2 * columns) for _ in range(pairs)]
    used = [0, 1, pairs - 1, 17, pairs, pairs | 1 << 16]
    counts = dict.fromkeys(READERS + WRITERS, 0)
    faults = dict.fromkeys(_kinds(), 0)

    async def bench(ctx):
        rng = random.Random(1)
        due = []  # (cycle, reader index, expected pair, None if there is no such pair)
        outside = set()  # who accessed none in the cycle before
        for cycle in range(1500):
            assert ctx.get(dut.fault) == bool(outside)
            if len(outside) == 1:
                faults[outside.pop()] += 1
            outside = set()
            requests = []
            for port in _clients(dut, READERS, "read"):
                request = (rng.random() < 0.4, rng.choice(used))
                requests.append(request)
                ctx.set(port.valid, request[0])
                ctx.set(port.pair, request[1])
            writes = []
            for port in _clients(dut, WRITERS, "write"):
                write = (
                    rng.random() < 0.5,
                    rng.choice(used),
                    rng.randbytes(2 * columns),
                    rng.getrandbits(2 * columns),
                )
                writes.append(write)
                ctx.set(port.valid, write[0])
                ctx.set(port.pair, write[1])
                ctx.set(port.data, int.from_bytes(write[2], "little"))
                ctx.set(port.mask, write[3])
            free = True
            for index, (port, (valid, pair)) in enumerate(
                zip(_clients(dut, READERS, "read"), requests, strict=True)
            ):
                assert ctx.get(port.ready) == free
                if free and valid:
                    data = bytes(memory[pair]) if pair < pairs else None
                    due.append((cycle + ACTIVATION_READ_LATENCY, index, data))
                    if data is None:
                        outside.add(f"read_{READERS[index]}")
                    counts[READERS[index]] += 1
                    free = False
            valid_now = [ctx.get(p.data_valid) for p in _clients(dut, READERS, "read")]
            expected = [d for d in due if d[0] == cycle]
            assert valid_now == [any(d[1] == i for d in expected) for i in range(3)]
            for _, index, data in expected:
                got = ctx.get(_clients(dut, READERS, "read")[index].data).to_bytes(2 * columns, "little")
                assert data is None or got == data, cycle
            free = True
            for index, (port, (valid, pair, data, mask)) in enumerate(
                zip(_clients(dut, WRITERS, "write"), writes, strict=True)
            ):
                assert ctx.get(port.ready) == free
                if free and valid:
                    counts[WRITERS[index]] += 1
                    free = False
                    if pair >= pairs:
                        outside.add(f"write_{WRITERS[index]}")
                        continue
                    for byte in range(2 * columns):
                        if mask >> byte & 1:
                            memory[pair][byte] = data[byte]
            await ctx.tick()

    run(dut, bench, timeout_cycles=2000)
    assert all(counts.values()), counts
    assert all(faults.values()), faults  # each client's own


def test_fault():
    config = get_config("tiny")
    dut = ActivationMemory(config)
    pairs = config.activation_words // 2

    async def bench(ctx):
        async def write(pair, value):
            ctx.set(dut.write_dma.valid, 1)
            ctx.set(dut.write_dma.pair, pair)
            ctx.set(dut.write_dma.data, value)
            ctx.set(dut.write_dma.mask, (1 << 2 * config.columns) - 1)
            await ctx.tick()
            ctx.set(dut.write_dma.valid, 0)
            fault = ctx.get(dut.fault)
            await ctx.tick()
            assert not ctx.get(dut.fault)
            return fault

        async def read(pair):
            ctx.set(dut.read_load.valid, 1)
            ctx.set(dut.read_load.pair, pair)
            await ctx.tick()
            ctx.set(dut.read_load.valid, 0)
            fault = ctx.get(dut.fault)
            await ctx.tick()
            assert ctx.get(dut.read_load.data_valid)
            return fault, ctx.get(dut.read_load.data)

        for pair in (0, pairs - 1):
            assert not await write(pair, 5 + pair)
        for pair in (pairs, 2 * pairs, (1 << 17) - 1):
            assert await write(pair, 1)
            fault, _ = await read(pair)
            assert fault
        for pair in (0, pairs - 1):
            assert await read(pair) == (0, 5 + pair)

    run(dut, bench, timeout_cycles=200)
