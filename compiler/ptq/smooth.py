"""Evening out channels before quantisation, without changing what the model computes.

A tensor has one scale for all channels, so one channel with large values costs all others their precision. Where a
linear operation reads the tensor, channel j can be divided by any s[j] and shifted by any z[j] in the operation that
makes it, and the reader's weights make up for it. SmoothQuant (arXiv 2211.10438) does so after LayerNorm, Outlier
Suppression+ (arXiv 2304.09145) adds the shift. Here it is done in four places, and costs the machine nothing:

- LayerNorm: gamma and beta, which the loader applies anyway; linear layers or a mixture of experts read it.
- Values of an attention: rows of their weight; probabilities of a row add up to one, so the context has the same
  scales and shifts, and the projection behind it takes them back.
- Queries and keys: the scale goes from one to the other. A shift of all keys adds the same number to all scores of a
  query, which softmax does not see.

How far to go is decided by the error that is to be expected: rounding errors are uniform and independent, so both
tensors' share of the result's error follows from their steps and the power of what they are multiplied with.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.ir import Array, Attention, Graph, LayerNorm, Linear, MoE, Op, Rows
from moevit.compiler.ptq.statistics import Range, Statistics
from moevit.compiler.ptq.trial import Accept, Version, always
from moevit.compiler.stages import LinearStage
from moevit.numerics.layernorm import BETA_FRACTION, BETA_WIDTH

Floats = NDArray[np.float64]

STRENGTHS = tuple(i / 10 for i in range(9))  #: exponents that are tried; beyond, channels fit calibration too closely
HIGHEST_SCORE = 300.0  #: times its scale; the machine holds 354
MARGIN = 1.15  #: what each channel fills would be too small for the first image that goes beyond it


@dataclass(frozen=True, eq=False)
class Change:
    """What is stored in place of a tensor's channels x: ``(x - shift) / scale``."""

    scale: Floats
    shift: Floats


def smooth(version: Version, accept: Accept = always) -> Version:
    """The graph with its channels evened out where that is accepted, and what calibration would have seen of it.

    A model that is quantised already stays as it is: its integers would be others, and so would its scales.
    """
    if version.graph.integer_weights or any(op.given is not None for op in version.graph):
        return version
    if any(isinstance(op, Attention) and op.mass != 1 for op in version.graph):
        return version
    for op in version.graph.ops:
        for of, kind, change in CHANGES:
            if isinstance(op, of):
                after = Version(*change(version.graph, version.statistics, op))
                if after.graph is not version.graph and accept((kind, op.output), version, after):
                    version = after
    return version


def _readers(graph: Graph, tensor: str) -> Iterator[Op]:
    """What reads a tensor, also by way of some of its rows."""
    for op in graph.consumers(tensor):
        if isinstance(op, Rows):
            yield from _readers(graph, op.output)
        else:
            yield op


def _outputs_of(graph: Graph, tensor: str) -> bool:
    """Whether a tensor, or rows of it, leave the model."""
    return tensor in {o.tensor for o in graph.outputs} or any(
        _outputs_of(graph, op.output) for op in graph.consumers(tensor) if isinstance(op, Rows)
    )


def _weights(op: Op) -> Iterable[Array]:
    """Matrices `(out, in)` that an operation multiplies its input with, but gates, which belong to one task."""
    if isinstance(op, Linear):
        return (op.weight,)
    assert isinstance(op, MoE)
    return tuple(op.up_weight)


def _reader_after(op: Op, change: Change) -> Op:
    """A reader that takes the changed tensor and gives what it gave."""

    def taken(weight: Array, bias: Array) -> tuple[Array, Array]:
        exact = weight.astype(np.float64)
        return (exact * change.scale).astype(np.float32), (bias + exact @ change.shift).astype(np.float32)

    if isinstance(op, Linear):
        weight, bias = taken(op.weight, op.bias)
        return replace(op, weight=weight, bias=bias)
    assert isinstance(op, MoE)
    gate_weight, gate_bias = taken(op.gate_weight, op.gate_bias)
    ups = [taken(w, b) for w, b in zip(op.up_weight, op.up_bias, strict=True)]
    return replace(
        op, gate_weight=gate_weight, gate_bias=gate_bias, up_weight=np.stack([w for w, _ in ups]),
        up_bias=np.stack([b for _, b in ups]),
    )  # fmt: skip


