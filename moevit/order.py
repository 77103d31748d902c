"""The order of a tensor's values in a model's output, in a few numbers instead of one per value.

What reshapes, transposes and slices do to an order is a walk with a constant stride along each axis. A
:class:`Walk` is one such walk; any order is some walks behind each other, and most are a single one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Walk:
    """The indices ``first + i0 * strides[0] + i1 * strides[1] + …``, last axis fastest, ``i`` below ``extents``."""

    first: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]

    def __len__(self) -> int:
        return int(np.prod(self.extents, dtype=np.int64))

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest index."""
        steps = [(e - 1) * s for e, s in zip(self.extents, self.strides, strict=True)]
        return self.first + sum(min(s, 0) for s in steps), self.first + sum(max(s, 0) for s in steps)

    def indices(self) -> Indices:
        """All of them, in order."""
        out = np.array([self.first], np.int64)
        for extent, stride in zip(self.extents, self.strides, strict=True):
            out = (out[:, None] + np.arange(extent) * stride).reshape(-1)
        return out


def walks(order: Indices, values: int) -> tuple[Walk, ...]:
    """The walks that an order of some or all of a tensor's ``values`` consists of; none for 0, 1, 2, … of all of them
    (the order that a tensor has anyway)."""
    if np.array_equal(order, np.arange(values)):
        return ()
    return tuple(_walks(np.asarray(order, np.int64)))


def indices(parts: Sequence[Walk]) -> Indices:
    """Inverse of :func:`walks`, for at least one walk."""
    return np.concatenate([part.indices() for part in parts])


def _walks(order: Indices) -> list[Walk]:
    whole = _single(order)
    return [whole] if whole is not None else list(_runs(order))


def _runs(order: Indices) -> Iterator[Walk]:
    """The order as runs of one stride each, the longest from its start on."""
    steps = np.diff(order)
    changes = np.append(np.flatnonzero(np.diff(steps)) + 1, len(steps))  # where another stride begins
    start = 0
    while start < len(order):
        end = int(changes[np.searchsorted(changes, start, side="right")]) + 1 if start < len(steps) else start + 1
        stride = int(steps[start]) if end - start > 1 else 1
        yield Walk(int(order[start]), (end - start,), (stride,))
        start = end


def _single(order: Indices) -> Walk | None:
    """The order as one walk, if it is one: each axis is as long as its stride stays the same."""
    rest, axes = order, []
    while len(rest) > 1:
        stride = int(rest[1] - rest[0])
        breaks = np.flatnonzero(np.diff(rest) != stride)
        extent = int(breaks[0]) + 1 if breaks.size else len(rest)
        if len(rest) % extent:
            return None
        axes.append((extent, stride))
        rest = rest[::extent]
    axes.reverse()
    walk = Walk(int(order[0]), tuple(e for e, _ in axes), tuple(s for _, s in axes))
    return walk if np.array_equal(walk.indices(), order) else None
