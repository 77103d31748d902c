"""The operand memory against an array of bytes, with writes to where they may not go."""

import dataclasses

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.interfaces import OPERAND_READ_LATENCY
from moevit.hw.units.operand_memory import OperandMemory

TINY = dataclasses.replace(CONFIGS["tiny"], operand_words=64)
ODD = dataclasses.replace(CONFIGS["wide"], name="odd", operand_words=40)
WRITE_LATENCY = 2  # cycles until an address sees what was accepted


@pytest.mark.parametrize("config", [TINY, ODD], ids=lambda c: c.name)
@pytest.mark.parametrize("kv_rate", [0.0, 0.4, 1.0])
def test_random_accesses(config, kv_rate):
    dut, rng = OperandMemory(config), np.random.default_rng(2)
    word_bytes, ring_words = config.operand_word_bytes, 24
    addresses = 1 << (config.operand_words - 1).bit_length()
    model = np.zeros((config.operand_words, word_bytes), np.uint8)
    seen = {"kv": 0, "stream": 0, "bad": 0, "refused": 0}

    async def bench(ctx):
        pending = [None] * OPERAND_READ_LATENCY
        writes = [None] * WRITE_LATENCY
        faults = [False] * 2
        held = None
        ctx.set(dut.ring_words, ring_words)
        for _ in range(1200):
            expected = pending.pop()
            if expected is not None:
                assert ctx.get(dut.read.data).to_bytes(word_bytes, "little") == expected
            assert ctx.get(dut.fault) == faults.pop()
            write = writes.pop()
            if write is not None:
                addr, mask, data = write
                model[addr][mask] = data[mask]

            addr = int(rng.integers(config.operand_words))
            ctx.set(dut.read.addr, addr)
            pending.insert(0, model[addr].tobytes())

            def draw():
                mask = rng.random(word_bytes) < rng.choice([0.3, 1.0])
                return int(rng.integers(addresses)), mask, rng.integers(0, 256, word_bytes).astype(np.uint8)

            kv = draw() if rng.random() < kv_rate else None
            held = held or (draw() if rng.random() < 0.7 else None)
            for port, request in ((dut.kv, kv), (dut.stream, held)):
                ctx.set(port.valid, request is not None)
                if request is not None:
                    ctx.set(port.addr, request[0])
                    ctx.set(port.mask, sum(1 << i for i in np.flatnonzero(request[1]).tolist()))
                    ctx.set(port.data, int.from_bytes(request[2].tobytes(), "little"))
            assert ctx.get(dut.kv.ready)
            assert ctx.get(dut.stream.ready) == (kv is None)

            accepted, good = None, True
            if kv is not None:
                accepted, good = kv, ring_words <= kv[0] < config.operand_words
                seen["kv"] += 1
                seen["refused"] += held is not None
            elif held is not None:
                accepted, good = held, held[0] < ring_words
                seen["stream"] += 1
                held = None
            seen["bad"] += not good
            writes.insert(0, accepted if good else None)
            faults.insert(0, not good)
            await ctx.tick()

    run(dut, bench)
    assert seen["bad"] > 0
    assert seen["kv"] > 0 or kv_rate == 0
    assert seen["refused"] > 0 or kv_rate == 0
    assert seen["stream"] > 0 or kv_rate == 1
