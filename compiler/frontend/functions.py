"""Elementwise functions of one operand, and arithmetic with constants.

Constants become scales and offsets of a view where they are the same for all elements; everything else that
is done to one operand becomes one function of it. A GELU that an exporter wrote as multiplications and Erf
is, whatever the order, one function of one view; which one is found later by evaluating it (`activation.py`).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Affine, Floats, Function, Pointwise, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Floats) -> Floats:
    """`1 / (1 + exp(-x))`."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def gelu(x: Floats) -> Floats:
    """`x * Phi(x)`."""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x: Floats) -> Floats:
    """The approximation of `gelu` by tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY: dict[str, Function] = {
    "Erf": _erf,
    "Tanh": np.tanh,
    "Sigmoid": sigmoid,
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
        return with_constant(
            tracer, node, "Add", view.affine(-1) if left else view, c if left else -c, left=False
        )
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
        raise Unmapped(
            "its constant operand is not the same for all elements", "only Add, Sub, Mul and Div may vary"
        )
    function, constant = BINARY[op], np.asarray(first)
    if left:
        return unary(tracer, node, view, lambda x: function(constant, x))
    return unary(tracer, node, view, lambda x: function(x, constant))
