"""What the demo says, as plain values: accuracy, storage, cycles by part of the network, and use of the experts."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moevit.cli import listing
from moevit.isa import Linear
from moevit.numerics.activation import Activation
from moevit.program import Program, Task

if TYPE_CHECKING:
    from moevit.sim.result import Result

Queues = dict[str, list[list[int]]]  #: of each gate, by its layer's name, for each scene: tokens of each expert


@dataclass(frozen=True)
class Accuracy:
    """One task's figure against the truth, of float and of integer arithmetic on the same scenes."""

    task: str
    figure: str
    scenes: int
    in_float: float
    int8: float
    more_is_better: bool

    @property
    def loss(self) -> float:
        """How much worse the integers are; negative if they are better."""
        return self.in_float - self.int8 if self.more_is_better else self.int8 - self.in_float


def accuracy(
    task: str, got: NDArray[np.float32], want: NDArray[np.float32], target: NDArray[np.generic]
) -> Accuracy:
    """Mean IoU for scores of classes, RMSE for metres."""
    from moevit.sim import metrics

    classes = got.shape[1] > 1
    found = metrics.against_target(got, want, target)
    name, figure = ("miou", "mean IoU") if classes else ("rmse", "RMSE in m")
    return Accuracy(task, figure, len(got), found[f"{name}_float"], found[f"{name}_int8"], classes)


@dataclass(frozen=True)
class Storage:
    """What the container holds, in bytes."""

    container: int
    image: int  #: of the container: weights, parameters and instructions
    shared: int  #: what a container for each task would hold once more
    expert: int  #: of the image: weights and parameters of all experts of all layers


def storage(program: Program, container: int) -> Storage:
    """From the container's size, the blocks of its image and who reads them."""
    users = [(block.bytes, block.users) for block in listing.image_blocks(program)]
    again = sum(n * (len({user.partition(":")[0] for user in names}) - 1) for n, names in users)
    names = {
        f"{task.name}: {layer.name}" if len(program.tasks) > 1 else layer.name
        for task in program.tasks
        for layer in task.layers
        if layer.kind in ("gather", "scatter")
    }
    expert = sum(n for n, readers in users if names & set(readers))
    return Storage(container, len(program.image), again, expert)


def every_expert_macs(program: Program, task: Task) -> int:
    """Multiply-accumulates of a task if each token went to all experts."""
    instructions = program.instructions(task)
    gates = {layer.outputs[0]: instructions[layer.instructions[0]] for layer in task.layers if layer.kind == "route"}
    total = 0
    for layer in task.layers:
        factor = 1.0
        if layer.kind in ("gather", "scatter"):
            gate = gates[layer.inputs[1]]
            assert isinstance(gate, Linear)
            factor = gate.experts / gate.top_k
        total += round(layer.macs * factor)
    return total


# -- parts of the network ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Layers that belong together: ``input``, ``attention``, ``MLP``, ``gate``, ``experts``, ``decoder``, ``output``.

    block : number of the transformer block, -1 outside of them
    gate : of gate and experts: the name of the gate's layer
    """

    role: str
    block: int
    layers: tuple[str, ...]
    gate: str = ""

    @property
    def name(self) -> str:
        return self.role if self.block < 0 else f"{self.block}  {self.role}"


def parts(program: Program, task: Task) -> list[Part]:
    """A task's layers, grouped, in the order of execution; ``output`` is what no layer accounts for."""
    instructions = program.instructions(task)
    gates = {layer.outputs[0]: layer.name for layer in task.layers if layer.kind == "route"}
    found: list[tuple[str, int, str, list[str]]] = []
    role, block, gate = "input", -1, ""
    for layer in task.layers:
        first = instructions[layer.instructions[0]]
        previous = role, gate
        begins = not found
        if layer.kind in ("route", "gather", "scatter"):
            role = "gate" if layer.kind == "route" else "experts"
            gate = layer.name if layer.kind == "route" else gates[layer.inputs[1]]
        elif len(layer.outputs) == 3:
            role, gate, block, begins = "attention", "", block + 1, True
        elif isinstance(first, Linear) and first.activation != Activation.NONE:
            role, gate, begins = "MLP", "", True
        elif isinstance(first, Linear) and not first.residual and block >= 0:
            role, gate = "decoder", ""
        if begins or previous != (role, gate):
            found.append((role, -1 if role == "decoder" else block, gate, []))
        found[-1][3].append(layer.name)
    ended = Part("output", -1, ("output",))
    return [Part(role, number, tuple(names), gate) for role, number, gate, names in found] + [ended]


@dataclass(frozen=True)
class PartCycles:
    """A part and its time, on average over the scenes.

    cycles : what its layers add to the total
    ideal : what the array spends on it when nothing makes it wait, for the tokens that the experts had
    """

    part: Part
    cycles: float
    ideal: float