def _replaced(graph: Graph, changed: Iterable[Op]) -> Graph:
    by_name = {op.name: op for op in changed}
    return graph.replaced(by_name.get(op.name, op) for op in graph.ops)


def _after_norm(graph: Graph, statistics: Statistics, norm: LayerNorm) -> tuple[Graph, Statistics]:
    readers = list(_readers(graph, norm.output))
    if _outputs_of(graph, norm.output) or not readers or not all(isinstance(op, Linear | MoE) for op in readers):
        return graph, statistics
    change = balance(statistics, [norm.output], [w for op in readers for w in _weights(op)])
    gamma, beta = norm.gamma / change.scale, (norm.beta - change.shift) / change.scale
    after = statistics.changed(norm.output, change.scale, change.shift, MARGIN)
    if not _beta_fits(beta, after.ranges[norm.output]):
        return graph, statistics
    changed = [replace(norm, gamma=gamma.astype(np.float32), beta=beta.astype(np.float32))]
    graph = _replaced(graph, [*changed, *(_reader_after(op, change) for op in readers)])
    return graph, after


def _beta_fits(beta: Floats, seen: Range) -> bool:
    """Whether the loader can add ``beta`` to rows with this range: it holds so many steps of them."""
    return bool(np.abs(beta).max(initial=0) < seen.peak / 127 * 2 ** (BETA_WIDTH - 1 - BETA_FRACTION))


def _made_by(graph: Graph, tensor: str) -> Linear | None:
    """The linear layer that makes a tensor for one reader alone."""
    op = graph.producer(tensor)
    alone = len(graph.consumers(tensor)) == 1 and not _outputs_of(graph, tensor)
    return op if isinstance(op, Linear) and alone else None


