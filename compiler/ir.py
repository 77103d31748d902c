"""The float graph that the front end makes of an ONNX model and the quantiser reads.

Tensors are named, defined once and have a static shape without the batch: `(tokens, channels)`, or
`(channels, height, width)` for an image. Each kind of operation is one frozen dataclass that holds its own
float32 constants, names its operands in `inputs`, and states in `infer` which shapes it takes and gives.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[np.float32]

ACTIVATION_KINDS = ("gelu", "gelu_tanh", "relu", "silu")
MOE_ORDERS = ("softmax_topk", "topk_softmax")


class ShapeError(Exception):
    """An operation was given shapes it does not take; `verify` turns it into an error with a place."""


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _matrix(shape: Shape, what: str) -> tuple[int, int]:
    _need(len(shape) == 2, f"{what} must be (tokens, channels), not {shape}")
    return shape[0], shape[1]


@dataclass(frozen=True, kw_only=True)
class Given:
    """The format that a quantised model states of a tensor: `(q - zero_point) * scale` for `low <= q <= high`."""

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """What every operation has.

    Parameters
    ----------
    name : str
        Unique in the graph, and for people: reports and error messages name it.
    output : str
        The tensor it defines.
    source : tuple of str
        The ONNX nodes it was made from.
    given : Given, optional
        The output's format, where the model is quantised and states it.
    """

    OPERANDS: ClassVar[tuple[str, ...]] = ("x",)

    name: str
    output: str
    source: tuple[str, ...] = ()
    given: Given | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads, in the order `infer` takes their shapes."""
        return tuple(getattr(self, operand) for operand in self.OPERANDS)

    def infer(self, *shapes: Shape) -> Shape:
        """The output's shape, from the inputs'; raises `ShapeError`."""
        raise NotImplementedError

    def macs(self, *shapes: Shape) -> int:
        """Multiply-accumulates of one image, from the inputs' shapes."""
        return 0

    def constants(self) -> dict[str, Array]:
        """Its constant arrays by field name."""
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same operation reading and writing other tensors."""
        changes: dict[str, Any] = {o: names.get(getattr(self, o), getattr(self, o)) for o in self.OPERANDS}
        return replace(self, output=names.get(self.output, self.output), **changes)


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchEmbed(Op):
    """Cut an image into patches, row by row, and project each: `(C, H, W)` to `(gh*gw, D)`.

    `weight` is `(D, C*ph*pw)` with its columns in (channel, row, column) order, `bias` is `(D,)`. Pixels
    right of and below the last whole patch are not read.
    """

    x: str
    weight: Array
    bias: Array
    patch: tuple[int, int]

    def grid(self, image: Shape) -> tuple[int, int]:
        """Patches down and across."""
        return image[1] // self.patch[0], image[2] // self.patch[1]

    def infer(self, *shapes: Shape) -> Shape:
        (image,) = shapes
        _need(len(image) == 3, f"the image must be (channels, height, width), not {image}")
        _need(self.weight.ndim == 2, f"weight must be a matrix, not {self.weight.shape}")
        size = image[0] * self.patch[0] * self.patch[1]
        _need(
            self.weight.shape[1] == size, f"weight has {self.weight.shape[1]} columns, a patch {size} values"
        )
        _need(self.bias.shape == self.weight.shape[:1], f"bias {self.bias.shape}, weight {self.weight.shape}")
        down, across = self.grid(image)
        _need(down * across > 0, f"image {image} is smaller than a patch {self.patch}")
        return down * across, self.weight.shape[0]

    def macs(self, *shapes: Shape) -> int:
        down, across = self.grid(shapes[0])
        return down * across * self.weight.size


@dataclass(frozen=True, eq=False, kw_only=True)
class Assemble(Op):
    """Constant tokens, then the patches with their position added: `(P, D)` to `(n_prefix + P, D)`.

    `prefix` is `(n_prefix, D)`: class and distillation tokens, their position added. `pos` is `(P, D)`.
    """

    x: str
    prefix: Array
    pos: Array

    def infer(self, *shapes: Shape) -> Shape:
        tokens, channels = _matrix(shapes[0], "patches")
        _need(self.pos.shape == (tokens, channels), f"pos {self.pos.shape}, patches {shapes[0]}")
        _need(self.prefix.ndim == 2 and self.prefix.shape[1] == channels, f"prefix {self.prefix.shape}")
        return self.prefix.shape[0] + tokens, channels


@dataclass(frozen=True, eq=False, kw_only=True)
class _Norm(Op):
    """A normalisation of each token: gamma and beta `(channels,)`."""

    x: str
    gamma: Array
    beta: Array
    eps: float

    def infer(self, *shapes: Shape) -> Shape:
        _, channels = _matrix(shapes[0], "x")
        _need(self.gamma.shape == self.beta.shape == (channels,), f"gamma {self.gamma.shape}, x {shapes[0]}")
        _need(self.eps >= 0, f"eps is {self.eps}")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerNorm(_Norm):
    """`(x - mean) / sqrt(variance + eps) * gamma + beta` over the channels of each token."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RmsNorm(_Norm):
    """`x / sqrt(mean(x²) + eps) * gamma + beta` over the channels of each token.

    The front end's own: :mod:`~moevit.compiler.frontend.turn` makes layer normalisations of it.
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Op):
    """`x @ weight.T + bias`: weight `(out, in)`, bias `(out,)`."""

    x: str
    weight: Array
    bias: Array

    def infer(self, *shapes: Shape) -> Shape:
        tokens, channels = _matrix(shapes[0], "x")
        _need(
            self.weight.ndim == 2 and self.weight.shape[1] == channels,
            f"weight {self.weight.shape}, x {shapes[0]}",
        )
        _need(self.bias.shape == self.weight.shape[:1], f"bias {self.bias.shape}, weight {self.weight.shape}")
        return tokens, self.weight.shape[0]

    def macs(self, *shapes: Shape) -> int:
        return shapes[0][0] * self.weight.size


@dataclass(frozen=True, eq=False, kw_only=True)
class Identity(Linear):
    """A linear layer that changes nothing: the compiler's own, to have a tensor where it needs it. No useful work."""

    def macs(self, *shapes: Shape) -> int:
        return 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation(Op):
    """An elementwise function, one of `ACTIVATION_KINDS`."""

    x: str
    kind: str

    def infer(self, *shapes: Shape) -> Shape:
        _matrix(shapes[0], "x")
        _need(self.kind in ACTIVATION_KINDS, f"unknown activation '{self.kind}'")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Op):
    """Softmax attention, head by head: `mass * softmax(q @ k.T * scale) @ v`.

    `q` is `(N, heads*head_dim)`, `k` and `v` are `(M, heads*head_dim)`, head-major; the output has q's shape.
    `given_probabilities` is the format that a quantised model states of the softmax's result, and `mass` what a row of
    these still adds up to; `ptq/mass.py` finds it.
    """

    OPERANDS: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: str
    k: str
    v: str
    heads: int
    head_dim: int
    scale: float
    mass: float = 1.0
    given_probabilities: Given | None = None

    def infer(self, *shapes: Shape) -> Shape:
        width = self.heads * self.head_dim
        for name, shape in zip("qkv", shapes, strict=True):
            _need(_matrix(shape, name)[1] == width, f"{name} {shape}, {self.heads} heads of {self.head_dim}")
        _need(shapes[1] == shapes[2], f"k {shapes[1]}, v {shapes[2]}")
        _need(self.heads > 0 and self.head_dim > 0, f"{self.heads} heads of {self.head_dim}")
        return shapes[0]

    def macs(self, *shapes: Shape) -> int:
        return 2 * shapes[0][0] * shapes[1][0] * self.heads * self.head_dim