def part_cycles(program: Program, task: Task, rtl: "Result", queues: Queues) -> list[PartCycles]:
    """Cycles by part; ``queues`` are those of the same scenes."""
    assert rtl.layers is not None
    instructions = program.instructions(task)
    measured = {layer.name: layer.cycles for layer in rtl.layers}
    works = {layer.name: [instructions[n] for n in layer.instructions] for layer in task.layers}
    found = []
    for part in parts(program, task):
        ideal = 0.0
        for name in part.layers:
            for work in works.get(name, []):
                if isinstance(work, Linear) and (work.gather or work.scatter):
                    counts = [lengths[work.queue] for lengths in queues[part.gate]]
                    rows = [dataclasses.replace(work, n_rows=n) for n in counts if n]
                    ideal += sum(listing.ideal_cycles(r, program.config) for r in rows) / len(counts)
                else:
                    ideal += listing.ideal_cycles(work, program.config)
        found.append(PartCycles(part, sum(measured[name] for name in part.layers), ideal))
    return found


# -- experts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """A gate's choices.

    top_k : experts of a token
    tokens : of each expert, on average over the scenes
    spread : of each expert: tokens in the scene with fewest, those that a tenth of the scenes stays below, those
        that a tenth exceeds, and tokens in the scene with most
    used : experts that had a token, on average over the scenes
    """

    layer: str
    block: int
    top_k: int
    tokens: tuple[float, ...]
    spread: tuple[tuple[float, ...], ...]
    used: float

    @property
    def experts(self) -> int:
        return len(self.tokens)


def usage(program: Program, task: Task, queues: Queues) -> list[Usage]:
    """The gates of a task, in the order of execution."""
    instructions = program.instructions(task)
    blocks = {part.gate: part.block for part in parts(program, task) if part.gate}
    works = {layer.name: instructions[layer.instructions[0]] for layer in task.layers}
    found = []
    for name, block in blocks.items():
        gate = works[name]
        assert isinstance(gate, Linear)
        lengths = np.array(queues[name])
        tokens = tuple(float(n) for n in lengths.mean(axis=0))
        spread = tuple(tuple(map(float, x)) for x in np.quantile(lengths, (0, 0.1, 0.9, 1), axis=0).T)
        used = float((lengths > 0).sum(axis=1).mean())
        found.append(Usage(name, block, gate.top_k, tokens, spread, used))
    return found


def first_experts(
    program: Program, task: Task, gate: str, inputs: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.int64]:
    """The expert with the largest score of each patch, [n, rows, columns of patches]; of the gate of that name.

    The scores are the reference's, which the back-ends were compared with.
    """
    from moevit.sim.inputs import quantise
    from moevit.sim.reference import run_reference

    layer = next(x for x in task.layers if x.name == gate)
    _, height, width, patch_height, patch_width = next(x.patch for x in task.layers if x.kind == "patches")
    scores = run_reference(program, task, quantise(task, inputs))[layer.outputs[0]]
    return scores.argmax(axis=-1).reshape(len(scores), height // patch_height, width // patch_width)


# -- several runs --------------------------------------------------------------------------------------------


def merge(results: Sequence["Result"]) -> "Result":
    """Runs of one task after each other, as one result."""
    first = results[0]
    weights = np.array([r.images for r in results]) / sum(r.images for r in results)
    times = np.array([sum(r.cycles or ()) for r in results])

    def mean(values: Sequence[float]) -> float:
        return float(np.dot(weights, values))

    assert first.layers is not None and first.stages is not None
    layers = [r.layers or () for r in results]
    stages = [r.stages or {} for r in results]
    return dataclasses.replace(
        first,
        outputs={name: np.concatenate([r.outputs[name] for r in results]) for name in first.outputs},
        cycles=tuple(n for r in results for n in r.cycles or ()),
        mac_utilisation=float(np.dot(times, [r.mac_utilisation or 0.0 for r in results]) / times.sum()),
        layers=tuple(dataclasses.replace(x[0], cycles=mean([y.cycles for y in x])) for x in zip(*layers, strict=True)),
        stages={
            stage: {cause: mean([s[stage][cause] for s in stages]) for cause in causes}
            for stage, causes in first.stages.items()
        },
        experts={name: [counts for r in results for counts in r.experts[name]] for name in first.experts},
        dram_bytes={name: round(mean([r.dram_bytes[name] for r in results])) for name in first.dram_bytes},
        checked_values=sum(r.checked_values for r in results),
        simulated_cycles=sum(r.simulated_cycles or 0 for r in results),
        wall_s=sum(r.wall_s for r in results),
    )
