"""One ONNX node as the tracer sees it, and its evaluation on arrays by onnx's reference implementation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from moevit.compiler.frontend.space import MAX_ELEMENTS, Origin, View

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
# Operators whose results differ from run to run.

NOISE = "it draws random numbers, and the model's answer depends on them"


class Unmapped(Exception):
    """A node that nothing can be made of; the tracer notes it and goes on.

    `operands` are what else to look at for problems, where that is not what the node reads.
    """

    def __init__(self, reason: str, way_out: str, operands: tuple[View, ...] | None = None):
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out
        self.operands = operands


@dataclass(frozen=True, eq=False)
class Node:
    """A node, its attributes decoded."""

    proto: onnx.NodeProto
    name: str
    opsets: Mapping[str, int]

    @property
    def op(self) -> str:
        """The operator, with its domain unless that is ONNX's own."""
        domain = self.proto.domain
        return self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}.{self.proto.op_type}"

    @property
    def origin(self) -> Origin:
        """For the values it makes."""
        return Origin(name=self.name, op=self.op)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, strings decoded."""
        for a in self.proto.attribute:
            if a.name == name:
                value = helper.get_attribute_value(a)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def evaluate(self, inputs: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]]:
        """Its outputs for arrays; an absent optional input is None. Raises `Unmapped` if it fails."""
        self._check_size(inputs)
        feed = {n: v for n, v in zip(self.proto.input, inputs, strict=False) if n and v is not None}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = ReferenceEvaluator(self.proto, opsets=dict(self.opsets)).run(None, feed)
        except Exception as error:  # the evaluator raises whatever its NumPy code does
            text = " ".join(str(error).split())[:200]
            raise Unmapped(f"it cannot be evaluated ({text})", "check the model with onnxruntime") from error
        arrays = [np.asarray(r) for r in results]
        if any(a.dtype.kind == "c" for a in arrays):
            raise Unmapped("it makes complex numbers", "a model's constants must be real numbers")
        return arrays

    def output_shapes(self, inputs: Sequence[Any], shapes: Sequence[tuple[int, ...] | None]) -> list[Any]:
        """The shape of each output where ONNX's shape inference knows it, else None.

        `inputs` holds arrays where they are known; `shapes` those of all inputs.
        """
        graph = onnx.GraphProto(name="node")
        graph.node.append(self.proto)
        for name, value, shape in zip(self.proto.input, inputs, shapes, strict=False):
            if not name:
                continue
            if isinstance(value, np.ndarray):
                graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
            elif shape is not None:
                graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        for name in self.proto.output:
            graph.output.append(onnx.ValueInfoProto(name=name))
        imports = [helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        model = helper.make_model(graph, opset_imports=imports)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # whatever is wrong, the shape is then unknown
            return [None] * len(self.proto.output)
        known = {}
        for entry in inferred.graph.output:
            dims = entry.type.tensor_type.shape.dim
            if entry.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                known[entry.name] = tuple(d.dim_value for d in dims)
        return [known.get(n) for n in self.proto.output]

    def _check_size(self, inputs: Sequence[NDArray[Any] | None]) -> None:
        """Refuse the operators that make large arrays from small ones, before they do."""
        size = 0
        with np.errstate(all="ignore"):
            if self.op == "ConstantOfShape" and inputs[0] is not None:
                size = prod(int(n) for n in inputs[0].reshape(-1))
            elif self.op == "Expand" and inputs[1] is not None:
                size = prod(max(int(n), 1) for n in inputs[1].reshape(-1))
            elif self.op == "Tile" and inputs[0] is not None and inputs[1] is not None:
                size = inputs[0].size * prod(int(n) for n in inputs[1].reshape(-1))
            elif self.op == "Range" and all(i is not None for i in inputs[:3]):
                first, last, step = (float(np.asarray(i).reshape(-1)[0]) for i in inputs[:3])
                size = int(abs(last - first) / abs(step)) if step else MAX_ELEMENTS + 1
            elif self.op == "Pad" and inputs[0] is not None and len(inputs) > 1 and inputs[1] is not None:
                ends = inputs[1].reshape(2, -1).sum(0)
                size = prod(int(n) + max(int(p), 0) for n, p in zip(inputs[0].shape, ends, strict=False))
        if size > MAX_ELEMENTS:
            raise Unmapped(f"it makes {size} elements", f"a tensor may have {MAX_ELEMENTS}")
