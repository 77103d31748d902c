"""What a simulation gives back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moevit.errors import MismatchError
from moevit.isa import DmaIn, DmaOut, Stream
from moevit.isa.fields import INSTRUCTION_BYTES
from moevit.isa.formats import DmaSource
from moevit.pipeline import MACHINE, Pipeline
from moevit.program import Program, Task
from moevit.sim.dram import DramModel
from moevit.sim.experts import ExpertBlocks, Lengths, blocks
from moevit.sim.rtl import ImageRun
from moevit.sim.steps import StepsResult


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
class PartResult:
    """What one of the machine's programs did in a simulation; the fields are those of :class:`Result`."""

    task: str
    macs: int
    cycles: tuple[int, ...] | None
    stages: dict[str, dict[str, float]] | None
    layers: tuple[LayerCycles, ...] | None
    dram_bytes: dict[str, int]
    experts: dict[str, list[list[int]]]
    dram: DramModel | None
    mismatch: MismatchError | None
    checked: bool
    checked_values: int
    simulated_cycles: int | None


@dataclass(frozen=True)
class StepTime:
    """A step of an inference: the machine's with cycles where the back-end counts them, the host's with milliseconds on
    this CPU, both on average."""

    name: str
    kind: str
    macs: int
    cycles: float | None = None
    host_ms: float | None = None


@dataclass(frozen=True)
class Result:
    """A finished simulation of B inputs; averages where a number stands for all of them.

    Where the machine has several programs for a task, numbers are their sums, and the names of ``layers`` begin with
    the program's.
    """

    backend: str
    task: str
    config: str
    config_digest: str
    clock_mhz: float
    outputs: dict[str, NDArray]  #: by output name: [B, *shape]; float32, unless the host makes it
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
    steps: tuple[StepTime, ...] = ()
    host_ms: float | None = None  #: what an image takes on the host, measured on this CPU; None without a part there

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
            "steps": [asdict(step) for step in self.steps],
            "host_ms": self.host_ms,
            "wall_s": self.wall_s,
        }


def joined(
    program: Program,
    pipeline: Pipeline,
    parts: Sequence[PartResult],
    done: StepsResult,
    *,
    backend: str,
    wall_s: float,
) -> Result:
    """The result of a whole pipeline, from those of the machine's programs and what the host took."""
    config = program.config
    first = parts[0]
    by_image = [p.cycles for p in parts if p.cycles is not None]
    cycles = tuple(sum(image) for image in zip(*by_image, strict=True)) or None
    macs = sum(p.macs for p in parts)
    mismatch = next((p.mismatch for p in parts if p.mismatch is not None), None)
    counted = [p.simulated_cycles for p in parts if p.simulated_cycles is not None]
    steps = _step_times(program, pipeline, parts, done)
    on_host = [s.host_ms for s in steps if s.host_ms is not None]
    return Result(
        backend=backend,
        task=pipeline.name,
        config=config.name,
        config_digest=f"{config.digest:016x}",
        clock_mhz=config.clock_mhz,
        outputs=done.outputs,
        cycles=cycles,
        macs=macs,
        mac_utilisation=macs * len(cycles) / (sum(cycles) * config.macs_per_cycle) if cycles else None,
        stages=_summed([p.stages for p in parts if p.stages is not None]),
        layers=_all_layers(parts),
        dram_bytes={what: sum(p.dram_bytes[what] for p in parts) for what in first.dram_bytes},
        experts={name: queues for p in parts for name, queues in p.experts.items()},
        dram=first.dram,
        bit_exact=mismatch is None if first.checked else None,
        mismatch=mismatch,
        checked_values=sum(p.checked_values for p in parts),
        simulated_cycles=sum(counted) if counted else None,
        wall_s=wall_s,
        steps=steps,
        host_ms=sum(on_host) if on_host else None,
    )


def _step_times(
    program: Program, pipeline: Pipeline, parts: Sequence[PartResult], done: StepsResult
) -> tuple[StepTime, ...]:
    machine = {p.task: p for p in parts}
    host = {p.name: p for p in program.host_parts}
    out = []
    for step in pipeline.steps:
        if step.kind == MACHINE:
            cycles = machine[step.name].cycles
            mean = sum(cycles) / len(cycles) if cycles else None
            out.append(StepTime(step.name, step.kind, machine[step.name].macs, cycles=mean))
        else:
            taken = done.host_seconds.get(step.name)
            mean = 1000 * sum(taken) / len(taken) if taken else None
            out.append(StepTime(step.name, step.kind, host[step.name].macs, host_ms=mean))
    return tuple(out)


def _summed(parts: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]] | None:
    if not parts:
        return None
    return {
        stage: {cause: sum(p[stage][cause] for p in parts) for cause in causes} for stage, causes in parts[0].items()
    }


def _all_layers(parts: Sequence[PartResult]) -> tuple[LayerCycles, ...] | None:
    if parts[0].layers is None:
        return None
    if len(parts) == 1:
        return parts[0].layers
    return tuple(replace(layer, name=f"{p.task}: {layer.name}") for p in parts for layer in p.layers or ())


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
            size = i.moved_bytes
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
