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
from moevit.compiler.ptq.statistics import Calibrated, Channels, Floats, Statistics

Ranges = dict[str, Range]
_OWN = ("name", "output", "source")  # what an operation is called and not what it does
_GATE = ("gate_weight", "gate_bias")


def join_ranges(graphs: Mapping[str, Graph], ranges: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """Ranges by task, with those of corresponding tensors united."""
    joined = join_statistics(graphs, {task: Statistics(of_task, {}, {}) for task, of_task in ranges.items()})
    return {task: of_task.ranges for task, of_task in joined.items()}


def join_statistics(graphs: Mapping[str, Graph], seen: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Statistics by task, with those of corresponding tensors united.

    All that is decided from them (formats, and how channels are evened out) is then the same in each task.
    """
    if len(graphs) == 1:
        return dict(seen)
    places = {task: dict(_places(graph, seen[task].ranges)) for task, graph in graphs.items()}
    ranges: Ranges = {}
    channels: dict[str, Channels] = {}
    hidden: dict[str, Floats] = {}
    for task, of_task in places.items():
        s = seen[task]
        for tensor, place in of_task.items():
            r = s.ranges[tensor]
            ranges[place] = ranges[place].joined(r) if place in ranges else r
            if (c := s.channels.get(tensor)) is not None:
                channels[place] = channels[place].joined(c) if place in channels else c
            if (h := s.hidden.get(tensor)) is not None:
                hidden[place] = hidden.get(place, 0) + h
    return {
        task: Statistics(
            seen[task].ranges | {t: ranges[place] for t, place in of_task.items()},
            seen[task].channels | {t: channels[place] for t, place in of_task.items() if place in channels},
            seen[task].hidden | {t: hidden[place] for t, place in of_task.items() if place in hidden},
        )
        for task, of_task in places.items()
    }


def join_calibrated(graphs: Mapping[str, Graph], seen: Mapping[str, Calibrated]) -> dict[str, Calibrated]:
    """The same for all that calibration knows."""
    whole = join_statistics(graphs, {task: s.whole for task, s in seen.items()})
    part = join_statistics(graphs, {task: s.part for task, s in seen.items()})
    return {task: dataclasses.replace(s, whole=whole[task], part=part[task]) for task, s in seen.items()}


def places(graph: Graph) -> dict[str, str]:
    """What identifies each tensor's place, by its name: tensors of two tasks that have it are computed alike."""
    return dict(_places(graph, {}))


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