@dataclass(frozen=True, eq=False, kw_only=True)
class MoE(Op):
    """Mixture of experts: the sum over the chosen experts e of `score_e(x) * down_e(act(up_e(x)))`.

    The gate's logits of a token are `x @ gate_weight.T + gate_bias`. With E experts of hidden width H, for
    x `(N, D)`:

    Parameters
    ----------
    gate_weight, gate_bias : array
        `(E, D)` and `(E,)`.
    order : str
        "softmax_topk": softmax over all experts, of which the k largest are kept without renormalising;
        "topk_softmax": softmax over the k largest logits.
    top_k : int
        k. Of equal scores the lower expert's is taken first.
    threshold : float
        Scores below it are dropped, without scaling up the others; 0 keeps all.
    up_weight, up_bias : array
        `(E, H, D)` and `(E, H)`.
    activation : str
        One of `ACTIVATION_KINDS`.
    down_weight, down_bias : array
        `(E, D_out, H)` and `(E, D_out)`.
    given_hidden : tuple
        Of each expert, the format of what its activation gives, or None; empty for none at all.
    """

    x: str
    gate_weight: Array
    gate_bias: Array
    order: str
    top_k: int
    threshold: float
    up_weight: Array
    up_bias: Array
    activation: str
    down_weight: Array
    down_bias: Array
    given_hidden: tuple[Given | None, ...] = ()

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.gate_weight.shape[0]

    def infer(self, *shapes: Shape) -> Shape:
        tokens, channels = _matrix(shapes[0], "x")
        _need(
            self.gate_weight.ndim == 2 and self.gate_weight.shape[1] == channels,
            f"gate_weight {self.gate_weight.shape}, x {shapes[0]}",
        )
        experts = self.gate_weight.shape[0]
        _need(self.gate_bias.shape == (experts,), f"gate_bias {self.gate_bias.shape}, {experts} experts")
        _need(1 <= self.top_k <= experts, f"top_k is {self.top_k} of {experts} experts")
        _need(self.order in MOE_ORDERS, f"unknown order '{self.order}'")
        _need(0 <= self.threshold < float("inf"), f"threshold is {self.threshold}")
        _need(self.activation in ACTIVATION_KINDS, f"unknown activation '{self.activation}'")
        up, down = self.up_weight.shape, self.down_weight.shape
        _need(len(up) == 3 and up[::2] == (experts, channels), f"up_weight {up}, x {shapes[0]}")
        _need(self.up_bias.shape == up[:2], f"up_bias {self.up_bias.shape}, up_weight {up}")
        _need(len(down) == 3 and down[::2] == up[:2], f"down_weight {down}, up_weight {up}")
        _need(self.down_bias.shape == down[:2], f"down_bias {self.down_bias.shape}, down_weight {down}")
        return tokens, down[1]

    def macs(self, *shapes: Shape) -> int:
        tokens, channels = shapes[0]
        _, width, hidden = self.down_weight.shape
        return tokens * (channels * self.experts + self.top_k * hidden * (channels + width))


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Op):
    """`a + b`, of equal shapes: the residual connection."""

    OPERANDS: ClassVar[tuple[str, ...]] = ("a", "b")

    a: str
    b: str

    def infer(self, *shapes: Shape) -> Shape:
        _matrix(shapes[0], "a")
        _need(shapes[0] == shapes[1], f"a {shapes[0]}, b {shapes[1]}")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows(Op):
    """Tokens `start` to `start + count`, such as the class token before the head."""

    x: str
    start: int
    count: int

    def infer(self, *shapes: Shape) -> Shape:
        tokens, channels = _matrix(shapes[0], "x")
        _need(
            self.start >= 0 and self.count > 0 and self.start + self.count <= tokens, f"rows of {shapes[0]}"
        )
        return self.count, channels


