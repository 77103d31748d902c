"""Symbolic values, and views of them.

While a model is traced, every tensor that depends on an input is a `View`: an array of addresses, each naming
one element of one `Value`, with a scale and an offset common to all. Reshape, Transpose, Split, Gather,
Concat and their like only rearrange addresses, so however an exporter spells a rearrangement, what arrives at
the next matrix product is the same array of addresses; what it means is read off there.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Floats = NDArray[np.float64]
Addresses = NDArray[np.int64]
Function = Callable[[Floats], Floats]

NO_ADDRESS = -1
# In an array of addresses: a constant, which belongs to no value.

# No tensor of a model that fits the accelerator is larger; a damaged or hostile model may ask for it.
MAX_ELEMENTS = 1 << 26


def possible(shape: Shape) -> bool:
    """Whether a tensor may have a shape; an extent of 0 must not hide how large the others are."""
    return all(0 <= n <= MAX_ELEMENTS for n in shape) and prod(shape) <= MAX_ELEMENTS


@dataclass(frozen=True, eq=False)
class View:
    """An array whose element `e` is `mul * element(idx[e]) + add`.

    `start` is set instead of `index` where the addresses are consecutive, so that large arrays cost nothing.
    """

    shape: Shape
    start: int | None = None
    index: Addresses | None = field(default=None, repr=False)
    mul: float = 1.0
    add: float = 0.0

    def __post_init__(self) -> None:
        if not possible(self.shape):
            raise ValueError(f"a tensor of extents {self.shape}, where {MAX_ELEMENTS} elements are the most")

    @cached_property
    def idx(self) -> Addresses:
        """The addresses, of the view's shape."""
        if self.index is not None:
            return self.index
        assert self.start is not None
        return np.arange(self.start, self.start + self.size, dtype=np.int64).reshape(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    def at(self, index: Addresses) -> "View":
        """Other addresses, the same scale and offset."""
        return View(index.shape, None, index, self.mul, self.add)

    def reshape(self, *shape: int) -> "View":
        """As NumPy's; -1 is allowed."""
        if -1 in shape:
            rest = -prod(shape)
            shape = tuple(self.size // max(rest, 1) if s == -1 else s for s in shape)
        if self.index is None:
            return View(shape, self.start, None, self.mul, self.add)
        return self.at(self.index.reshape(shape))

    def transpose(self, *axes: int) -> "View":
        """As NumPy's."""
        order = [a % len(axes) for a in axes]
        long = [a for a in order if self.shape[a] != 1]
        if long == sorted(long):  # only axes of extent 1 move
            return self.reshape(*(self.shape[a] for a in order))
        return self.at(self.idx.transpose(axes))

    def take(self, axis: int, i: int) -> "View":
        """Element `i` along an axis, which goes."""
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        if prod(self.shape[:axis]) == 1:
            return self.span(i * prod(shape), shape)
        return self.at(np.moveaxis(self.idx, axis, 0)[i])

    def span(self, first: int, shape: Shape) -> "View":
        """The elements from `first` on of all of them in order, as an array of some shape."""
        if self.start is not None:
            return View(shape, self.start + first, None, self.mul, self.add)
        return self.at(self.idx.reshape(-1)[first : first + prod(shape)].reshape(shape))

    def broadcast(self, shape: Shape) -> "View":
        """As `numpy.broadcast_to`."""
        return self if shape == self.shape else self.at(np.broadcast_to(self.idx, shape))

    def affine(self, mul: float = 1.0, add: float = 0.0) -> "View":
        """`mul * self + add`."""
        return View(self.shape, self.start, self.index, self.mul * mul, self.add * mul + add)

    def plain(self) -> "View":
        """The same addresses without scale and offset."""
        return View(self.shape, self.start, self.index)

    def matrix(self) -> "View":
        """All leading axes taken as one: `(rows, last axis)`."""
        return self.reshape(prod(self.shape[:-1]), self.shape[-1]) if self.shape else self.reshape(1, 1)

    def same_elements(self, other: "View") -> bool:
        """Whether both name the same addresses in the same order, in arrays of the same shape."""
        if self.shape != other.shape:
            return False
        if self.index is None and other.index is None:
            return self.start == other.start
        return bool(np.array_equal(self.idx, other.idx))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The ONNX node a value comes from, and those that were folded into it."""

    name: str
    op: str
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of the nodes."""
        return (self.name, *self.others)

    def joined(self, *earlier: "Origin") -> "Origin":
        """With the nodes of the values that it absorbs."""
        names = [n for e in earlier for n in e.names] + list(self.others)
        others = tuple(n for n in dict.fromkeys(names) if n != self.name)
        return Origin(name=self.name, op=self.op, others=others)


@dataclass(eq=False, kw_only=True)
class Value:
    """An array that is computed, with `start` the address of its first element."""

    origin: Origin
    shape: Shape
    start: int = -1

    @property
    def size(self) -> int:
        """How many addresses it has."""
        return prod(self.shape)

    @property
    def view(self) -> View:
        """All of it, as it is."""
        return View(self.shape, self.start)


@dataclass(eq=False, kw_only=True)
class Source(Value):
    """An input of the model. `shape` is `(tokens, channels)` if it can be that, else the model's own."""

    name: str
    dtype: str
    model_shape: Shape


@dataclass(eq=False, kw_only=True)
class Const(Value):
    """Constants that were joined with computed elements."""

    array: Floats


@dataclass(eq=False, kw_only=True)
class Affine(Value):
    """`mul * base + add`, elementwise; None stands for 1 and 0."""

    base: View
    mul: Floats | None
    add: Floats | None


@dataclass(eq=False, kw_only=True)
class Projection(Value):
    """`x @ weight.T` for x `(rows, in)`, weight `(out, in)`."""

    x: View
    weight: Floats


@dataclass(eq=False, kw_only=True)
class Product(Value):
    """`a @ b` for a `(..., n, d)`, b `(..., d, m)`, neither of them constant."""

    a: View
    b: View


@dataclass(eq=False, kw_only=True)
class Softmax(Value):
    """Softmax over the last axis."""

    x: View


@dataclass(eq=False, kw_only=True)
class Context(Value):
    """Attention: `(rows, heads*head_dim)` from q, k, v of that form; of which softmax, if that is a node."""

    q: View
    k: View
    v: View
    heads: int
    head_dim: int
    scale: float
    softmax: Softmax | None = None


@dataclass(eq=False, kw_only=True)
class Mean(Value):
    """The mean over the last axis of `x` `(n, m)`, as one row `(1, n)`.

    It is part of a layer normalisation, `centred` being `x - mean` once that was seen, or a mean over tokens.
    """

    x: View
    centred: "Centred | None" = None


@dataclass(eq=False, kw_only=True)
class Centred(Value):
    """`x - mean(x)` over the last axis."""

    x: View


@dataclass(eq=False, kw_only=True)
class Norm(Value):
    """Layer normalisation, or RMS normalisation if not `centred`, without gamma and beta of x `(rows, channels)`."""

    x: View
    eps: float
    centred: bool = True


@dataclass(eq=False, kw_only=True)
class Pointwise(Value):
    """`function(base)`, the same function for every element.

    `terms` are two views whose sum it is, in case the function turns out to be none the accelerator has;
    `found` is what lowering made of it.
    """

    base: View
    function: Function
    terms: tuple[View, View] | None = None
    found: Any = None


@dataclass(eq=False, kw_only=True)
class Active(Value):
    """An activation of a matrix of the same shape."""

    base: View
    kind: str


@dataclass(eq=False, kw_only=True)
class Sum(Value):
    """`a + b`, of the same shape; `found` is what lowering made of it."""

    a: View
    b: View
    found: Any = None


@dataclass(eq=False, kw_only=True)
class Total(Value):
    """`a + b` of matrices, in the arrangement in which they are computed."""

    a: View
    b: View


@dataclass(eq=False, kw_only=True)
class Opaque(Value):
    """What no operation of the accelerator computes; `operands` is what it reads."""

    reason: str
    way_out: str
    operands: tuple[View, ...] = ()


class Space:
    """All values of a model, each with its own range of addresses."""

    def __init__(self) -> None:
        self._values: list[Value] = []
        self._starts: list[int] = []
        self._end = 0

    def add(self, value: Value) -> View:
        """Give a value its addresses, and return the view of all of it."""
        value.start = self._end
        self._values.append(value)
        self._starts.append(value.start)
        self._end += max(value.size, 1)
        return value.view

    def owner(self, address: int) -> Value:
        """The value an address belongs to."""
        return self._values[bisect_right(self._starts, address) - 1]

    def owners(self, addresses: Addresses) -> list[Value]:
        """The values that addresses belong to, each once; constants (`NO_ADDRESS`) belong to none."""
        used = addresses[addresses != NO_ADDRESS]
        if not used.size:
            return []
        first, last = self.owner(int(used.min())), self.owner(int(used.max()))
        if first is last:
            return [first]
        places = np.unique(np.searchsorted(self._starts, used, side="right") - 1)
        return [self._values[i] for i in places]

    def whole(self, view: View) -> Value | None:
        """The value that a view shows completely and in order, if there is one; its shape may differ."""
        if view.size == 0:
            return None
        start = view.start
        if start is None:
            start = int(view.idx.flat[0])
            if start < 0 or not np.array_equal(view.idx.reshape(-1), np.arange(start, start + view.size)):
                return None
        value = self.owner(start)
        return value if value.start == start and value.size == view.size else None

    def cut(self, view: View, axis: int, i: int) -> View:
        """Element `i` along an axis, as values of its own where it is part of a larger elementwise value.

        What was written for many experts at once is then looked at for each alone: the large arrays of
        addresses are never made.
        """
        return self._own(view.take(axis, i))

    def _own(self, view: View) -> View:
        value = self.single(view) if view.index is None else None
        if not isinstance(value, Affine | Pointwise) or value.size == view.size:
            return view
        assert view.start is not None
        first, shape = view.start - value.start, view.shape
        base = self._own(value.base.span(first, shape))
        if isinstance(value, Affine):
            mul, add = (None if a is None else _span(a, first, shape) for a in (value.mul, value.add))
            own = self.add(Affine(origin=value.origin, shape=shape, base=base, mul=mul, add=add))
        else:
            terms = None
            if value.terms is not None:
                a, b = (self._own(t.span(first, shape)) for t in value.terms)
                terms = (a, b)
            own = self.add(replace(value, shape=shape, base=base, terms=terms, found=None))
        return View(shape, own.start, None, view.mul, view.add)

    def in_order(self, matrix: View) -> tuple[View, Addresses] | None:
        """All rows of a value in their own order, and which of them each row of a matrix is; None where it does not
        show each row once, or does in that order.

        What is done to each row alike commutes with the order, so that tokens stay where they are however a model
        groups them (windows, channels last).
        """
        value = self.single(matrix)
        if matrix.index is None or value is None or not value.shape:
            return None
        width = matrix.shape[1]
        if value.shape[-1] != width or value.size != matrix.size:
            return None
        first = matrix.idx[:, 0] - value.start
        if np.any(first % width) or not np.array_equal(matrix.idx - value.start, first[:, None] + np.arange(width)):
            return None
        rows = first // width
        count = np.arange(len(rows))
        if np.array_equal(rows, count) or not np.array_equal(np.sort(rows), count):
            return None
        return View(matrix.shape, value.start, None, matrix.mul, matrix.add), rows

    def single(self, view: View) -> Value | None:
        """The only value that a view shows elements of, if there is only one."""
        if view.size == 0:
            return None
        if view.index is None:
            assert view.start is not None
            value = self.owner(view.start)
            return value if view.start + view.size <= value.start + value.size else None
        owners = self.owners(view.idx)
        return owners[0] if len(owners) == 1 else None


def _span(array: Floats, first: int, shape: Shape) -> Floats:
    """Consecutive elements of an array, which may be a broadcast one much larger than its memory."""
    size = prod(shape)
    for lead in range(array.ndim + 1):
        if prod(array.shape[lead:]) == size and first % size == 0:
            return array[np.unravel_index(first // size, array.shape[:lead])].reshape(shape)
    return array.reshape(-1)[first : first + size].reshape(shape)
