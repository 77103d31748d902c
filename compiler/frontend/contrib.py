"""onnxruntime's own operator for mixtures of experts, com.microsoft.MoE."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend import mixture
from moevit.compiler.frontend.functions import UNARY, gelu_tanh, sigmoid, unary, with_constant
from moevit.compiler.frontend.gate import Choice, Chosen, gate
from moevit.compiler.frontend.linear import project
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Floats, Function, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

# What onnxruntime calls gelu here is the approximation by tanh.
_ACTIVATIONS: dict[str, Function] = {
    "relu": UNARY["Relu"],
    "gelu": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
}
_WAY_OUT = "supported are two float layers per expert with relu, gelu or silu between them; or write it as such nodes"


def moe_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """com.microsoft.MoE: the gate's logits come in as `router_probs`, and TopK and softmax are part of the node.

    Weights are `(experts, hidden, channels)` and `(experts, channels, hidden)`.
    """
    x, router, *constants = inputs
    if not isinstance(x, View) or not isinstance(router, View):
        raise Unmapped("its input or its routing is constant", "the gate must depend on the tokens")
    if any(isinstance(c, View) for c in constants):
        raise Unmapped("its weights depend on the data", "they must be constants")
    up, up_bias, down, down_bias, *others = (*constants, None, None, None, None)[: max(4, len(constants))]
    if any(o is not None for o in others):
        raise Unmapped("a third layer (fc3) in each expert", _WAY_OUT)
    activation = node.attribute("activation_type", "relu")
    if activation not in _ACTIVATIONS:
        raise Unmapped(f"its activation is {activation}", _WAY_OUT)
    for name in ("use_sparse_mixer", "swiglu_fusion"):
        if node.attribute(name, 0):
            raise Unmapped(f"its {name} is {node.attribute(name)}", _WAY_OUT)
    rows, logits = x.matrix(), router.matrix()
    weights = _weights(rows.shape[1], logits.shape[1], up, up_bias, down, down_bias)
    top_k = int(node.attribute("k", 1))
    if logits.shape[0] != rows.shape[0] or not 1 <= top_k <= logits.shape[1]:
        raise Unmapped(
            f"it has {rows.shape[0]} tokens, scores {logits.shape} and k {top_k}", "check the model"
        )
    choice = Choice(logits=logits, top_k=top_k)
    kind = "normalised" if node.attribute("normalize_routing_weights", 0) else "scores"
    scores = Chosen(origin=node.origin, shape=(rows.shape[0], top_k), choice=choice, kind=kind)  # type: ignore[arg-type]
    routed = gate(tracer, choice, scores, node.origin)
    total: View | None = None
    for expert, (w1, b1, w2, b2) in enumerate(zip(*weights, strict=True)):
        hidden = with_constant(tracer, node, "Add", project(tracer, node, rows, w1), b1, left=False)
        hidden = unary(tracer, node, hidden, _ACTIVATIONS[activation])
        y = with_constant(tracer, node, "Add", project(tracer, node, hidden, w2), b2, left=False)
        score = routed.at(routed.idx[:, expert : expert + 1])
        part = mixture.weigh(tracer, node, y, score)
        total = part if total is None else mixture.add(tracer, node, total, part)
    assert total is not None
    return [total.reshape(*x.shape[:-1], -1)]


def _weights(channels: int, experts: int, up: Any, up_bias: Any, down: Any, down_bias: Any) -> list[Floats]:
    """`(E, H, D)`, `(E, H)`, `(E, D, H)` and `(E, D)`, checked; missing biases are zero."""
    up, down = np.asarray(up, np.float64), np.asarray(down, np.float64)
    if up.ndim != 3 or down.ndim != 3:
        raise Unmapped(f"its weights are {up.shape} and {down.shape}", _WAY_OUT)
    hidden = up.shape[1]
    if up.shape != (experts, hidden, channels) or down.shape != (experts, channels, hidden):
        old = up.shape[1] == channels and down.shape == (experts, up.shape[2], channels)
        what = ", as older releases of onnxruntime had them" if old else ""
        raise Unmapped(
            f"its weights are {up.shape} and {down.shape}{what}",
            f"they must be ({experts}, hidden, {channels}) and ({experts}, {channels}, hidden)",
        )
    up_bias = np.zeros((experts, hidden)) if up_bias is None else np.asarray(up_bias, np.float64)
    down_bias = np.zeros((experts, channels)) if down_bias is None else np.asarray(down_bias, np.float64)
    if up_bias.shape != (experts, hidden) or down_bias.shape != (experts, channels):
        raise Unmapped(f"its biases are {up_bias.shape} and {down_bias.shape}", "one for each expert and channel")
    return [up, up_bias, down, down_bias]
