"""A model's data flow with everything static computed: what a partition is made of.

Exports compute shapes from shapes and masks from constants, all over the graph. A cut through such a model would send
these from part to part, so first onnxruntime computes every tensor that no input has an effect on, and the types and
shapes of all others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from moevit.compiler.frontend.model import input_shape
from moevit.compiler.frontend.node import RANDOM
from moevit.compiler.partition.probe import run, session_of
from moevit.errors import ModelError
from moevit.pipeline import DTYPES, Value

#: operators whose outputs' shapes depend on data, and by operator the operands that a shape comes from
_DATA_SHAPED = {"NonZero", "Unique", "NonMaxSuppression", "Compress", "Loop", "Scan", "If", "StringSplit"}
_SHAPE_OPERANDS = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4),
    "Pad": (1, 3), "Resize": (2, 3), "Upsample": (1,), "OneHot": (1,), "TopK": (1,), "Split": (1,), "Squeeze": (1,),
    "Unsqueeze": (1,), "CenterCropPad": (1,), "AffineGrid": (1,),
}  # fmt: skip
_SHAPE = "#shape"
_MAX_BYTES = (1 << 31) - 1  #: of an ONNX file


@dataclass(frozen=True)
class Flow:
    """A model whose nodes all depend on an input, and are read by something.

    where : the file, for messages
    model : the model, its batch 1 and its nodes' names unique, but nothing computed
    nodes : in order
    constants : by name, those that nodes read
    values : type and whole shape of every other tensor
    inputs, outputs : their names
    """

    where: str
    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def reads(self, node: onnx.NodeProto) -> list[str]:
        """The tensors that a node reads, but for constants, each once."""
        return [n for n in dict.fromkeys(read_by(node)) if n in self.values]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or constant."""
        return self.values[name].shape if name in self.values else tuple(self.constants[name].dims)

    def part(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> onnx.ModelProto:
        """Some nodes as a model of their own, with fixed shapes.

        Raises
        ------
        ModelError : it would be larger than an ONNX file can be
        """
        made = {o for node in nodes for o in node.output}
        read = list(dict.fromkeys(n for node in nodes for n in read_by(node)))
        graph = helper.make_graph(
            list(nodes), "part", [self._entry(n) for n in read if n in self.values and n not in made],
            [self._entry(n) for n in outputs], [self.constants[n] for n in read if n in self.constants],
        )  # fmt: skip
        model = helper.make_model(
            graph, ir_version=self.model.ir_version, opset_imports=self.model.opset_import, producer_name="moevit"
        )
        if model.ByteSize() > _MAX_BYTES:
            raise ModelError("a part for the host is larger than 2 GB", where=self.where)
        return model

    def _entry(self, name: str) -> onnx.ValueInfoProto:
        value = self.values[name]
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), value.shape
        )


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those that graphs inside it take from around it too."""
    yield from (n for n in node.input if n)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            for inner in graph.node:
                yield from (n for n in read_by(inner) if n not in own)
                own |= set(inner.output)
            yield from (o.name for o in graph.output if o.name not in own)


def owner_names(node: onnx.NodeProto) -> Iterator[str]:
    """A node's name and those of the nodes of graphs inside it."""
    yield node.name
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from owner_names(inner)


def flow_of(model: onnx.ModelProto, where: str) -> Flow:
    """The flow of a model that the front end has read.

    Raises
    ------
    ModelError : an input cannot be given, onnxruntime cannot run the model, or a tensor of it is no array of numbers
    """
    model = _normal(model, where)
    graph = model.graph
    initializers = {t.name: t for t in graph.initializer}
    inputs = tuple(i.name for i in graph.input if i.name not in initializers)
    outputs = tuple(o.name for o in graph.output)
    static = _static(graph.node, set(initializers))
    live = _live([n for n in graph.node if not set(n.output) <= static], outputs)
    read = dict.fromkeys(n for node in live for n in read_by(node))
    wanted = [n for n in read if n in static and n not in initializers]
    tensors = [o for node in live for o in node.output if o]
    values, computed = _computed(model, inputs, tensors, wanted, where)
    made = {n: numpy_helper.from_array(array, n) for n, array in computed.items()}
    constants = {n: initializers[n] if n in initializers else made[n] for n in read if n in static}
    return Flow(where, model, tuple(live), constants, values, inputs, outputs)


