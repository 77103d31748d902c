"""Running a model on symbols: each ONNX tensor becomes an array of constants or a view of values."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx

from moevit.compiler.frontend import (
    attention,
    contrib,
    einsum,
    gate,
    layout,
    linear,
    mixture,
    norm,
    optimised,
    pointwise,
)
from moevit.compiler.frontend.model import PIXEL_STEPS, constant, input_shape, opsets
from moevit.compiler.frontend.node import NOISE, RANDOM, Node, Unmapped
from moevit.compiler.frontend.space import Mean, Opaque, Origin, Source, Space, View, possible
from moevit.errors import ModelError

_log = logging.getLogger(__name__)

Handler = Callable[["Tracer", Node, Sequence[Any]], Sequence[Any]]

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(layout.DATA_INPUTS, layout.rearrange),
    **dict.fromkeys(pointwise.BINARY, pointwise.binary_node),
    **dict.fromkeys(pointwise.UNARY, pointwise.unary_node),
    **dict.fromkeys(pointwise.PARAMETRIC, pointwise.parametric_node),
    "Pad": layout.pad_node,
    "Sum": pointwise.sum_node,
    "ReduceMean": norm.mean_node,
    "GlobalAveragePool": norm.global_pool_node,
    "LayerNormalization": norm.norm_node,
    "RMSNormalization": norm.norm_node,
    "Softmax": attention.softmax_node,
    "Attention": attention.attention_node,
    "MatMul": linear.matmul_node,
    "Gemm": linear.gemm_node,
    "Einsum": einsum.einsum_node,
    "Conv": linear.conv_node,
    "ConvTranspose": linear.conv_transpose_node,
    "BatchNormalization": linear.batch_norm_node,
    "TopK": gate.top_k_node,
    "GatherElements": gate.gather_node,
    "ScatterElements": gate.scatter_node,
    **dict.fromkeys(gate.COMPARISONS, gate.compare_node),
    "Not": gate.not_node,
    "Where": gate.where_node,
    "ReduceSum": norm.sum_node,
    "com.microsoft.MoE": contrib.moe_node,
    **{f"com.microsoft.{op}": handler for op, handler in optimised.HANDLERS.items()},
}

WAYS_OUT = {
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear"),
        "quantise activations to 8 bits with one constant scale each, or give the float model: moevit quantises it",
    ),
    **dict.fromkeys(
        ("QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"),
        "quantise statically with quant_format=QuantFormat.QDQ, or give the float model: moevit quantises it",
    ),
    "Resize": "end the exported model before it, and let the host resize",
    "ArgMax": "end the exported model before it, and let the host choose",
}
_DEFAULT_WAY_OUT = "end the exported model before it, or replace it by operations of a vision transformer"


class Tracer:
    """Traces one model.

    Parameters
    ----------
    model : onnx.ModelProto
    where : str
        The file, for messages.
    inner : dict of str to tuple of int, optional
        The inputs that are tensors from inside a larger model, and their whole shapes, which need no batch.

    Members
    -------
    space : Space
        The values.
    sources : list of Source
        The model's inputs.
    outputs : dict of str to View, array or None
        The model's outputs by name; None beyond a node of `unknown`.
    unknown : list of Opaque
        Nodes that cannot be mapped and whose output's shape is not known either, so that nothing after them
        was looked at.
    means : dict of Mean
        By what they are the mean of, so that a mean that is computed twice is one value.
    """

    def __init__(self, model: onnx.ModelProto, where: str, inner: Mapping[str, tuple[int, ...]] | None = None):
        self.space = Space()
        self.sources: list[Source] = []
        self.unknown: list[Opaque] = []
        self.means: dict[object, Mean] = {}
        self._where = where
        self._inner = inner or {}
        self._opsets = opsets(model)
        self._env: dict[str, Any] = {}
        self._names: set[str] = set()
        self._constants(model.graph)
        for entry in model.graph.input:
            if entry.name not in self._env:
                self._source(entry)
        self._run(model.graph.node)
        self.outputs = {o.name: self._env.get(o.name) for o in model.graph.output}

    def view(self, name: str) -> View | None:
        """What a tensor of the model shows; None if it is constant, or nothing is known of it."""
        value = self._env.get(name)
        return value if isinstance(value, View) else None

    def _source(self, entry: onnx.ValueInfoProto) -> None:
        if entry.name in self._inner:
            shape, dtype = self._inner[entry.name], "float32"
        else:
            shape, dtype = input_shape(entry, self._where)
        origin = Origin(name=entry.name, op="Input")
        batched = len(shape) > 1 and shape[0] == 1
        own = shape[1:] if batched and len(shape) == 3 else shape
        rest = shape[1:] if batched else shape
        if entry.name in self._inner and len(own) > 2:
            own = (prod(own[:-1]), own[-1])  # tokens, if it turns out to be no image
        source = Source(origin=origin, shape=own, name=entry.name, dtype=dtype, model_shape=rest)
        self.sources.append(source)
        view = self.space.add(source).reshape(*shape)
        self._env[entry.name] = view.affine(mul=PIXEL_STEPS) if dtype == "uint8" else view

    def _constants(self, graph: onnx.GraphProto) -> None:
        for initializer in graph.initializer:
            self._env[initializer.name] = constant(initializer, self._where)
        for sparse in graph.sparse_initializer:
            raise ModelError(
                f"constant '{sparse.values.name}' is sparse", where=self._where, mend="export it dense"
            )

    def _run(self, protos: Iterable[onnx.NodeProto]) -> None:
        for proto in protos:
            base = proto.name or next((o for o in proto.output if o), proto.op_type)
            name, count = base, 1
            while name in self._names:
                count += 1
                name = f"{base}#{count}"
            self._names.add(name)
            node = Node(proto, name, self._opsets)
            inputs = [self._env.get(n) if n else None for n in proto.input]
            if any(n and n in self._env and self._env[n] is None for n in proto.input):
                results: Sequence[Any] = [None] * len(proto.output)  # beyond something of unknown shape
            else:
                results = self._step(node, inputs)
            for output, result in zip(proto.output, results, strict=False):
                if output:
                    self._env[output] = result

    def _step(self, node: Node, inputs: list[Any]) -> Sequence[Any]:
        """One node's outputs, whatever happens."""
        try:
            if node.op == "If":
                return self._branch(node, inputs[0])
            if node.op in RANDOM or (node.op == "Dropout" and _drops(inputs)):
                raise Unmapped(NOISE, "export in evaluation mode (model.eval()), or give what it draws as a constant")
            if not any(isinstance(v, View) for v in inputs) and not _has_graph(node.proto):
                return node.evaluate(inputs)
            return self._symbolic(node, inputs)
        except ModelError as error:
            raise ModelError(error.what, where=self._where, mend=error.mend) from error
        except Unmapped as error:
            return self._opaque(node, inputs, error)
        except Exception as error:  # whatever a node that makes no sense runs into
            _log.debug("node %s", node.name, exc_info=True)
            text = " ".join(str(error).split())[:200]
            return self._opaque(
                node, inputs, Unmapped(f"its operands do not fit it ({text})", "check the model")
            )

    def _symbolic(self, node: Node, inputs: list[Any]) -> Sequence[Any]:
        if node.op in ("Shape", "Size"):
            return node.evaluate([np.broadcast_to(np.int8(0), inputs[0].shape)])
        if node.op in ("IsNaN", "IsInf"):  # of finite inputs nothing becomes infinite
            return [np.zeros(inputs[0].shape, dtype=bool)]
        if node.op in ("Identity", "Dropout", "Cast", "CastLike"):
            exact = gate.is_integer(self.space, inputs[0])
            if node.op == "Cast" and node.attribute("to") not in _FLOATS and not exact:
                raise Unmapped("a conversion to integers", _DEFAULT_WAY_OUT)
            return [inputs[0], *[None] * (len(node.proto.output) - 1)]
        handler = HANDLERS.get(node.op)
        if handler is None:
            raise Unmapped(
                f"the accelerator has no {node.op}", self._way_out(node, inputs)
            )
        return handler(self, node, inputs)

    def _way_out(self, node: Node, inputs: Sequence[Any]) -> str:
        """What to do about a node of which nothing is known."""
        for view in inputs:
            if isinstance(view, View) and (
                mixture.shows_mixture(self.space, view) or gate.is_part(self.space, view)
            ):
                return gate.FORM
        return WAYS_OUT.get(node.proto.op_type, _DEFAULT_WAY_OUT)

    def _branch(self, node: Node, condition: Any) -> Sequence[Any]:
        """The branch of an If that is taken, where that is known."""
        if condition is None or isinstance(condition, View):
            raise Unmapped("which branch is taken depends on the data", "export with fixed shapes")
        graph = node.attribute("then_branch" if bool(np.asarray(condition).reshape(-1)[0]) else "else_branch")
        self._constants(graph)
        self._run(graph.node)
        return [self._env.get(o.name) for o in graph.output]

    def _opaque(self, node: Node, inputs: Sequence[Any], error: Unmapped) -> Sequence[Any]:
        """Stand-ins for the outputs of a node that cannot be mapped, so that the rest is still looked at."""
        shapes = [v.shape if isinstance(v, View | np.ndarray) else None for v in inputs]
        read = tuple(v for v in inputs if isinstance(v, View))
        operands = read if error.operands is None else error.operands
        results: list[Any] = []
        for shape in node.output_shapes(inputs, shapes):
            if shape is not None and not possible(shape):
                shape = None
            value = Opaque(
                origin=node.origin,
                shape=shape if shape is not None else (1,),
                reason=error.reason,
                way_out=error.way_out,
                operands=operands,
            )
            view = self.space.add(value)
            if shape is None:
                self.unknown.append(value)
            results.append(view if shape is not None else None)
        return results


_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def _drops(inputs: Sequence[Any]) -> bool:
    """Whether a Dropout was exported for training."""
    return len(inputs) > 2 and inputs[2] is not None and bool(np.any(inputs[2]))


def _has_graph(proto: onnx.NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in proto.attribute)
