"""Operators that work element by element."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.functions import (
    BINARY,
    UNARY,
    absorb,
    as_function,
    gelu,
    gelu_tanh,
    sigmoid,
    unary,
    with_constant,
)
from moevit.compiler.frontend.gate import is_integer, scored
from moevit.compiler.frontend.mixture import add, gate_of, weigh
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.norm import centre, normalise
from moevit.compiler.frontend.space import Function, Opaque, Pointwise, Sum, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer


def with_view(tracer: "Tracer", node: Node, op: str, a: View, b: View) -> View:
    """`a op b`, both computed."""
    if op == "Mul":
        for scores, outputs in ((a, b), (b, a)):
            if gate_of(tracer.space, scores) is not None and not is_integer(tracer.space, outputs):
                return weigh(tracer, node, outputs, scores)
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = a.broadcast(shape), b.broadcast(shape)
    if op in ("Add", "Sub"):
        mixed = add(tracer, node, a, b if op == "Add" else b.affine(-1))
        if mixed is not None:
            return mixed
    special = scored(tracer, node, op, a, b) or centre(tracer, node, op, a, b) or normalise(tracer, node, op, a, b)
    if special is not None:
        return special
    terms = (a, b if op == "Add" else b.affine(-1)) if op in ("Add", "Sub") else None
    (base, f), (other, g) = as_function(tracer, a), as_function(tracer, b)
    if base.same_elements(other):
        function = BINARY[op]
        value = Pointwise(
            origin=node.origin, shape=shape, base=base, function=lambda x: function(f(x), g(x)), terms=terms
        )
        return tracer.space.add(absorb(tracer, value, a, b))
    if terms is not None:
        return tracer.space.add(Sum(origin=node.origin, shape=shape, a=terms[0], b=terms[1]))
    return tracer.space.add(
        Opaque(
            origin=node.origin,
            shape=shape,
            operands=(a, b),
            reason=f"{op} of two computed tensors is no operation of the accelerator",
            way_out="supported are attention, activations, layer normalisation and residual additions",
        )
    )


def binary_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Add, Sub, Mul, Div, Pow, Max and Min of any two operands, or more of them."""
    result = inputs[0]
    for other in inputs[1:]:
        if not isinstance(result, View) and not isinstance(other, View):
            result = BINARY[node.op](np.asarray(result, np.float64), np.asarray(other, np.float64))
        elif not isinstance(other, View):
            result = with_constant(tracer, node, node.op, result, np.asarray(other, np.float64), left=False)
        elif not isinstance(result, View):
            result = with_constant(tracer, node, node.op, other, np.asarray(result, np.float64), left=True)
        else:
            result = with_view(tracer, node, node.op, result, other)
    return [result]


def sum_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Sum is Add of several."""
    result = inputs[0]
    for other in inputs[1:]:
        if not isinstance(result, View):
            result, other = other, result
        if not isinstance(other, View):
            result = with_constant(tracer, node, "Add", result, np.asarray(other, np.float64), left=False)
        else:
            result = with_view(tracer, node, "Add", result, other)
    return [result]


def unary_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """One of `UNARY`."""
    return [unary(tracer, node, inputs[0], UNARY[node.op])]


def parametric_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Functions with attributes: Gelu, Swish, HardSigmoid, LeakyRelu, Elu, Clip and Neg."""
    view: View = inputs[0]
    if node.op == "Neg":
        return [view.affine(-1)]
    if node.op == "Clip":
        bounds = [
            np.asarray(v, np.float64) if v is not None else None for v in (*inputs[1:3], None, None)[:2]
        ]
        low = -np.inf if bounds[0] is None else float(bounds[0])
        high = np.inf if bounds[1] is None else float(bounds[1])
        return [unary(tracer, node, view, lambda x: np.clip(x, low, high))]
    alpha = float(node.attribute("alpha", {"HardSigmoid": 0.2, "LeakyRelu": 0.01}.get(node.op, 1.0)))
    beta = float(node.attribute("beta", 0.5))
    if node.op == "Gelu" and node.attribute("approximate", "none") != "none":
        if node.attribute("approximate") != "tanh":
            raise Unmapped(f"its approximation is {node.attribute('approximate')!r}", "it must be 'none' or 'tanh'")
        return [unary(tracer, node, view, gelu_tanh)]
    functions: dict[str, Function] = {
        "Gelu": gelu,
        "Swish": lambda x: x * sigmoid(alpha * x),
        "HardSigmoid": lambda x: np.clip(alpha * x + beta, 0, 1),
        "LeakyRelu": lambda x: np.where(x < 0, alpha * x, x),
        "Elu": lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
    }
    return [unary(tracer, node, view, functions[node.op])]


PARAMETRIC = ("Neg", "Clip", "Gelu", "Swish", "HardSigmoid", "LeakyRelu", "Elu")
