"""What to compile of a model: the machine's graphs, the host's ONNX models, and the order in which they run."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
import onnx
from numpy.typing import NDArray

from moevit.compiler import ir
from moevit.compiler.frontend import qdq
from moevit.compiler.frontend.check import TOLERANCE, DiffersError, check_against_onnxruntime, compare, random_input
from moevit.compiler.frontend.load import lower
from moevit.compiler.frontend.model import read
from moevit.compiler.frontend.node import NOISE
from moevit.compiler.fuse import fuse
from moevit.compiler.legalise import legalise
from moevit.compiler.partition.flow import Flow, flow_of
from moevit.compiler.partition.observe import Observer
from moevit.compiler.partition.split import Split, split
from moevit.errors import ModelError, UnsupportedNode, UnsupportedOpError
from moevit.host import HostModel
from moevit.pipeline import HOST, MACHINE, HostPart, Pipeline, Step, Value

Arrays = Mapping[str, NDArray]
CHECKED = 2  #: random inputs that the parts are checked with
TRIES = 3  #: where two experts' scores are almost equal, rounding may decide


@dataclass(frozen=True)
class Plan:
    """A task to compile.

    inputs : shapes of the model's inputs, without the batch
    graphs : what the machine computes, by the names of its programs
    pipeline : None where the machine does all
    hosts : the host's parts, which do not lie anywhere yet, and their ONNX models
    flow : the model as it was split, if it was
    nodes : of the model, by the names of the programs, if it was split
    """

    name: str
    inputs: dict[str, tuple[int, ...]]
    graphs: dict[str, ir.Graph]
    pipeline: Pipeline | None = None
    hosts: tuple[tuple[HostPart, bytes], ...] = ()
    flow: Flow | None = None
    nodes: Mapping[str, tuple[onnx.NodeProto, ...]] = field(default_factory=dict)

    def data(self, inputs: Arrays) -> dict[str, Arrays]:
        """By program: its inputs [B, ...] for inputs [B, ...] of the model."""
        if self.flow is None:
            return {self.name: inputs}
        inner = {i.name for g in self.graphs.values() for i in g.inputs} - set(self.flow.inputs)
        return _by_graph(self.graphs, {**inputs, **Observer(self.flow, sorted(inner))(inputs)})


def plan(
    name: str, path: str | PathLike[str], *, strict: bool = False, shapes: Mapping[str, Sequence[int]] | None = None,
    beyond: Mapping[str, UnsupportedNode] | None = None,
) -> Plan:  # fmt: skip
    """Read a model and decide who computes what of it.

    Parameters
    ----------
    name : of the task
    path : the ONNX file
    strict : whether a node that the machine cannot do is an error
    shapes : whole shapes of inputs whose extents the model leaves open
    beyond : nodes whose values the machine does not hold, or which do not fit it, by name: they are the host's

    Raises
    ------
    ModelError : the file cannot be read, or a part of it differs from the whole
    UnsupportedOpError : nodes cannot be mapped, and ``strict`` is set or nothing else is left
    """
    stripped, where = qdq.strip(read(path, shapes)), str(path)
    model = stripped.model
    try:
        graph = lower(model, where, formats=stripped)
        fuse(legalise(graph))
    except UnsupportedOpError as error:
        if strict:
            raise
        refused = error
    else:
        if not beyond:
            check_against_onnxruntime(path, graph, model=model if stripped.quantised else None)
            return Plan(name, {i.name: i.model_shape for i in graph.inputs}, {name: graph})
        refused = UnsupportedOpError(list(beyond.values()), where=where)
    noise = [node for node in refused.nodes if node.reason == NOISE]
    if noise:  # nothing can be compared with what differs from run to run
        raise UnsupportedOpError(noise, where=where)
    try:
        flow = flow_of(model, where)
    except ModelError as error:  # a model that onnxruntime does not run has no place on the host
        raise UnsupportedOpError(refused.nodes, where=where, mend=f"the host cannot do them: {error.what}") from error
    if any(flow.values[n].dtype != "float32" for n in flow.inputs):
        raise refused
    try:
        parts = split(flow, refused.nodes, stripped, beyond)
    except UnsupportedOpError as error:
        raise UnsupportedOpError(
            refused.nodes, where=where, mend="and nothing that is left is worth the accelerator's while"
        ) from error
    made = _assemble(name, flow, parts)
    _check(made, flow)
    return made


def _assemble(name: str, flow: Flow, parts: Split) -> Plan:
    machine, host = [i for i, p in enumerate(parts.parts) if not p.host], 0
    graphs: dict[str, ir.Graph] = {}
    nodes: dict[str, tuple[onnx.NodeProto, ...]] = {}
    hosts, steps = [], []
    for i, part in enumerate(parts.parts):
        if not part.host:
            step = name if len(machine) == 1 else f"{name}#{len(graphs) + 1}"
            graphs[step] = parts.graphs[i]
            nodes[step] = part.nodes
            steps.append(Step(MACHINE, step))
            continue
        host += 1
        data = flow.part(part.nodes, part.outputs).SerializeToString(deterministic=True)
        entry = HostPart(
            name=f"{name}@host{host}",
            inputs=tuple(flow.values[t] for t in part.inputs),
            outputs=tuple(flow.values[t] for t in part.outputs),
            nodes=tuple(parts.host[n.name] for n in part.nodes),
            macs=sum(parts.macs[n.name] for n in part.nodes),
            offset=0,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        hosts.append((entry, data))
        steps.append(Step(HOST, entry.name))
    inputs, outputs = (tuple(_without_batch(flow.values[n]) for n in ends) for ends in (flow.inputs, flow.outputs))
    pipeline = Pipeline(name, inputs, outputs, tuple(steps))
    return Plan(name, {v.name: v.shape for v in inputs}, graphs, pipeline, tuple(hosts), flow, nodes)


def _without_batch(value: Value) -> Value:
    shape = value.shape[1:] if len(value.shape) > 1 and value.shape[0] == 1 else value.shape
    return Value(value.name, value.dtype, shape)


def _by_graph(graphs: Mapping[str, ir.Graph], values: Arrays) -> dict[str, Arrays]:
    return {
        name: {i.name: values[i.name].reshape(-1, *i.model_shape) for i in graph.inputs}
        for name, graph in graphs.items()
    }


def _check(made: Plan, flow: Flow) -> None:
    """Hold every part to the whole model, on what it reads there for random inputs; raises `ModelError`."""
    ends = [i.name for g in made.graphs.values() for i in g.inputs]
    ends += [o.name for g in made.graphs.values() for o in g.outputs]
    ends += [v.name for part, _ in made.hosts for v in (*part.inputs, *part.outputs)]
    observer = Observer(flow, sorted(set(ends) - set(flow.inputs)))
    entries = [ir.Input(name=n, shape=shape, model_shape=shape) for n, shape in made.inputs.items()]
    models = [HostModel(part, data) for part, data in made.hosts]
    experts = any(isinstance(op, ir.MoE) for graph in made.graphs.values() for op in graph)
    tries = TRIES if experts else 1
    for attempt in range(tries):
        feeds = {e.name: random_input(e, CHECKED, attempt * len(entries) + i) for i, e in enumerate(entries)}
        values = {**feeds, **observer(feeds)}
        try:
            for name, inputs in _by_graph(made.graphs, values).items():
                compare(made.graphs[name], inputs, values, flow.where)
            for model in models:
                _compare_host(model, values)
            return
        except DiffersError as error:
            if attempt + 1 == tries:
                raise ModelError(
                    str(error), where=flow.where, mend="this is a mistake of moevit's: please report it"
                ) from error


def _compare_host(model: HostModel, values: Arrays) -> None:
    for name, got in model.run(values).items():
        want = values[name]
        if got.dtype.kind == "f":
            error = float(np.max(np.abs(got - want), initial=0)) / max(float(np.max(np.abs(want), initial=0)), 1e-30)
            if not error <= TOLERANCE:
                raise DiffersError(f"tensor '{name}' of {model.part.name} differs by {error:.2g} of its largest value")


def stored(hosts: Iterable[tuple[HostPart, bytes]]) -> tuple[tuple[HostPart, ...], bytes]:
    """Host parts with a place each, and what lies there; equal models lie there once."""
    data = bytearray()
    places: dict[str, int] = {}
    parts = []
    for part, model in hosts:
        if part.sha256 not in places:
            places[part.sha256] = len(data)
            data += model
        parts.append(replace(part, offset=places[part.sha256]))
    return tuple(parts), bytes(data)
