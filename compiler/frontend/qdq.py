"""Models that are quantised already: the float model inside, and the formats that its quantisers state.

A quantiser is QuantizeLinear, perhaps Clip, DequantizeLinear, as onnxruntime's quantize_static, Brevitas (QCDQ) and
torchao (pt2e) write it. Those of activations are taken out, and what they say of a tensor is kept beside the model;
those of weights become constants like others, whose integers are found again when they are quantised.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moevit.compiler.ir import Given

_DEFAULT = ("", "ai.onnx")
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_EVALUATED = 19  #: the first version of DequantizeLinear that onnx's evaluator has; those before are the same
_SHAPES = ("Shape", "Size")
_LAYOUT = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_LINEAR = ("Conv", "Gemm", "MatMul")
_BITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_STEPS = 250  #: of a format that is taken for one of 8 bits: Brevitas' narrow range has 254


@dataclass(frozen=True)
class Stripped:
    """A model without the quantisers of its activations.

    model : what computes the same in float; the model itself where nothing is quantised
    given : by tensor of ``model``, the format that the quantiser behind it states
    weights : whether constants are dequantised: there are matrices of integers times a scale
    """

    model: onnx.ModelProto
    given: dict[str, Given] = field(default_factory=dict)
    weights: bool = False

    @property
    def quantised(self) -> bool:
        """Whether the model is quantised at all."""
        return bool(self.given) or self.weights


def strip(model: onnx.ModelProto) -> Stripped:
    """Take the quantisers of activations out of a model.

    What is not one with 8 or 16 bits and one constant scale stays: the front end says of it that it cannot be mapped.
    A quantiser whose lowest value is zero may stand for a ReLU, which quantize_static removes then; behind a linear
    layer it leaves one.
    """
    if not any(node.op_type in _QUANTISERS for node in model.graph.node):
        return Stripped(model)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    return _Stripper(out).run()


class _Stripper:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        for node in model.graph.node:
            if node.op_type in _QUANTISERS and node.domain == "com.microsoft":
                node.domain = ""  # the same operator, from before ONNX's had 16 bits
        self.constants = {t.name: t for t in model.graph.initializer}
        self.makers = {o: node for node in model.graph.node for o in node.output if o}
        self.variable = _variable(model.graph, self.constants)
        self.same: dict[str, str] = {}  # what a dequantiser gives, and what its quantiser reads
        self.given: dict[str, Given] = {}
        self.outputs = {o.name for o in model.graph.output}

    def run(self) -> Stripped:
        nodes: list[onnx.NodeProto] = []
        weights: list[str] = []
        for node in self.model.graph.node:
            if self._constant(node):
                weights.append(node.output[0])
                continue
            for i, name in enumerate(node.input):
                node.input[i] = self.same.get(name, name)
            found = self._quantiser(node)
            if found is None:
                nodes.append(node)
                continue
            tensor, format_ = found
            if format_.zero_point == format_.low and self._two_sided(tensor):
                nodes.append(helper.make_node("Relu", [tensor], [f"{tensor}#relu"], name=f"{node.name}#relu"))
                self.makers[f"{tensor}#relu"] = nodes[-1]
                tensor = f"{tensor}#relu"
            self.given[tensor] = format_
            if node.output[0] in self.outputs:
                nodes.append(helper.make_node("Identity", [tensor], [node.output[0]], name=node.name))
            self.same[node.output[0]] = tensor
        graph = self.model.graph
        nodes = _without_dead(nodes, self.outputs)
        read = {name for node in nodes for name in _reads(node)} | self.outputs
        read |= {entry.name for entry in graph.input}  # constants may be inputs too, which have to keep them
        stored = [t for t in graph.initializer if t.name in read]
        stored += [self.constants[name] for name in weights if name in read]
        for entries, kept in ((graph.node, nodes), (graph.initializer, stored), (graph.value_info, ())):
            del entries[:]
            entries.extend(kept)
        return Stripped(self.model, self.given, bool(weights))

    def _constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node dequantises a constant; its values are then one too.

        onnxruntime, which everything is compared with, quantises what it multiplies with a matrix that is dequantised.
        """
        if node.op_type != "DequantizeLinear" or node.input[0] in self.variable or node.output[0] in self.outputs:
            return False
        try:
            self._value(node.output[0])
        except Exception:  # whatever the evaluation runs into; the tracer says what is wrong with the node
            return False
        return True

    def _quantiser(self, node: onnx.NodeProto) -> tuple[str, Given] | None:
        """What a quantiser reads, and its format, from its last node; None if it is not one to take out."""
        if node.op_type != "DequantizeLinear" or node.input[0] not in self.variable:
            return None
        low, high = -np.inf, np.inf
        maker = self.makers.get(node.input[0])
        if maker is not None and maker.op_type == "Clip":
            low, high = (self._bound(maker, i, default) for i, default in ((1, low), (2, high)))
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != "QuantizeLinear" or maker.domain not in _DEFAULT:
            return None
        first, last = self._format(maker), self._format(node)
        if first is None or last is None or first != last:
            return None
        scale, zero, dtype = first
        low, high = max(low, _BITS[dtype][0]), min(high, _BITS[dtype][1])
        if not low <= zero <= high or high - low < _STEPS or not (np.isfinite(scale) and scale > 0):
            return None
        return maker.input[0], Given(scale=scale, zero_point=zero, low=int(low), high=int(high))

    def _format(self, node: onnx.NodeProto) -> tuple[float, int, str] | None:
        """Scale, zero point and type of a quantiser's node, where they are constants, and one each."""
        if any(name in self.variable for name in node.input[1:]):
            return None
        scale = self._value(node.input[1])
        if len(node.input) > 2 and node.input[2]:
            zero = self._value(node.input[2])
        else:  # the type is then an attribute; of what is dequantised it is the quantiser's
            maker = node if node.op_type == "QuantizeLinear" else self.makers.get(node.input[0])
            kind = next((a.i for a in maker.attribute if a.name == "output_dtype"), 0) if maker is not None else 0
            zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind) if kind else np.uint8)
        if scale.size != 1 or zero.size != 1 or zero.dtype.name not in _BITS:
            return None
        return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), zero.dtype.name

    def _bound(self, clip: onnx.NodeProto, i: int, default: float) -> float:
        if len(clip.input) <= i or not clip.input[i] or clip.input[i] in self.variable:
            return default
        return float(self._value(clip.input[i]).reshape(-1)[0])

    def _value(self, name: str) -> NDArray:
        """A constant: one that is stored, or that nodes compute."""
        if name not in self.constants:
            nodes = list(_ancestors(name, self.makers))
            read = {i for n in nodes for i in n.input if i in self.constants}
            graph = helper.make_graph(
                nodes, "constant", [], [onnx.ValueInfoProto(name=name)], [self.constants[i] for i in sorted(read)]
            )
            opsets = [
                helper.make_opsetid(o.domain, max(o.version, _EVALUATED) if o.domain in _DEFAULT else o.version)
                for o in self.model.opset_import
            ]
            model = helper.make_model(graph, opset_imports=opsets)
            (array,) = ReferenceEvaluator(model).run(None, {})
            self.constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return numpy_helper.to_array(self.constants[name])

    def _two_sided(self, tensor: str) -> bool:
        """Whether a tensor is what a linear layer gives, its constant added, in whatever layout."""
        maker = self.makers.get(tensor)
        while maker is not None and maker.op_type in (*_LAYOUT, "Add"):
            inner = [i for i in maker.input if i in self.variable]
            maker = self.makers.get(inner[0]) if len(inner) == 1 else None
        return maker is not None and maker.op_type in _LINEAR and maker.input[1] not in self.variable


def _variable(graph: onnx.GraphProto, constants: Iterable[str]) -> set[str]:
    """The tensors that depend on an input's values."""
    known = set(constants)
    out = {i.name for i in graph.input} - known
    for node in graph.node:
        if node.op_type not in _SHAPES and out.intersection(_reads(node)):
            out.update(o for o in node.output if o)
    return out


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node reads, and those that graphs inside it mention."""
    yield from (i for i in node.input if i)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (o.name for o in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def _ancestors(name: str, makers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes that a tensor is computed by, in order, each once."""
    done: set[int] = set()
    pending: list[tuple[str, bool]] = [(name, False)]
    while pending:
        tensor, ready = pending.pop()
        node = makers.get(tensor)
        if node is None or id(node) in done:
            continue
        if ready:
            done.add(id(node))
            yield node
        else:
            pending.append((tensor, True))
            pending += [(i, False) for i in node.input if i]


def _without_dead(nodes: list[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that an output needs."""
    needed, out = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            out.append(node)
            needed.update(_reads(node))
    return out[::-1]