def _maker_after(op: Linear, change: Change) -> Linear:
    """A linear layer that gives the changed tensor."""
    weight = op.weight / change.scale[:, None]
    bias = (op.bias - change.shift) / change.scale
    return replace(op, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _values(graph: Graph, statistics: Statistics, op: Attention) -> tuple[Graph, Statistics]:
    made, readers = _made_by(graph, op.v), list(_readers(graph, op.output))
    if made is None or _outputs_of(graph, op.output) or not all(isinstance(r, Linear) for r in readers) or not readers:
        return graph, statistics
    change = balance(statistics, [op.v, op.output], [w for r in readers for w in _weights(r)])
    graph = _replaced(graph, [_maker_after(made, change), *(_reader_after(r, change) for r in readers)])
    for tensor in (op.v, op.output):
        statistics = statistics.changed(tensor, change.scale, change.shift)
    return graph, statistics


def _queries_and_keys(graph: Graph, statistics: Statistics, op: Attention) -> tuple[Graph, Statistics]:
    q, k = _made_by(graph, op.q), _made_by(graph, op.k)
    if q is None or k is None or q is k:
        return graph, statistics
    queries, keys = statistics.channels[op.q], statistics.channels[op.k]
    scores = statistics.ranges.get(f"{op.output}#scores", Range(0.0, 0.0))
    # Scores minus their mean reach twice as far at most; where that might saturate, keys stay as they are.
    shift = keys.mean if 2 * scores.peak <= HIGHEST_SCORE else np.zeros_like(keys.mean)
    (low_q, high_q), (low_k, high_k) = queries.expected, keys.expected
    rq, rk = np.maximum(-low_q, high_q), np.maximum(high_k - shift, shift - low_k)
    rq, rk = (np.maximum(r, 1e-3 * r.max(initial=1e-6)) for r in (rq, rk))
    power_q, power_k = queries.square, keys.power(shift)

    def noise(s: Floats) -> float:
        """Error of the scores when queries are divided by ``s`` and keys multiplied."""
        return float((rq / s).max() ** 2 * (power_k * s**2).sum() + (rk * s).max() ** 2 * (power_q / s**2).sum())

    scale = min(((rq / rk) ** a for a in STRENGTHS), key=noise)
    zero = np.zeros_like(scale)
    changes = {op.q: (q, Change(scale, zero)), op.k: (k, Change(1 / scale, shift))}
    graph = _replaced(graph, [_maker_after(made, change) for made, change in changes.values()])
    for tensor, (_, change) in changes.items():
        statistics = statistics.changed(tensor, change.scale, change.shift)
    return graph, statistics


CHANGES: tuple[tuple[type[Op], str, Callable[..., tuple[Graph, Statistics]]], ...] = (
    (LayerNorm, "norm", _after_norm), (Attention, "scores", _queries_and_keys), (Attention, "values", _values),
)  # fmt: skip


def balance(statistics: Statistics, tensors: list[str], weights: list[Array]) -> Change:
    """How to change tensors that have the same channels, which are multiplied with ``weights`` `(out, in)`."""
    seen = [statistics.channels[t] for t in tensors]
    low, high = (np.stack(side) for side in zip(*(c.expected for c in seen), strict=True))
    shift = (low.min(axis=0) + high.max(axis=0)) / 2
    reach = np.maximum(np.abs(low - shift), np.abs(high - shift))  # (tensors, channels)
    half = reach.max(axis=0)
    half = np.maximum(half, 1e-3 * half.max(initial=1e-6))  # a channel that hardly moves needs no precision of its own
    matrices = [w.astype(np.float64) for w in weights]
    largest = np.max([np.abs(w).max(axis=0) for w in matrices], axis=0)
    largest = np.maximum(largest, 1e-3 * largest.max(initial=1e-6))
    squares = [np.square(w) for w in matrices]
    power = [(w @ seen[-1].square).sum() + 1e-30 for w in squares]
    centred = seen[-1].power(shift)

    def noise(s: Floats) -> float:
        """Error of what is computed from them, relative to its power, over all readers."""
        step = np.square((reach / s).max(axis=1)).sum()
        total = 0.0
        for w, w2, p in zip(matrices, squares, power, strict=True):
            rounding = np.square(np.abs(w * s).max(axis=1)).sum() * (centred / s**2).sum()
            total += (step * (w2 @ s**2).sum() + rounding) / p
        return total

    candidates = [np.ones_like(half), *(half**a / largest ** (1 - a) for a in STRENGTHS)]
    return Change(min(candidates, key=noise), shift)


def spread_kept(version: Version, accept: Accept = always) -> Version:
    """LayerNorms whose results are stored: each channel fills the 8 bits of the loader, and the identity matrix that
    brings it to memory becomes a diagonal one, whose rows have scales of their own."""
    for s in version.stages.stages:
        op = version.graph.producer(s.output)
        stated = op is not None and op.given is not None
        if not isinstance(s, LinearStage) or s.norm is None or s.norm_output != s.output or stated:
            continue
        seen, name = version.statistics.channels[s.output], f"{s.output}#spread"
        half = np.maximum(seen.half, 1e-3 * seen.half.max(initial=1e-6)) * MARGIN
        beta = (s.norm.beta - seen.middle) / half
        if not _beta_fits(beta, Range(-1.0, 1.0)):
            continue
        norm = replace(s.norm, gamma=(s.norm.gamma / half).astype(np.float32), beta=beta.astype(np.float32))
        spread = replace(s, norm=norm, norm_output=name, weight=np.diag(half).astype(np.float32),
                         bias=seen.middle.astype(np.float32))  # fmt: skip
        ranges = version.statistics.ranges | {name: Range(-1.0, 1.0)}
        after = replace(
            version, statistics=replace(version.statistics, ranges=ranges),
            own=replace(version.stages, stages=tuple(spread if t is s else t for t in version.stages.stages)),
        )  # fmt: skip
        if accept(("spread", s.output), version, after):
            version = after
    return version
