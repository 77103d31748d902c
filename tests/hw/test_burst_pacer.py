import itertools

import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units.axi_read import BURST_BEATS
from moevit.hw.units.burst_pacer import LINGER_CYCLES, PACE_CYCLES, BurstPacer
from moevit.sim.dram import DramModel


@pytest.mark.parametrize("name", ["tiny", "wide", "zcu104"])
def test_turns(name):
    config = CONFIGS[name]
    ports = config.weight_ports
    everyone = (1 << ports) - 1
    dut = BurstPacer(config)

    async def bench(ctx):
        def hold():
            return ctx.get(dut.hold)

        await ctx.tick().repeat(5)
        assert hold() == 0
        ctx.set(dut.reading, 1)
        turns = []
        for cycle in range(3 * ports * PACE_CYCLES):
            await ctx.tick()
            free = everyone & ~hold()
            if free:
                turns.append((cycle + 1, free))
        assert turns == [(PACE_CYCLES * (i + 1), 1 << i % ports) for i in range(3 * ports)]
        ctx.set(dut.reading, 0)
        held = []
        for _ in range(LINGER_CYCLES):
            await ctx.tick()
            held.append(hold())
        assert held.count(everyone) == LINGER_CYCLES - LINGER_CYCLES // PACE_CYCLES
        await ctx.tick()
        assert hold() == 0
        await ctx.tick().repeat(3 * PACE_CYCLES)
        assert hold() == 0
        ctx.set(dut.reading, 1)
        await ctx.tick().repeat(PACE_CYCLES)
        assert hold() == everyone & ~1  # begins with port 0 again

    run(dut, bench)


def test_gaps_between_copies_are_bridged():
    dut = BurstPacer(CONFIGS["zcu104"])
    turns = []

    async def bench(ctx):
        for cycle in range(400):
            ctx.set(dut.reading, cycle % (LINGER_CYCLES + 1) == 0)
            await ctx.tick()
            assert ctx.get(dut.hold)
            if ctx.get(dut.hold) != 0b1111:
                turns.append(cycle)

    run(dut, bench)
    assert {b - a for a, b in itertools.pairwise(turns)} == {PACE_CYCLES}


def test_the_pace_leaves_room() -> None:
    """At two and two thirds bus words a cycle (a ZCU104's), the ports of weights leave one of them."""
    config = CONFIGS["zcu104"]
    assert DramModel.default(config).bytes_per_cycle >= config.axi_bytes * (1 + BURST_BEATS / PACE_CYCLES)
