"""What the unit tests share: a run that cannot hang, and stream ends that stall at random."""

import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from amaranth.sim import Simulator

Process = Callable[[Any], Awaitable[None]]


def run(dut: Any, *processes: Process, timeout_cycles: int = 10_000, background: Iterable[Process] = ()) -> None:
    """Simulate until every one of ``processes`` has returned; fails after ``timeout_cycles``.

    ``background`` processes run for as long as the others do.
    """
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)

    async def watchdog(ctx: Any) -> None:
        for _ in range(timeout_cycles):  # not repeat(): a generator left unfinished warns when it is collected
            await ctx.tick()
        raise TimeoutError(f"no end after {timeout_cycles} cycles")

    for process in processes:
        simulator.add_testbench(process)
    for process in (*background, watchdog):
        simulator.add_testbench(process, background=True)
    simulator.run()


async def put(ctx: Any, stream: Any, payloads: Iterable[Any], *, stall: float = 0.0, seed: int = 0) -> None:
    """Send ``payloads`` into a stream; before each, waits with probability ``stall`` per cycle."""
    rng = random.Random(seed)
    for payload in payloads:
        while rng.random() < stall:
            await ctx.tick()
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)


async def get(ctx: Any, stream: Any, count: int, *, stall: float = 0.0, seed: int = 0) -> list[Any]:
    """Take ``count`` payloads from a stream, not ready with probability ``stall`` per cycle."""
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        ready = rng.random() >= stall
        ctx.set(stream.ready, ready)
        _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
        if ready and valid:
            out.append(payload)
    ctx.set(stream.ready, 0)
    return out
