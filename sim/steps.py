"""Runs the steps of a pipeline in order: the machine's wherever the caller likes, the host's in onnxruntime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.host import HostModel
from moevit.pipeline import HOST, Pipeline, host_parts
from moevit.program import Program, Task
from moevit.sim.check import output_values
from moevit.sim.inputs import Inputs
from moevit.sim.reference import decode_output

CHUNK = 256  #: images that go through all steps together: what is between the steps is kept for so many

#: runs a task on inputs, of which the first has this number, and gives back output buffers [B, output bytes]
Machine = Callable[[Task, Inputs, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class StepsResult:
    """Outputs [B, *shape] by name, and by host part what each image took, in seconds on this CPU."""

    outputs: dict[str, NDArray]
    host_seconds: dict[str, list[float]]


def run_steps(program: Program, pipeline: Pipeline, inputs: Inputs, machine: Machine) -> StepsResult:
    """Run a pipeline.

    Parameters
    ----------
    program, pipeline, inputs : what to run
    machine : runs its steps on the machine

    Raises
    ------
    ContainerError : onnxruntime does not take a model
    InputError : a step on the host stopped, or made what is not finite
    """
    hosts = {part.name: _host_model(program, part.name) for part in host_parts(program, pipeline)}
    step = CHUNK if len(pipeline.steps) > 1 else max(len(inputs), 1)
    made: dict[str, list[NDArray]] = {y.name: [] for y in pipeline.outputs}
    for first in range(0, len(inputs), step):
        part = Inputs({name: a[first : first + step] for name, a in inputs.arrays.items()}, {})
        values = _run_chunk(program, pipeline, part, first, machine, hosts)
        for y in pipeline.outputs:
            made[y.name].append(values[y.name].reshape(-1, *y.shape))
    outputs = {name: np.concatenate(parts) for name, parts in made.items()}
    return StepsResult(outputs, {name: host.seconds for name, host in hosts.items()})


def _host_model(program: Program, name: str) -> HostModel:
    part = next(p for p in program.host_parts if p.name == name)
    return HostModel(part, program.host_data[part.offset : part.offset + part.size])


def _run_chunk(
    program: Program, pipeline: Pipeline, inputs: Inputs, first: int, machine: Machine, hosts: Mapping[str, HostModel]
) -> dict[str, NDArray]:
    """Every tensor that some step makes, and the pipeline's outputs among them."""
    values: dict[str, NDArray] = {}
    floats: Mapping[str, NDArray] = inputs.floats() if hosts else {}
    for step in pipeline.steps:
        if step.kind == HOST:
            values |= hosts[step.name].run({**floats, **values})
            continue
        task = program.task(step.name)
        given = {}
        for x in task.inputs:
            given[x.name] = inputs.arrays[x.name] if x.name in inputs.arrays else values[x.name].reshape(-1, *x.shape)
        buffers = machine(task, Inputs(given, {}), first)
        for y in task.outputs:
            values[y.name] = decode_output(task, y.name, output_values(task, y, buffers, program.config))
    return values
