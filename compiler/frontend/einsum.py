"""Einsum of two operands, as a matrix product with rearrangements around it."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.linear import matmul_node
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer


def einsum_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Einsum whose letters are each summed over, kept from one operand, or common to both and the result."""
    terms, _, result = node.attribute("equation").replace(" ", "").partition("->")
    letters = terms.split(",")
    if len(letters) != 2 or not result or any("." in t or len(set(t)) != len(t) for t in (*letters, result)):
        raise Unmapped(
            f"its equation '{terms}->{result}' is not a matrix product", "write it as matrix products"
        )
    a, b = (_without_ones(x, t) for x, t in zip(inputs, letters, strict=True))
    (a, first), (b, second) = a, b
    extents = dict(zip(first + second, (*a.shape, *b.shape), strict=True))
    kept = [c for c in result if c in extents]
    common = [c for c in kept if c in first and c in second]
    summed = [c for c in first if c in second and c not in kept]
    rows, columns = ([c for c in kept if c in t and c not in common] for t in (first, second))
    if set(first + second) - set(kept) - set(summed):
        raise Unmapped(
            f"its equation '{terms}->{result}' sums within an operand", "write it as matrix products"
        )
    left = _arranged(a, first, (common, rows, summed), extents)
    right = _arranged(b, second, (common, summed, columns), extents)
    if not common:
        left, right = (
            left[0] if isinstance(left, np.ndarray) else left.reshape(*left.shape[1:]),
            (right[0] if isinstance(right, np.ndarray) else right.reshape(*right.shape[1:])),
        )
    (out,) = matmul_node(tracer, node, [left, right])
    order = common + rows + columns
    out = out.reshape(*(extents[c] for c in order)).transpose(*(order.index(c) for c in kept))
    return [out.reshape(*(extents.get(c, 1) for c in result))]


def _without_ones(x: Any, letters: str) -> tuple[Any, str]:
    """An operand without its axes of extent 1, such as the batch, and the letters of the others."""
    axes = [i for i, n in enumerate(x.shape) if n != 1]
    return x.reshape(*(x.shape[i] for i in axes)), "".join(letters[i] for i in axes)


def _arranged(x: Any, letters: str, groups: Sequence[Sequence[str]], extents: dict[str, int]) -> Any:
    """An operand with its axes in groups, each made one axis."""
    order = [letters.index(c) for group in groups for c in group]
    return x.transpose(*order).reshape(*(prod(extents[c] for c in group) for group in groups))
