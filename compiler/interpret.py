"""The float graph run in NumPy, a whole batch at once: for calibration and the front end's own check."""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.ir import (
    Activation,
    Add,
    Array,
    Assemble,
    Attention,
    Graph,
    Input,
    LayerNorm,
    Linear,
    Op,
    PatchEmbed,
    Rows,
)
from moevit.errors import InputError

_SQRT_HALF = np.float32(0.5**0.5)
_TANH_SCALE = np.float32((2 / np.pi) ** 0.5)


def erf(x: Array) -> Array:
    """The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26): NumPy has none."""
    a = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * a)
    poly: Array = np.full_like(t, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = (poly * t + np.float32(c)).astype(np.float32, copy=False)
    return np.copysign(1 - poly * t * np.exp(-a * a), x)


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))` without overflow."""
    return np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: np.float32(0.5) * x * (1 + erf(x * _SQRT_HALF)),
    "gelu_tanh": lambda x: (
        np.float32(0.5) * x * (1 + np.tanh(_TANH_SCALE * (x + np.float32(0.044715) * x * x * x)))
    ),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
}


@singledispatch
def evaluate(op: Op, *inputs: Array) -> Array:
    """One operation on `(B, ...)` arrays; register a function here for each new kind of operation."""
    raise NotImplementedError(f"no interpretation of {type(op).__name__}")


@evaluate.register
def _(op: PatchEmbed, x: Array) -> Array:
    (ph, pw), channels = op.patch, x.shape[1]
    down, across = op.grid(x.shape[1:])
    x = x[:, :, : down * ph, : across * pw].reshape(len(x), channels, down, ph, across, pw)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(len(x), down * across, -1) @ op.weight.T + op.bias


@evaluate.register
def _(op: Assemble, x: Array) -> Array:
    prefix = np.broadcast_to(op.prefix, (len(x), *op.prefix.shape))
    return np.concatenate([prefix, x + op.pos], axis=1)


@evaluate.register
def _(op: LayerNorm, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(op.eps)) * op.gamma + op.beta


@evaluate.register
def _(op: Linear, x: Array) -> Array:
    return (x.reshape(-1, x.shape[-1]) @ op.weight.T + op.bias).reshape(*x.shape[:-1], -1)


@evaluate.register
def _(op: Activation, x: Array) -> Array:
    return ACTIVATIONS[op.kind](x)


@evaluate.register
def _(op: Attention, q: Array, k: Array, v: Array) -> Array:
    q, k, v = (t.reshape(*t.shape[:2], op.heads, op.head_dim).swapaxes(1, 2) for t in (q, k, v))
    scores = (q * np.float32(op.scale)) @ k.swapaxes(-1, -2)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True)) @ v
    return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)


@evaluate.register
def _(op: Add, a: Array, b: Array) -> Array:
    return a + b


@evaluate.register
def _(op: Rows, x: Array) -> Array:
    return x[:, op.start : op.start + op.count]


def take_input(entry: Input, inputs: Mapping[str, NDArray[Any]]) -> Array:
    """One input as `(B, *shape)` float32, checked; raises `InputError`."""
    if entry.name not in inputs:
        given = ", ".join(inputs) or "nothing"
        raise InputError(f"input '{entry.name}' is missing", mend=f"what was given: {given}")
    value = np.asarray(inputs[entry.name])
    if value.ndim == 0 or value.shape[1:] not in (entry.shape, entry.model_shape):
        want = ", ".join(map(str, entry.model_shape))
        raise InputError(f"input '{entry.name}' has shape {value.shape}", mend=f"it must be (batch, {want})")
    if value.dtype.kind not in "fiu":
        raise InputError(f"input '{entry.name}' is {value.dtype}", mend=f"it must be {entry.dtype}")
    return value.reshape(len(value), *entry.shape).astype(np.float32)


def run(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    """Every tensor of the graph for a batch of inputs.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to array
        `(B, ...)` by input name, the batch the same in all.

    Returns
    -------
    dict of str to array
        `(B, *shape)` float32 by tensor name. `outputs` picks and arranges the model's outputs.

    Raises
    ------
    InputError
        For an input that is missing, or has another shape or a type that is not a number.
    """
    tensors = {entry.name: take_input(entry, inputs) for entry in graph.inputs}
    if len({len(t) for t in tensors.values()}) > 1:
        sizes = ", ".join(f"'{n}' {len(t)}" for n, t in tensors.items())
        raise InputError(f"the inputs hold different numbers of images: {sizes}")
    for op in graph.ops:
        tensors[op.output] = evaluate(op, *(tensors[i] for i in op.inputs)).astype(np.float32, copy=False)
    return tensors


def outputs(graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The model's outputs, `(B, *model_shape)` by name, from the tensors that hold them."""
    return {output.name: output.arrange(tensors[output.tensor]) for output in graph.outputs}