def _normal(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """A copy of what its outputs need, with a batch of 1, no shapes but the inputs', and names for all nodes as the
    tracer gives them."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    constant = {t.name for t in out.graph.initializer}
    for entry in out.graph.input:
        if entry.name not in constant:
            shape, dtype = input_shape(entry, where)
            entry.CopyFrom(helper.make_tensor_value_info(
                entry.name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))  # fmt: skip
    del out.graph.value_info[:]
    live = _live(out.graph.node, [o.name for o in out.graph.output])
    del out.graph.node[:]
    out.graph.node.extend(live)
    read = {n for node in live for n in read_by(node)}
    entries = [i for i in out.graph.input if i.name in read]
    del out.graph.input[:]
    out.graph.input.extend(entries)
    names: set[str] = set()
    for node in out.graph.node:
        base = node.name or next((o for o in node.output if o), node.op_type)
        name, count = base, 1
        while name in names:
            count += 1
            name = f"{base}#{count}"
        names.add(name)
        node.name = name
    for output in out.graph.output:
        output.CopyFrom(onnx.ValueInfoProto(name=output.name))
    return out


def _static(nodes: Iterable[onnx.NodeProto], static: set[str]) -> set[str]:
    """The tensors that no input has an effect on. Shapes are fixed, unless they come from data."""
    varying: set[str] = set()  # tensors whose shape depends on data
    static = set(static)
    for node in nodes:
        outputs = {o for o in node.output if o}
        read = set(read_by(node))
        if read <= static and node.op_type not in RANDOM:
            static |= outputs
            continue
        if node.op_type in ("Shape", "Size") and not read & varying:
            static |= outputs
            continue
        shaping = {node.input[i] for i in _SHAPE_OPERANDS.get(node.op_type, ()) if i < len(node.input)} - {""}
        if node.op_type in _DATA_SHAPED or read & varying or not shaping <= static:
            varying |= outputs
    return static


def _live(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    needed = set(outputs)
    out = []
    for node in reversed(nodes):
        if needed & set(node.output):
            out.append(node)
            needed |= set(read_by(node))
    return out[::-1]


def _computed(
    model: onnx.ModelProto, inputs: Sequence[str], tensors: Sequence[str], wanted: Sequence[str], where: str
) -> tuple[dict[str, Value], dict[str, NDArray]]:
    """Types and shapes of inputs and ``tensors``, and the values of ``wanted``."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.node.extend(helper.make_node("Shape", [t], [t + _SHAPE]) for t in tensors)
    del probe.graph.output[:]
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=n) for n in (*tensors, *(t + _SHAPE for t in tensors), *wanted)
    )
    session = session_of(probe, where, optimise=False)
    types = {o.name: o.type for o in session.get_outputs()}
    entries = {i.name: i for i in model.graph.input if i.name in inputs}
    shapes = {n: tuple(d.dim_value for d in e.type.tensor_type.shape.dim) for n, e in entries.items()}
    dtypes = {n: np.dtype(helper.tensor_dtype_to_np_dtype(e.type.tensor_type.elem_type)) for n, e in entries.items()}
    feeds = {n: np.zeros(shapes[n], dtypes[n]) for n in inputs}
    names = [*(t + _SHAPE for t in tensors), *wanted]
    got = dict(zip(names, run(session, names, feeds, where), strict=True)) if names else {}
    values = {n: Value(n, dtypes[n].name, shapes[n]) for n in inputs}
    for t in tensors:
        values[t] = Value(t, _dtype(types[t]), tuple(int(n) for n in got[t + _SHAPE]))
        if values[t].dtype not in DTYPES:
            raise ModelError(f"tensor '{t}' is {types[t]}", where=where, mend="end the exported model before it")
    return values, {n: got[n] for n in wanted}


def _dtype(text: str) -> str:
    """NumPy's name for what onnxruntime calls ``tensor(float)``."""
    inner = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)
