"""The pipelines of a container that is being read: every name, size and digest checked before use."""

import hashlib

from moevit.errors import ContainerError
from moevit.host import check_model
from moevit.pipeline import DTYPES, HOST, MACHINE, HostPart, Pipeline, Value, step_values
from moevit.program import Program

MAX_ELEMENTS = 1 << 28  #: of one tensor between steps


def check_pipelines(program: Program) -> None:
    """Check what a program says about its pipelines and the host's parts in them, and their models.

    Raises
    ------
    ContainerError : a name is unknown, twice there or not used, a tensor has another size than its maker or reader
        says, or an ONNX model is damaged or not what its entry says
    """
    if not program.pipelines:
        _require(not program.host_parts and not program.host_data, "host parts of no pipeline", "host parts")
        return
    for what, entries in (("pipelines", program.pipelines), ("host parts", program.host_parts)):
        names = [e.name for e in entries]
        _require(len(set(names)) == len(names), "two have one name", what)
    for part in program.host_parts:
        _check_part(program, part)
    there = sorted((MACHINE, t.name) for t in program.tasks) + sorted((HOST, p.name) for p in program.host_parts)
    used = sorted((s.kind, s.name) for p in program.pipelines for s in p.steps)
    _require(used == sorted(there), "the steps are not the tasks and host parts, each once", "pipelines")
    for pipeline in program.pipelines:
        _check_flow(program, pipeline)


def _check_part(program: Program, part: HostPart) -> None:
    where = f"host part {part.name!r}"
    for value in (*part.inputs, *part.outputs):
        _check_value(value, where)
    end = part.offset + part.size
    _require(part.offset >= 0 and part.size > 0 and end <= len(program.host_data), "outside the host data", where)
    data = program.host_data[part.offset : end]
    _require(hashlib.sha256(data).hexdigest() == part.sha256, "its model's checksum does not fit", where)
    check_model(part, data)


def _check_value(value: Value, where: str) -> None:
    here = f"{where}, tensor {value.name!r}"
    _require(value.dtype in DTYPES, f"unknown dtype {value.dtype!r}", here)
    _require(all(0 < n <= MAX_ELEMENTS for n in value.shape) and value.size <= MAX_ELEMENTS, "bad shape", here)


def _check_flow(program: Program, pipeline: Pipeline) -> None:
    """Each step finds what it reads, and nothing is made twice."""
    where = f"pipeline {pipeline.name!r}"
    there: dict[str, Value] = {}

    def make(value: Value) -> None:
        _check_value(value, where)
        _require(value.name not in there, f"tensor {value.name!r} is made twice", where)
        there[value.name] = value

    def need(value: Value, here: str) -> None:
        made = there.get(value.name)
        if made is None:
            raise ContainerError(f"nothing makes its tensor {value.name!r}", where=here)
        _require((made.dtype, made.size) == (value.dtype, value.size), f"tensor {value.name!r} is another", here)

    for value in pipeline.inputs:
        make(value)
    for step in pipeline.steps:
        inputs, outputs = step_values(program, step)
        for value in inputs:
            need(value, f"{where}, {step.kind} step {step.name!r}")
        for value in outputs:
            make(value)
    for value in pipeline.outputs:
        need(value, where)
    _require(len(pipeline.outputs) > 0, "no output", where)


def _require(condition: bool, what: str, where: str) -> None:
    if not condition:
        raise ContainerError(what, where=where)
