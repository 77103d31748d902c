"""Layers on a roofline: how many multiplications each does for the bytes that it moves, and how fast."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moevit.cli.groups import Group
from moevit.cli.listing import stream_bytes
from moevit.config import AcceleratorConfig
from moevit.energy.activity import Counter
from moevit.isa import Attention, DmaIn, Instruction, Linear


@dataclass(frozen=True)
class Roof:
    """What a machine can do at most, in GMAC/s and GB/s.

    on_chip : of the operand memory, whose words the array multiplies
    """

    compute: float
    dram: float
    on_chip: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Point:
    """A group of layers.

    macs, cycles, dram_bytes, operand_bytes : of one inference
    dram_intensity, operand_intensity : multiply-accumulates for a byte; None where no byte moves
    gmacs : multiply-accumulates in a nanosecond; None where the layer adds no cycle
    """

    name: str
    kind: str
    macs: float
    cycles: float
    dram_bytes: float
    operand_bytes: float
    dram_intensity: float | None
    operand_intensity: float | None
    gmacs: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def roof(config: AcceleratorConfig, dram_bytes_per_cycle: float) -> Roof:
    """The machine's limits."""
    ghz = config.clock_mhz / 1000
    return Roof(config.macs_per_cycle * ghz, dram_bytes_per_cycle * ghz, config.operand_word_bytes * ghz)


def point(
    config: AcceleratorConfig, group: Group, instructions: Sequence[Instruction], queues: Mapping[str, Sequence[float]],
    cycles: float,
) -> Point:  # fmt: skip
    """A group of layers on the roofline.

    Parameters
    ----------
    group : the layers
    instructions : the program's
    queues : by the name of a gate's scores, tokens of each expert on average
    cycles : that the layers add to an inference
    """
    macs = streamed = 0.0
    count = Counter(config)
    for layer in group.layers:
        works = [instructions[number] for number in layer.instructions]
        share = 1.0
        for work in works:
            if isinstance(work, Linear):
                queued = work.gather or work.scatter
                rows = queues[layer.inputs[1]][work.queue] if queued else work.n_rows
                count.linear(work, rows)
                share = rows / work.n_rows if queued else 1.0
            elif isinstance(work, Attention):
                count.attention(work)
            elif isinstance(work, DmaIn):
                streamed += work.moved_bytes
        if share > 0:
            streamed += sum(stream_bytes(instructions[number], config) for number in layer.streams)
        macs += layer.macs  # those of experts are shared out evenly, and a group has all of a gate's
    operand = count.steps * config.operand_word_bytes
    return Point(
        group.name, group.kind, macs, cycles, streamed, operand, macs / streamed if streamed and macs else None,
        macs / operand if operand and macs else None,
        macs / cycles * config.clock_mhz / 1000 if cycles > 0 and macs else None,
    )  # fmt: skip
