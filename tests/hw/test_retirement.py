"""Retirement against a queue in Python."""

import random

import pytest

from hw.bench import run
from moevit.config import CONFIGS
from moevit.hw.units.retirement import ORDER_DEPTH, Retirement, Unit

CONFIG = CONFIGS["tiny"]


def test_retires_one_cycle_after_done():
    dut = Retirement(CONFIG)

    async def bench(ctx):
        ctx.set(dut.i_order.payload, {"unit": Unit.DMA, "number": 7})
        ctx.set(dut.i_order.valid, 1)
        await ctx.tick()
        ctx.set(dut.i_order.valid, 0)
        assert (ctx.get(dut.empty), ctx.get(dut.oldest), ctx.get(dut.oldest_dma)) == (0, 7, 7)
        ctx.set(dut.dma_done, 1)
        await ctx.tick()
        ctx.set(dut.dma_done, 0)
        assert (ctx.get(dut.empty), ctx.get(dut.retired)) == (1, 1)

    run(dut, bench)


def test_full_order_fifo_is_not_ready():
    dut = Retirement(CONFIG)

    async def bench(ctx):
        ctx.set(dut.i_order.valid, 1)
        for number in range(ORDER_DEPTH):
            ctx.set(dut.i_order.payload, {"unit": Unit.COMPUTE, "number": number})
            assert ctx.get(dut.i_order.ready)
            await ctx.tick()
        assert not ctx.get(dut.i_order.ready)
        ctx.set(dut.compute_done, 1)
        await ctx.tick()
        assert ctx.get(dut.i_order.ready)
        assert ctx.get(dut.oldest) == 1

    run(dut, bench)


@pytest.mark.parametrize("seed", range(4))
def test_random_completion(seed):
    """Units finish at random, each in its own order; every cycle's outputs equal the model's."""
    dut = Retirement(CONFIG)
    rng = random.Random(seed)
    dispatch_rate, done_rate = rng.random(), rng.random()

    async def bench(ctx):
        order, unfinished, finished = [], {u: [] for u in Unit}, set()
        number = retired = 0
        for _ in range(1500):
            pushes = rng.random() < dispatch_rate
            unit = rng.choice(list(Unit))
            ctx.set(dut.i_order.valid, pushes)
            ctx.set(dut.i_order.payload, {"unit": unit, "number": number})
            done = {u: bool(unfinished[u]) and rng.random() < done_rate for u in Unit}
            ctx.set(dut.compute_done, done[Unit.COMPUTE])
            ctx.set(dut.dma_done, done[Unit.DMA])
            pushed = pushes and ctx.get(dut.i_order.ready)
            await ctx.tick()
            for u in Unit:
                if done[u]:
                    finished.add(unfinished[u].pop(0))
            if order and order[0] in finished:
                order.pop(0)
                retired += 1
            if pushed:
                order.append(number)
                unfinished[unit].append(number)
                number += 1
            assert ctx.get(dut.retired_total) == retired
            assert ctx.get(dut.empty) == (not order)
            last = max(number - 1, 0)
            assert ctx.get(dut.oldest) == (order[0] if order else last)
            assert ctx.get(dut.oldest_compute) == (unfinished[Unit.COMPUTE] or [last])[0]
            assert ctx.get(dut.oldest_dma) == (unfinished[Unit.DMA] or [last])[0]
        assert retired > 50

    run(dut, bench)
