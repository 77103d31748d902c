"""Ranges of every tensor of a graph over calibration inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.interpret import hidden_of, run
from moevit.compiler.ir import Array, Attention, Graph, MoE, Op
from moevit.errors import InputError, ModelError

BATCH = 32
USUAL_SCORE = 300.0  #: of attention, times its scale; softmax's weights are a single one long before


@dataclass(frozen=True)
class Range:
    """Smallest and largest value seen; zero is always inside."""

    low: float
    high: float

    @property
    def peak(self) -> float:
        """Largest magnitude; positive even when all values were zero."""
        return max(-self.low, self.high, 1e-6)


class Ranges:
    """Smallest and largest values seen so far, by name; zero is always inside."""

    def __init__(self) -> None:
        self._low: dict[str, float] = {}
        self._high: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._low

    def see(self, name: str, values: NDArray) -> None:
        """More values under a name."""
        self._low[name] = min(self._low.get(name, 0.0), float(values.min()))
        self._high[name] = max(self._high.get(name, 0.0), float(values.max()))

    def result(self) -> dict[str, Range]:
        """By name."""
        return {name: Range(low, self._high[name]) for name, low in self._low.items()}


def calibrate(graph: Graph, inputs: Mapping[str, NDArray]) -> dict[str, Range]:
    """Run the float graph on ``inputs`` [B, ...] and return the range of each tensor.

    A mixture of experts has ranges inside too, whose names begin with its output's: ``<output>#logits`` of its
    gate, and for each expert e ``<output>#hidden.<e>`` of its activated hidden values, over the tokens that
    are routed to it; over all tokens if in all of ``inputs`` none is. An attention has ``<output>#scores``, or a
    bound of them where that is small.

    Absolute extremes, not percentiles: on a trained vision transformer with outliers those cost less
    (see docs/numerics.md). Raises InputError for empty or non-finite data, ModelError
    where the float model overflows on it.
    """
    count = min((len(v) for v in inputs.values()), default=0)
    if count == 0:
        raise InputError("the calibration data holds no image", mend="give at least one, better a hundred")
    for name, value in inputs.items():
        if not np.isfinite(value).all():
            raise InputError(f"calibration input '{name}' holds values that are not finite")
    ranges, of_all_tokens = Ranges(), Ranges()

    def inside(op: Op, what: str, values: Array) -> None:
        ranges.see(f"{op.output}#{what}", values)

    for first in range(0, count, BATCH):
        tensors = run(graph, {k: v[first : first + BATCH] for k, v in inputs.items()}, inside)
        for name, value in tensors.items():
            if not np.isfinite(value).all():
                raise ModelError(
                    f"tensor '{name}' of the float model is not finite on the calibration data",
                    where=graph.name,
                    mend="train or export again: its weights are damaged or do not fit float32",
                )
            ranges.see(name, value)
        for op in graph.ops:
            if isinstance(op, MoE):
                _see_idle(op, tensors[op.x], ranges, of_all_tokens)
            elif isinstance(op, Attention):
                _see_scores(op, tensors[op.q], tensors[op.k], ranges)
    return {name: r for name, r in of_all_tokens.result().items() if name not in ranges} | ranges.result()


def _see_scores(op: Attention, q: Array, k: Array, ranges: Ranges) -> None:
    """The scores' largest magnitude, or a bound of it where even that is usual: the product costs much."""
    q, k = (x.reshape(*x.shape[:2], op.heads, op.head_dim).swapaxes(1, 2) for x in (q, k))
    with np.errstate(over="ignore"):
        length_q, length_k = (np.linalg.norm(x, axis=-1).max(axis=-1) for x in (q, k))  # [B, heads]
        scores = np.float32(op.scale) * length_q * length_k
        if not scores.max() <= USUAL_SCORE:
            scores = np.stack([(a * np.float32(op.scale)) @ b.swapaxes(-1, -2) for a, b in zip(q, k, strict=True)])
    ranges.see(f"{op.output}#scores", scores)


def _see_idle(op: MoE, x: Array, ranges: Ranges, of_all_tokens: Ranges) -> None:
    """Hidden ranges over all tokens `(B, N, D)`, of those experts to which none has gone yet."""
    for expert in range(op.experts):
        name = f"{op.output}#hidden.{expert}"
        if name not in ranges:
            for tokens in x:  # one image at a time, which keeps the hidden values small
                of_all_tokens.see(name, hidden_of(op, expert, tokens))
