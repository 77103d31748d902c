"""All units of the model together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.errors import SimulationError
from moevit.isa import Attention, Begin, DmaIn, DmaOut, Instruction, Linear, Stream
from moevit.numerics.route import MAX_EXPERTS
from moevit.sim.cycle import units
from moevit.sim.cycle.activation import ActivationMemory
from moevit.sim.cycle.compute import Compute, Work
from moevit.sim.cycle.dma import Copy, Dma
from moevit.sim.cycle.front import Front, Retirement
from moevit.sim.cycle.kernel import Kernel
from moevit.sim.cycle.memory import Dram
from moevit.sim.cycle.stream import Order, Streamer
from moevit.sim.dram import DramModel
from moevit.sim.experts import blocks, gates

RETIRED_WRAP = 1 << 16  #: what ``wait`` fields are modulo
#: Control: from Dispatch's ``done`` to the interrupt: the state machine, the interrupt's status, the pin
INTERRUPT = 2


@dataclass(frozen=True)
class Prediction:
    """As :class:`moevit.sim.rtl.ImageRun`, with the counters that are known."""

    cycles: int
    retire_cycles: tuple[int, ...]
    counters: dict[str, dict[str, int]]
    speculative_bytes: int  #: that were read for experts without tokens


def predict(
    config: AcceleratorConfig,
    instructions: Sequence[Instruction],
    entry: int,
    dram: DramModel,
    lengths: Mapping[int, Sequence[int]],
) -> Prediction:
    """The cycles of one run of a program.

    Parameters
    ----------
    config, instructions : the machine and the program, BEGIN first
    entry : offset of BEGIN in the image
    dram : the memory; random stalls are not modelled
    lengths : by a gate's program number: how many tokens each expert has when it retires

    Raises
    ------
    SimulationError : the program locks up
    """
    kernel = Kernel()
    memory = Dram(config, dram)
    orders, works, copies = _sort(instructions, lengths)
    retirement = Retirement(kernel, len(works) + len(copies))
    begin = instructions[0]
    assert isinstance(begin, Begin)
    front = Front(kernel, config, memory, instructions, entry, retirement)
    streamer = Streamer(kernel, config, memory, front.stream, orders, retirement.retired, begin.ring_words)
    activation = ActivationMemory()
    compute = Compute(kernel, config, front.compute, works, retirement, streamer, activation)
    dma = Dma(kernel, config, memory, front.dma, copies, retirement, activation)
    for process in (
        front.fetch(), front.dispatch(), streamer.requests(), streamer.bursts(), streamer.words(), compute.run(),
        dma.run(), dma.moves(),
    ):  # fmt: skip
        kernel.start(process)
    kernel.run()
    retired = retirement.retired
    if len(retired) != len(works) + len(copies) or not front.ended:
        count = len(works) + len(copies)
        raise SimulationError(f"{len(retired)} of {count} instructions retire, then it locks up", where="cycle")
    end = max(retired[-1] + 1 if retired else 0, front.ended)
    counters = {"stream": streamer.waits, **compute.waits, "dma": dma.waits}
    whole = end + units.DISPATCH_DONE + INTERRUPT
    for causes in counters.values():  # the loader's two halves may be busy in one cycle, which is counted for both
        causes["busy"] = min(causes["busy"], whole - sum(n for cause, n in causes.items() if cause != "busy"))
    spare = sum(
        end - first
        for order, brings in zip((o for o in orders if o.instruction.predicated), streamer.brings, strict=True)
        if brings and not order.filled
        for first, end in blocks(order.instruction, config)
    )
    return Prediction(whole, tuple(retired), counters, spare)


def even_lengths(instructions: Sequence[Instruction]) -> dict[int, NDArray[np.int64]]:
    """By a gate's program number, [1, MAX_EXPERTS]: its tokens spread over all its experts alike.

    What a threshold drops is not guessed: all tokens go to as many experts as they may.
    """
    out = {}
    counts = np.zeros(MAX_EXPERTS, np.int64)
    for number, gate in gates(instructions).items():
        counts = np.zeros(MAX_EXPERTS, np.int64) if gate.clear else counts.copy()
        share, more = divmod(gate.n_rows * min(gate.top_k, gate.experts), gate.experts)
        counts[: gate.experts] += share
        counts[:more] += 1
        out[number] = counts[None]
    return out


def _sort(
    instructions: Sequence[Instruction], lengths: Mapping[int, Sequence[int]]
) -> tuple[list[Order], list[Work], list[Copy]]:
    """The instructions of each unit, with what they have to know of the others."""
    works: list[Work] = []
    copies: list[Copy] = []
    streams: list[tuple[Stream, int]] = []
    queued: list[int] = []  # entries of the queues of LINEARs that gather or scatter
    gate: Sequence[int] = ()
    index = 0
    for number, i in enumerate(instructions):
        if isinstance(i, Stream):
            streams.append((i, _unwrapped(i.wait, index)))
        elif isinstance(i, (DmaIn, DmaOut)):
            copies.append(Copy(i, index, _unwrapped(i.wait, index)))
        elif isinstance(i, (Linear, Attention)):
            rows = i.n_rows
            if isinstance(i, Linear) and (i.gather or i.scatter):
                rows = int(gate[i.queue])
                queued.append(rows)
            works.append(Work(i, index, _unwrapped(i.wait, index), rows))
            if isinstance(i, Linear) and i.route:
                gate = lengths[number]
        index += i.retires
    rows_of = iter(queued)
    orders = [Order(s, wait, bool(next(rows_of)) if s.predicated else True) for s, wait in streams]
    return orders, works, copies


def _unwrapped(wait: int, near: int) -> int:
    """The count that a ``wait`` field means, where ``near`` instructions have been dispatched before."""
    return near + (wait - near + RETIRED_WRAP // 2) % RETIRED_WRAP - RETIRED_WRAP // 2
