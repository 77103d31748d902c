"""What a simulation gives back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moevit.errors import MismatchError
from moevit.isa import DmaIn, DmaOut, Stream
from moevit.isa.fields import INSTRUCTION_BYTES
from moevit.isa.formats import DmaSource
from moevit.program import Program, Task
from moevit.sim.dram import DramModel
from moevit.sim.experts import ExpertBlocks, Lengths, blocks
from moevit.sim.rtl import ImageRun


class Timed(Protocol):
    """What is known of the time that a run takes, measured or predicted; see :class:`moevit.sim.rtl.ImageRun`."""

    @property
    def cycles(self) -> int: ...

    @property
    def retire_cycles(self) -> tuple[int, ...]: ...

    @property
    def counters(self) -> dict[str, dict[str, int]]: ...


@dataclass(frozen=True)
class LayerCycles:
    """Cycles between the retirement of a layer's last instruction and of the one before its first.

    The layers overlap in the pipeline, so this is what each adds to the total, not what it would take alone.
    """

    name: str
    kind: str
    macs: int
    cycles: float


@dataclass(frozen=True)
class Result:
    """A finished simulation of B inputs; averages where a number stands for all of them."""

    backend: str
    task: str
    config: str
    config_digest: str
    clock_mhz: float
    outputs: dict[str, NDArray[np.float32]]  #: by output name: [B, *shape]
    cycles: tuple[int, ...] | None  #: one per image; None where the back-end has no notion of time
    macs: int
    mac_utilisation: float | None
    #: per stage, cycles by cause (see registers.COUNTERS), and idle; of the cycle back-end, those causes that it
    #: knows, and ``other`` for the rest
    stages: dict[str, dict[str, float]] | None
    layers: tuple[LayerCycles, ...] | None
    #: per inference: weights, instructions, activations; and of the weights, those of experts that had tokens, and
    #: those that were read for experts that had none
    dram_bytes: dict[str, int]
    #: by gate, for each image: how many tokens went to each expert
    experts: dict[str, list[list[int]]]
    dram: DramModel | None
    bit_exact: bool | None  #: None when it was not checked
    mismatch: MismatchError | None  #: the first difference, if there is one
    checked_values: int  #: elements that were compared and equal
    simulated_cycles: int | None  #: by all processes together, set-up included
    wall_s: float

    @property
    def images(self) -> int:
        return len(next(iter(self.outputs.values()), self.cycles or ()))

    @property
    def latency_ms(self) -> float | None:
        """Average over the images, at the configuration's clock."""
        if self.cycles is None:
            return None
        return sum(self.cycles) / len(self.cycles) / (self.clock_mhz * 1000)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``moevit simulate --json``; the outputs themselves are not in it."""
        return {
            "backend": self.backend,
            "config": self.config,
            "config_digest": self.config_digest,
            "clock_mhz": self.clock_mhz,
            "task": self.task,
            "images": self.images,
            "cycles": None if self.cycles is None else list(self.cycles),
            "latency_ms": self.latency_ms,
            "macs": self.macs,
            "mac_utilisation": self.mac_utilisation,
            "stages": self.stages,
            "layers": None if self.layers is None else [asdict(layer) for layer in self.layers],
            "dram_bytes": self.dram_bytes,
            "experts": self.experts,
            "dram": None if self.dram is None else self.dram.as_dict(),
            "bit_exact": self.bit_exact,
            "mismatch": None if self.mismatch is None else self.mismatch.as_json(),
            "checked_values": self.checked_values,
            "simulated_cycles": self.simulated_cycles,
            "wall_s": self.wall_s,
        }


def layer_cycles(program: Program, task: Task, runs: Sequence[Timed]) -> tuple[LayerCycles, ...]:
    """What each layer adds to the total; the last entry is what no layer accounts for, such as DMA_OUT."""
    retired = np.array([run.retire_cycles for run in runs], np.int64)
    added = np.diff(retired, axis=1, prepend=0).mean(axis=0)
    numbers = [n for n, i in enumerate(program.instructions(task)) if i.retires]
    per_instruction = dict(zip(numbers, added.tolist(), strict=True))
    layers = []
    for layer in task.layers:
        cycles = sum(per_instruction.pop(n, 0.0) for n in layer.instructions)
        layers.append(LayerCycles(layer.name, layer.kind, layer.macs, cycles))
    ending = sum(run.cycles for run in runs) / len(runs) - float(retired[:, -1].mean())
    layers.append(LayerCycles("output", "output", 0, sum(per_instruction.values()) + ending))
    return tuple(layers)


def stage_cycles(runs: Sequence[Timed], rest: str = "idle") -> dict[str, dict[str, float]]:
    """Per stage, cycles by cause on average over the runs; ``idle`` is the rest, in which it had nothing to do."""
    out: dict[str, dict[str, float]] = {}
    for stage, causes in runs[0].counters.items():
        out[stage] = {cause: sum(run.counters[stage][cause] for run in runs) / len(runs) for cause in causes}
        total = sum(run.cycles for run in runs) / len(runs)
        out[stage][rest] = total - sum(out[stage].values())
    return out


def mean_dram_bytes(runs: list[ImageRun]) -> dict[str, int]:
    """What an inference moves on average."""
    return {what: round(sum(run.dram_bytes[what] for run in runs) / len(runs)) for what in runs[0].dram_bytes}


def program_dram_bytes(program: Program, task: Task, lengths: Lengths | None = None) -> dict[str, int]:
    """The bytes that a program moves, as it says itself; a bus moves whole words, so somewhat more.

    ``lengths`` says which experts have tokens, and the mean over their images is what counts; without it all do.
    """
    config = program.config
    instructions = program.instructions(task)
    weights = experts = activations = 0
    for i in instructions:
        if isinstance(i, Stream):
            size = sum(end - first for first, end in blocks(i, config))
            if i.predicated:
                experts += size
            else:
                weights += size
        elif isinstance(i, DmaIn):
            size = i.count0 * i.count1 * i.segments * i.segment_bytes
            if i.source == DmaSource.IMAGE:
                weights += size
            else:
                activations += size
        elif isinstance(i, DmaOut):
            activations += i.words * config.columns
    if lengths:
        experts = round(float(ExpertBlocks(config, instructions).needed(lengths).sum(axis=1).mean()))
    return {
        "weights": weights + experts, "instructions": task.instructions * INSTRUCTION_BYTES,
        "activations": activations, "experts": experts, "speculative": 0,
    }  # fmt: skip
