"""Elementwise arithmetic: constants become scales and offsets, everything of one operand becomes a function.

A GELU that an exporter wrote as multiplications and Erf is, whatever the order, one function of one view; which one is
found later by evaluating it (`activation.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.norm import centre, normalise
from moevit.compiler.frontend.space import Affine, Floats, Function, Opaque, Pointwise, Sum, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

_erf = np.vectorize(math.erf, otypes=[np.float64])

UNARY: dict[str, Function] = {
    "Erf": _erf,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Exp": np.exp,
    "Log": np.log,
    "Abs": np.abs,
    "Relu": lambda x: np.maximum(x, 0),
    "Softplus": lambda x: np.logaddexp(x, 0),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
}

BINARY: dict[str, Callable[[Floats, Floats], Floats]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Max": np.maximum,
    "Min": np.minimum,
}


def as_function(tracer: "Tracer", view: View) -> tuple[View, Function]:
    """A view as a function of another that has scale 1 and offset 0."""
    value = tracer.space.single(view)
    mul, add = view.mul, view.add
    if isinstance(value, Pointwise):
        inner = value.function
        if tracer.space.whole(view) is value:
            base = value.base.reshape(*view.shape)
        else:
            base = value.base.at(value.base.idx.reshape(-1)[view.idx - value.start])
        return base, inner if (mul, add) == (1, 0) else lambda x: mul * inner(x) + add
    return view.plain(), lambda x: mul * x + add


def unary(tracer: "Tracer", node: Node, view: View, function: Function) -> View:
    """A function of each element."""
    base, inner = as_function(tracer, view)
    value = Pointwise(origin=node.origin, shape=view.shape, base=base, function=lambda x: function(inner(x)))
    return tracer.space.add(absorb(tracer, value, view))


def absorb(tracer: "Tracer", value: Pointwise, *views: View) -> Pointwise:
    """Name the nodes of the functions that a function is made of."""
    parts = [tracer.space.single(v) for v in views]
    value.origin = value.origin.joined(*(p.origin for p in parts if isinstance(p, Pointwise)))
    return value


def with_constant(tracer: "Tracer", node: Node, op: str, view: View, c: Floats, *, left: bool) -> View:
    """`view op c`, or `c op view` with `left`."""
    shape = np.broadcast_shapes(view.shape, c.shape)
    view = view.broadcast(shape)
    if op == "Sub":
        return with_constant(tracer, node, "Add", view.affine(-1) if left else view, c if left else -c, left=False)
    if op == "Div" and not left:
        with np.errstate(divide="ignore"):
            return with_constant(tracer, node, "Mul", view, 1 / c, left=False)
    if c.size == 0:
        raise Unmapped("a constant operand is empty", "export the model again")
    first = float(c.flat[0])
    if op in ("Add", "Mul"):
        if c.size == 1 or np.all(c == (0 if op == "Add" else 1)):
            return view.affine(add=first) if op == "Add" else view.affine(mul=first)
        c = np.broadcast_to(c, shape)
        mul, add = (None, c) if op == "Add" else (c, None)
        return tracer.space.add(Affine(origin=node.origin, shape=shape, base=view, mul=mul, add=add))
    if not np.all(c == first):
        raise Unmapped("its constant operand is not the same for all elements", "only Add, Sub, Mul and Div may vary")
    function = BINARY[op]
    return unary(tracer, node, view, (lambda x: function(first, x)) if left else (lambda x: function(x, first)))  # type: ignore[arg-type]


def with_view(tracer: "Tracer", node: Node, op: str, a: View, b: View) -> View:
    """`a op b`, both computed."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = a.broadcast(shape), b.broadcast(shape)
    special = centre(tracer, node, op, a, b) or normalise(tracer, node, op, a, b)
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
        first, second = terms[0].matrix(), terms[1].matrix()
        value = Sum(origin=node.origin, shape=first.shape, a=first, b=second)
        return tracer.space.add(value).reshape(*shape)
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
        bounds = [np.asarray(v, np.float64) if v is not None else None for v in (*inputs[1:3], None, None)[:2]]
        low = -np.inf if bounds[0] is None else float(bounds[0])
        high = np.inf if bounds[1] is None else float(bounds[1])
        return [unary(tracer, node, view, lambda x: np.clip(x, low, high))]
    alpha = float(node.attribute("alpha", {"HardSigmoid": 0.2, "LeakyRelu": 0.01}.get(node.op, 1.0)))
    beta = float(node.attribute("beta", 0.5))
    if node.op == "Gelu" and node.attribute("approximate", "none") == "tanh":
        return [unary(tracer, node, view, _gelu_tanh)]
    functions: dict[str, Function] = {
        "Gelu": _gelu,
        "Swish": lambda x: x * UNARY["Sigmoid"](alpha * x),
        "HardSigmoid": lambda x: np.clip(alpha * x + beta, 0, 1),
        "LeakyRelu": lambda x: np.where(x < 0, alpha * x, x),
        "Elu": lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
    }
    return [unary(tracer, node, view, functions[node.op])]


PARAMETRIC = ("Neg", "Clip", "Gelu", "Swish", "HardSigmoid", "LeakyRelu", "Elu")


def _gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: Floats) -> Floats:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
