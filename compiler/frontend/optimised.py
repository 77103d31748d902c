"""Operators of com.microsoft that onnxruntime's optimisers fuse others into, as what they were before."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.attention import attention
from moevit.compiler.frontend.functions import gelu, gelu_tanh, sigmoid, unary, with_constant
from moevit.compiler.frontend.linear import matmul_node, project
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.norm import norm_of
from moevit.compiler.frontend.pointwise import with_view
from moevit.compiler.frontend.space import Function, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

_CONSTANTS = "its weights must be constants"
_PLAIN = "export attention without masks, caches and biases on scores, or give the model as it was before optimisation"


def activation_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Gelu, BiasGelu, FastGelu and QuickGelu; a second operand is a bias."""
    alpha = float(node.attribute("alpha", 1.702))
    functions: dict[str, Function] = {
        "Gelu": gelu, "BiasGelu": gelu, "FastGelu": gelu_tanh, "QuickGelu": lambda x: x * sigmoid(alpha * x),
    }  # fmt: skip
    x, bias = (*inputs, None)[:2]
    if bias is not None:
        x = _plus(tracer, node, x, bias)
    return [unary(tracer, node, x, functions[node.proto.op_type])]


def matmul(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """FusedMatMul: a product with transposed operands and a scale."""
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise Unmapped("its batches are transposed", "transpose them beforehand")
    a, b = (
        x.transpose(*range(x.ndim if isinstance(x, np.ndarray) else len(x.shape))[:-2], -1, -2)
        if node.attribute(name, 0) else x
        for x, name in zip(inputs, ("transA", "transB"), strict=True)
    )  # fmt: skip
    return [out.affine(mul=float(node.attribute("alpha", 1.0))) for out in matmul_node(tracer, node, [a, b])]


def skip_norm_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """SkipLayerNormalization and SkipSimplifiedLayerNormalization: a residual, and its norm; the fourth output is the
    residual."""
    centred = node.proto.op_type == "SkipLayerNormalization"
    x, skip, gamma, beta, bias = (*inputs, None, None, None)[:5]
    if not centred:
        beta, bias = None, beta
    if any(isinstance(c, View) for c in (gamma, beta, bias)):
        raise Unmapped("its scale or bias depends on the data", "they must be constants")
    total = _plus(tracer, node, x, skip)
    if bias is not None:
        total = _plus(tracer, node, total, bias)
    out = norm_of(tracer, node.origin, total.matrix(), float(node.attribute("epsilon", 1e-12)), centred=centred)
    out = out.reshape(*total.shape)
    if gamma is not None:
        out = with_constant(tracer, node, "Mul", out, np.asarray(gamma, np.float64), left=False)
    return [out if beta is None else _plus(tracer, node, out, beta), None, None, total]


def attention_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """Attention: q, k and v of one matrix `(in, 3 * out)`, and attention over all tokens."""
    x, weight, bias, *others = (*inputs, None)[: max(3, len(inputs))]
    if any(o is not None for o in others) or node.attribute("unidirectional", 0) or any(node.proto.output[1:]):
        raise Unmapped("attention with a mask, a cache or a bias on its scores", _PLAIN)
    if not isinstance(x, View) or isinstance(weight, View) or isinstance(bias, View):
        raise Unmapped("its weights depend on the data, or its input does not", _CONSTANTS)
    sizes = node.attribute("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    parts = np.split(np.asarray(weight, np.float64), np.cumsum(sizes)[:-1], axis=1)
    offsets = [None] * 3 if bias is None else np.split(np.asarray(bias, np.float64), np.cumsum(sizes)[:-1])
    q, k, v = (
        y if b is None else _plus(tracer, node, y, b)
        for y, b in ((project(tracer, node, x.matrix(), w.T), b) for w, b in zip(parts, offsets, strict=True))
    )
    return _attend(tracer, node, q, k, v, x.shape)


def multi_head_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """MultiHeadAttention of q, k and v `(1, tokens, channels)`, with biases for the three of them."""
    q, k, v, bias, *others = (*inputs, None)[: max(4, len(inputs))]
    operands = [x for x in (q, k, v) if isinstance(x, View) and len(x.shape) == 3]
    if len(operands) < 3 or any(o is not None for o in others) or any(node.proto.output[1:]) or node.attribute(
        "unidirectional", 0
    ):  # fmt: skip
        raise Unmapped("attention with a mask, a cache, packed operands or a bias on its scores", _PLAIN)
    if isinstance(bias, View):
        raise Unmapped("its biases depend on the data", _CONSTANTS)
    matrices = [x.matrix() for x in operands]
    if bias is not None:
        cuts = np.cumsum([x.shape[1] for x in matrices])[:-1]
        biases = np.split(np.asarray(bias, np.float64), cuts)
        matrices = [_plus(tracer, node, x, b) for x, b in zip(matrices, biases, strict=True)]
    return _attend(tracer, node, matrices[0], matrices[1], matrices[2], q.shape)


def _attend(
    tracer: "Tracer", node: Node, q: View, k: View, v: View, shape: tuple[int, ...]
) -> list[View | None]:
    heads = int(node.attribute("num_heads"))
    if q.shape[1] % heads or not q.shape[1] == k.shape[1] == v.shape[1]:
        raise Unmapped("its heads have different sizes", "they must be equal in q, k and v")
    scale = float(node.attribute("scale", 0.0)) or (q.shape[1] // heads) ** -0.5
    out = attention(tracer.space, node.origin, q, k, v, heads=heads, scale=scale)
    return [out.reshape(*shape[:-1], q.shape[1]), *[None] * (len(node.proto.output) - 1)]


def _plus(tracer: "Tracer", node: Node, a: Any, b: Any) -> View:
    if isinstance(a, View) and isinstance(b, View):
        return with_view(tracer, node, "Add", a, b)
    view, constant = (a, b) if isinstance(a, View) else (b, a)
    return with_constant(tracer, node, "Add", view, np.asarray(constant, np.float64), left=False)


HANDLERS: dict[str, Callable[["Tracer", Node, Sequence[Any]], Sequence[View | None]]] = {
    **dict.fromkeys(("Gelu", "BiasGelu", "FastGelu", "QuickGelu"), activation_node),
    "FusedMatMul": matmul,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_norm_node),
    "Attention": attention_node,
    "MultiHeadAttention": multi_head_node,
}