@dataclass(frozen=True, eq=False, kw_only=True)
class Tensor:
    """A tensor's name and its shape without the batch."""

    name: str
    shape: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Tensor):
    """An input of the graph; `name` is the model's own.

    Parameters
    ----------
    dtype : str
        What the model takes: "float32", or "uint8" for pixels, which stand for 0 … 1 in steps of 1/255 here.
    model_shape : tuple of int
        Its shape in the model without the batch, where it differs from `shape` in extents of 1.
    given : Given, optional
        Its format, where the model states one.
    """

    dtype: str = "float32"
    model_shape: Shape
    given: Given | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Output:
    """An output of the model and the tensor that holds it.

    Parameters
    ----------
    name : str
        The model's name of it.
    tensor : str
        The tensor that holds its values.
    model_shape : tuple of int
        Its shape in the model, without the batch.
    order : array of int, optional
        Where each of its values lies in the flattened tensor, when they are not in the same order.
    """

    name: str
    tensor: str
    model_shape: Shape
    order: NDArray[np.int64] | None = None

    def arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        """The output of the model, `(B, *model_shape)`, from the tensor's values, `(B, ...)`."""
        flat = values.reshape(len(values), -1)
        return (flat if self.order is None else flat[:, self.order]).reshape(len(values), *self.model_shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Graph:
    """Operations in an order in which each tensor is defined before it is used.

    Parameters
    ----------
    name : str
        The model's.
    inputs, outputs : tuple
        Of `Input` and `Output`.
    ops : tuple of Op
    integer_weights : bool
        Whether the model has matrices that are integers times a scale, so that these are to be kept.
    tensors : dict, derived
        Every tensor's shape by name, in order of definition; those that cannot be inferred are missing, and
        `verify` says why.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    ops: tuple[Op, ...]
    integer_weights: bool = False
    tensors: dict[str, Shape] = field(init=False, repr=False)
    _producers: dict[str, Op] = field(init=False, repr=False)
    _readers: dict[str, list[Op]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {i.name: i.shape for i in self.inputs}
        for op in self.ops:
            with suppress(ShapeError, KeyError):
                shapes[op.output] = op.infer(*(shapes[i] for i in op.inputs))
        object.__setattr__(self, "tensors", shapes)
        producers: dict[str, Op] = {}
        readers: dict[str, list[Op]] = {}
        for op in self.ops:
            producers.setdefault(op.output, op)
            for tensor in dict.fromkeys(op.inputs):
                readers.setdefault(tensor, []).append(op)
        object.__setattr__(self, "_producers", producers)
        object.__setattr__(self, "_readers", readers)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def replaced(self, ops: Iterable[Op]) -> "Graph":
        """The same graph with other operations."""
        return replace(self, ops=tuple(ops))

    def producer(self, tensor: str) -> Op | None:
        """The operation that defines a tensor; None for an input."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Op, ...]:
        """The operations that read a tensor."""
        return tuple(self._readers.get(tensor, ()))

    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(op.macs(*(self.tensors[i] for i in op.inputs)) for op in self.ops)

    def counts(self) -> dict[str, int]:
        """How many operations there are of each kind."""
        kinds = [type(op).__name__ for op in self.ops]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


Pass = Callable[[Graph], Graph]
