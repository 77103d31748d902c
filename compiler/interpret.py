"""The float graph run in NumPy, a whole batch at once: for calibration and the front end's own check."""

from collections.abc import Callable, Iterator, Mapping
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
    MoE,
    Op,
    PatchEmbed,
    Rows,
)
from moevit.compiler.parallel import by_images
from moevit.errors import InputError

Observer = Callable[[Op, str, Array], None]
# Told what is inside an operation and no tensor of the graph: the operation, which values, and the values.

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
@by_images
def _(op: LayerNorm, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(op.eps)) * op.gamma + op.beta


@evaluate.register
@by_images
def _(op: Linear, x: Array) -> Array:
    return (x.reshape(-1, x.shape[-1]) @ op.weight.T + op.bias).reshape(*x.shape[:-1], -1)


@evaluate.register
@by_images
def _(op: Activation, x: Array) -> Array:
    return ACTIVATIONS[op.kind](x)


@evaluate.register
@by_images
def _(op: Attention, q: Array, k: Array, v: Array) -> Array:
    q, k, v = (t.reshape(*t.shape[:2], op.heads, op.head_dim).swapaxes(1, 2) for t in (q, k, v))
    out = probabilities(op, q, k) @ v
    if op.mass != 1:
        out = out * np.float32(op.mass)
    return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)


@evaluate.register
def _(op: Add, a: Array, b: Array) -> Array:
    return a + b


@evaluate.register
def _(op: Rows, x: Array) -> Array:
    return x[:, op.start : op.start + op.count]


def probabilities(op: Attention, q: Array, k: Array) -> Array:
    """Of queries `(..., N, head_dim)` for keys `(..., M, head_dim)`: `(..., N, M)`."""
    return softmax((q * np.float32(op.scale)) @ k.swapaxes(-1, -2))


def softmax(x: NDArray[Any]) -> Array:
    """Over the last axis."""
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def gate_logits(op: MoE, x: Array) -> Array:
    """`(T, E)` from tokens `(T, D)`."""
    return x @ op.gate_weight.T + op.gate_bias


def route(op: MoE, logits: Array) -> tuple[NDArray[np.int64], Array]:
    """The experts that each token goes to and their scores.

    Both `(T, top_k)`, best first; the score is 0 where the threshold dropped it. Of equal scores the lower
    expert's comes first, as in ONNX's TopK.
    """
    ranked = softmax(logits) if op.order == "softmax_topk" else logits
    chosen = np.argsort(-ranked, axis=-1, kind="stable")[:, : op.top_k]
    best = np.take_along_axis(ranked, chosen, axis=-1)
    scores = best if op.order == "softmax_topk" else softmax(best)
    return chosen, np.where(scores >= np.float32(op.threshold), scores, np.float32(0))


def hidden_of(op: MoE, expert: int, x: Array) -> Array:
    """What one expert's activation gives, `(T, H)`, for tokens `(T, D)`."""
    return ACTIVATIONS[op.activation](x @ op.up_weight[expert].T + op.up_bias[expert])


@evaluate.register
def mixture(op: MoE, x: Array, observe: Observer | None = None) -> Array:
    """Only the experts that a token goes to are computed, expert by expert.

    `observe` is told `logits` `(T, E)` and, for each expert that has tokens, `hidden.<expert>` `(T, H)`.
    """
    tokens = x.reshape(-1, x.shape[-1])
    logits = gate_logits(op, tokens)
    if observe is not None:
        observe(op, "logits", logits)
    out = np.zeros((len(tokens), op.down_weight.shape[1]), np.float32)
    for expert, queue, scores in _queues(op, logits):
        hidden = hidden_of(op, expert, tokens[queue])
        if observe is not None:
            observe(op, f"hidden.{expert}", hidden)
        out[queue] += scores[:, None] * (hidden @ op.down_weight[expert].T + op.down_bias[expert])
    return out.reshape(*x.shape[:-1], -1)


def _queues(op: MoE, logits: Array) -> Iterator[tuple[int, NDArray[np.int64], Array]]:
    """Each expert that has tokens, which they are, and its scores for them."""
    chosen, scores = route(op, logits)
    for expert in range(op.experts):
        queue, place = np.nonzero((chosen == expert) & (scores > 0))
        if queue.size:
            yield expert, queue, scores[queue, place]


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
    pixels = value.dtype == np.uint8 and entry.dtype == "uint8"
    return value.reshape(len(value), *entry.shape).astype(np.float32) / np.float32(255 if pixels else 1)


def steps(
    graph: Graph, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None
) -> Iterator[tuple[str, Array, tuple[Array, ...]]]:
    """Every tensor of the graph for a batch of inputs, as it is computed: its name, its value, and of what.

    Only what is still to be read is held. Arguments and errors are those of `run`.
    """
    tensors = {entry.name: take_input(entry, inputs) for entry in graph.inputs}
    if len({len(t) for t in tensors.values()}) > 1:
        sizes = ", ".join(f"'{n}' {len(t)}" for n, t in tensors.items())
        raise InputError(f"the inputs hold different numbers of images: {sizes}")
    last = {name: op for op in graph.ops for name in op.inputs}
    for name, value in tensors.items():
        yield name, value, ()
    for op in graph.ops:
        operands = tuple(tensors[i] for i in op.inputs)
        with np.errstate(all="ignore"):  # a model whose values overflow has results that are not finite
            result = mixture(op, operands[0], observe) if isinstance(op, MoE) else evaluate(op, *operands)
        for name in set(op.inputs):
            if last[name] is op:
                del tensors[name]
        tensors[op.output] = result.astype(np.float32, copy=False)
        yield op.output, tensors[op.output], operands
        if op.output not in last:
            del tensors[op.output]


def run(
    graph: Graph, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None
) -> dict[str, Array]:
    """Every tensor of the graph for a batch of inputs.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to array
        `(B, ...)` by input name, the batch the same in all.
    observe : function, optional
        Called with what is inside a mixture of experts, as `mixture` says.

    Returns
    -------
    dict of str to array
        `(B, *shape)` float32 by tensor name. `outputs` picks and arranges the model's outputs.

    Raises
    ------
    InputError
        For an input that is missing, or has another shape or a type that is not a number.
    """
    return {name: value for name, value, _ in steps(graph, inputs, observe)}


def outputs(graph: Graph, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The model's outputs, `(B, *model_shape)` by name, from the tensors that hold them."""
    return {output.name: output.arrange(tensors[output.tensor]) for output in graph.outputs}
