"""What the probabilities of a quantised model add up to.

An 8-bit format of probabilities has steps of 1/255, and the 197 keys of a DeiT have 1/197 each where attention is even.
So many of them round down, some to nothing, and a row of them no longer adds up to one: in such a model all of an
attention's result is smaller, by a fifth for instance. The machine has probabilities of its own, which always add up
to one. But one factor for all of an attention costs it nothing: it is part of the result's scale.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import interpret
from moevit.compiler.ir import Array, Attention, Given, Graph
from moevit.compiler.ptq.accuracy import chosen

INPUTS = 8  #: calibration inputs that are looked at: every one has hundreds of rows


def with_masses(graph: Graph, inputs: Mapping[str, NDArray]) -> Graph:
    """The graph with the mass of each attention whose probabilities' format is stated, from inputs `(B, ...)`.

    It is the factor with which the result of exact probabilities is nearest to that of rounded ones, by least squares.
    """
    stated = {op.output: op for op in graph if isinstance(op, Attention) and op.given_probabilities is not None}
    if not stated:
        return graph
    masses = {
        name: _mass(stated[name], *operands)
        for name, _, operands in interpret.steps(graph, chosen(inputs, INPUTS))
        if name in stated
    }
    return graph.replaced(
        replace(op, mass=masses[op.output]) if isinstance(op, Attention) and op.output in masses else op for op in graph
    )


def rounded(p: NDArray, given: Given) -> NDArray[np.float64]:
    """Values as a model's quantiser leaves them."""
    q = np.clip(np.round(p / given.scale) + given.zero_point, given.low, given.high)
    out: NDArray[np.float64] = (q - given.zero_point) * given.scale
    return out


def _mass(op: Attention, q: Array, k: Array, v: Array) -> float:
    assert op.given_probabilities is not None
    product = power = 0.0
    for image in zip(q, k, v, strict=True):  # one at a time: the probabilities of all would be a large tensor
        queries, keys, values = (x.reshape(len(x), op.heads, op.head_dim).swapaxes(0, 1) for x in image)
        p = interpret.probabilities(op, queries, keys)
        exact = (p @ values).astype(np.float64)
        product += float((exact * (rounded(p, op.given_probabilities) @ values)).sum())
        power += float(np.square(exact).sum())
    return max(product / power, 0.0) if power > 0 else 1.0
