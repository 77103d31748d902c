"""Ranges that several tasks have in common: tasks that share weights should share every other parameter too.

Models for several tasks with one backbone differ in their gates and decoders. Calibrated each for itself, their
tensors would have slightly different scales, and so would all parameters that scales go into: biases, multipliers,
LayerNorm's gamma and beta. Tensors that stand in the same place of the same computation, gates aside, therefore get
the range of all tasks together.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from moevit.compiler.calibrate import Range
from moevit.compiler.ir import Graph, MoE, Op

Ranges = dict[str, Range]
_OWN = ("name", "output", "source")  # what an operation is called and not what it does
_GATE = ("gate_weight", "gate_bias")


def join_ranges(graphs: Mapping[str, Graph], ranges: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """Ranges by task, with those of corresponding tensors united."""
    places = {task: dict(_places(graph, ranges[task])) for task, graph in graphs.items()}
    united: dict[str, Range] = {}
    for task, of_task in places.items():
        for tensor, place in of_task.items():
            r = ranges[task][tensor]
            before = united.get(place, r)
            united[place] = Range(min(before.low, r.low), max(before.high, r.high))
    return {
        task: ranges[task] | {tensor: united[place] for tensor, place in of_task.items()}
        for task, of_task in places.items()
    }


def _places(graph: Graph, ranges: Ranges) -> Iterable[tuple[str, str]]:
    """Each tensor and what identifies its place: a digest of the whole computation that leads to it."""
    digests: dict[str, str] = {}
    for entry in graph.inputs:
        digests[entry.name] = _digest("input", entry.name, entry.shape)
        yield entry.name, digests[entry.name]
    for op in graph:
        digests[op.output] = _digest(type(op).__name__, *_contents(op), *(digests[i] for i in op.inputs))
        yield op.output, digests[op.output]
        if isinstance(op, MoE):
            for inside in (name for name in ranges if name.startswith(f"{op.output}#")):
                yield inside, digests[op.output] + inside.removeprefix(op.output)


def _contents(op: Op) -> Iterable[object]:
    skipped = {*_OWN, *op.OPERANDS, *(_GATE if isinstance(op, MoE) else ())}
    for field in dataclasses.fields(op):
        if field.name not in skipped:
            yield field.name
            yield getattr(op, field.name)


def _digest(*parts: object) -> str:
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(repr((part.dtype.str, part.shape)).encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            sha.update(repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()
