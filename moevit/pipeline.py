"""What a task does besides its program on the machine: the steps of an inference, some of them on the host.

What the machine cannot do is an ONNX model that the host runs before, between or after the machine's programs. The
steps of a pipeline pass tensors on by name: each reads some that are there, of the pipeline's inputs or of an earlier
step, and adds its own. A task of which the machine does everything is a pipeline of one step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moevit.program import Program, Task

MACHINE = "machine"
HOST = "host"

#: NumPy's names of what a tensor between steps can hold
DTYPES = frozenset(
    ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
)


@dataclass(frozen=True)
class Value:
    """A tensor of one image between steps: ``dtype`` is NumPy's name. Of an input or output of a pipeline ``shape``
    is without the batch, of one of a host part it is that of its ONNX model, where the batch is 1."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class HostNode:
    """A node of a model that the host computes: why, and what to do about it."""

    name: str
    op: str
    reason: str
    way_out: str


@dataclass(frozen=True)
class HostPart:
    """An ONNX model that the host runs.

    inputs, outputs : those of the ONNX model, which are tensors of the model that was compiled
    nodes : of that model, which it stands for
    macs : multiply-accumulates per inference
    offset, size, sha256 : where it lies in the program's host data, and its digest
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[HostNode, ...]
    macs: int
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Step:
    """One step: ``kind`` is ``machine``, ``name`` then a task's, or ``host``, and it is a host part's."""

    kind: str
    name: str


@dataclass(frozen=True)
class Pipeline:
    """What an inference of a task, as the user knows it, consists of."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    steps: tuple[Step, ...]


def only_step(task: "Task") -> Pipeline:
    """The pipeline of a task that the machine does alone."""
    return Pipeline(
        task.name,
        tuple(Value(x.name, "float32", x.shape) for x in task.inputs),
        tuple(Value(y.name, "float32", y.shape) for y in task.outputs),
        (Step(MACHINE, task.name),),
    )


def machine_tasks(program: "Program", pipeline: Pipeline) -> "list[Task]":
    """The machine's programs of a pipeline, in order."""
    return [program.task(step.name) for step in pipeline.steps if step.kind == MACHINE]


def host_parts(program: "Program", pipeline: Pipeline) -> list[HostPart]:
    """The host's parts of a pipeline, in order."""
    parts = {part.name: part for part in program.host_parts}
    return [parts[step.name] for step in pipeline.steps if step.kind == HOST]


def step_values(program: "Program", step: Step) -> tuple[Iterable[Value], Iterable[Value]]:
    """What a step reads and what it makes; of a machine step, shapes are without the batch."""
    if step.kind == MACHINE:
        alone = only_step(program.task(step.name))
        return alone.inputs, alone.outputs
    part = next(p for p in program.host_parts if p.name == step.name)
    return part.inputs, part.outputs
