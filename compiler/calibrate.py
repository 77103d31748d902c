"""What every tensor of a graph looks like over calibration inputs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.interpret import hidden_of, steps
from moevit.compiler.ir import Activation, Array, Attention, Graph, Linear, MoE, Op
from moevit.compiler.ptq.statistics import Calibrated, Channels, Floats, Range, Statistics, buckets
from moevit.errors import InputError, ModelError

BATCH = 8
APART = 4
USUAL_SCORE = 300.0  #: of attention, times its scale; softmax's weights are a single one long before

__all__ = ["Range", "calibrate", "observe", "observe_apart"]


def calibrate(graph: Graph, inputs: Mapping[str, NDArray]) -> dict[str, Range]:
    """The ranges that :func:`observe` finds."""
    return observe(graph, inputs).ranges


def observe(graph: Graph, inputs: Mapping[str, NDArray]) -> Statistics:
    """Run the float graph on ``inputs`` [B, ...] and return what its tensors look like.

    A mixture of experts has ranges inside too, whose names begin with its output's: ``<output>#logits`` of its
    gate, and for each expert e ``<output>#hidden.<e>`` of its activated hidden values, over the tokens that
    are routed to it; over all tokens if in all of ``inputs`` none is. An attention has ``<output>#scores``, or a
    bound of them where that is small.

    Ranges are absolute extremes, not percentiles: on a trained vision transformer with outliers those cost less
    (see docs/numerics.md). Raises InputError for empty or non-finite data, ModelError
    where the float model overflows on it.
    """
    _check(inputs)
    watcher = _Watcher(graph)
    watcher.watch(inputs)
    return watcher.result()


def observe_apart(graph: Graph, inputs: Mapping[str, NDArray]) -> Calibrated:
    """As :func:`observe`, of all images but every ``APART``-th, and of all. Of two or three, one is held out."""
    count = _check(inputs)
    if count == 1:
        seen = observe(graph, inputs)
        return Calibrated(whole=seen, part=seen, held=inputs, fresh=False)
    apart = np.arange(count) % min(count, APART) == 0
    watcher = _Watcher(graph)
    watcher.watch({k: v[~apart] for k, v in inputs.items()})
    part = watcher.result()
    held = {k: v[apart] for k, v in inputs.items()}
    watcher.watch(held)
    return Calibrated(whole=watcher.result(), part=part, held=held, fresh=True)


def _check(inputs: Mapping[str, NDArray]) -> int:
    """The number of images."""
    counts = {len(v) for v in inputs.values()}
    if not counts or 0 in counts:
        raise InputError("the calibration data holds no image", mend="give at least one, better a hundred")
    if len(counts) > 1:
        sizes = ", ".join(f"'{k}' {len(v)}" for k, v in inputs.items())
        raise InputError(f"the inputs hold different numbers of images: {sizes}")
    for name, value in inputs.items():
        if not np.isfinite(value).all():
            raise InputError(f"calibration input '{name}' holds values that are not finite")
    return counts.pop()


class _Watcher:
    """Collects what is seen of a graph's tensors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {op.output: op for op in graph.ops}
        self.ranges: dict[str, Range] = {}
        self.of_all_tokens: dict[str, Range] = {}  # of experts to which none has gone yet
        self.channels: dict[str, Channels] = {}
        self.hidden: dict[str, Floats] = {}
        self.powers = {op.output: _power(graph, op.output) for op in graph.ops if isinstance(op, Activation)}

    def watch(self, inputs: Mapping[str, NDArray]) -> None:
        """Run the graph on images, and see all of it."""
        for first in range(0, min(map(len, inputs.values())), BATCH):
            batch = {k: v[first : first + BATCH] for k, v in inputs.items()}
            for name, value, operands in steps(self.graph, batch, self.inside):
                self.see(name, value, operands)

    def see(self, name: str, values: Array, operands: tuple[Array, ...]) -> None:
        """A tensor of the graph, and what it was computed from."""
        if not np.isfinite(values).all():
            raise ModelError(
                f"tensor '{name}' of the float model is not finite on the calibration data",
                where=self.graph.name,
                mend="train or export again: its weights are damaged or do not fit float32",
            )
        _widen(self.ranges, name, values)
        if values.ndim == 3:
            seen = Channels.of(values)
            self.channels[name] = self.channels[name].joined(seen) if name in self.channels else seen
        if name in self.powers:
            self._count(name, values, self.powers[name])
        op = self.makers.get(name)
        if isinstance(op, MoE):
            self._see_idle(op, operands[0])
        elif isinstance(op, Attention):
            self._see_scores(op, *operands[:2])

    def inside(self, op: Op, what: str, values: Array) -> None:
        """What is inside a mixture of experts."""
        _widen(self.ranges, f"{op.output}#{what}", values)
        if what.startswith("hidden.") and isinstance(op, MoE):
            weight = op.down_weight[int(what.removeprefix("hidden."))].astype(np.float64)
            self._count(f"{op.output}#{what}", values, np.square(weight).sum(axis=0))

    def _count(self, name: str, values: Array, weights: Floats) -> None:
        counted = buckets(values, weights)
        self.hidden[name] = self.hidden[name] + counted if name in self.hidden else counted

    def _see_idle(self, op: MoE, x: Array) -> None:
        """Hidden ranges over all tokens `(B, N, D)`, of those experts to which none has gone yet."""
        for expert in range(op.experts):
            name = f"{op.output}#hidden.{expert}"
            if name not in self.ranges:
                for tokens in x:  # one image at a time, which keeps the hidden values small
                    _widen(self.of_all_tokens, name, hidden_of(op, expert, tokens))

    def _see_scores(self, op: Attention, q: Array, k: Array) -> None:
        """The scores' largest magnitude, or a bound of it where even that is usual: the product costs much."""
        q, k = (x.reshape(*x.shape[:2], op.heads, op.head_dim).swapaxes(1, 2) for x in (q, k))
        with np.errstate(over="ignore"):
            length_q, length_k = (np.linalg.norm(x, axis=-1).max(axis=-1) for x in (q, k))  # [B, heads]
            scores = np.float32(op.scale) * length_q * length_k
            if not scores.max() <= USUAL_SCORE:
                scores = np.stack([(a * np.float32(op.scale)) @ b.swapaxes(-1, -2) for a, b in zip(q, k, strict=True)])
        _widen(self.ranges, f"{op.output}#scores", scores)

    def result(self) -> Statistics:
        """All that was seen so far."""
        return Statistics(self.of_all_tokens | self.ranges, dict(self.channels), dict(self.hidden))


def _widen(ranges: dict[str, Range], name: str, values: Array) -> None:
    seen = Range(min(float(values.min()), 0.0), max(float(values.max()), 0.0))
    ranges[name] = ranges[name].joined(seen) if name in ranges else seen


def _power(graph: Graph, tensor: str) -> Floats:
    """Power of the weights that each channel of a tensor is multiplied with, `(channels,)`."""
    matrices = [op.weight.astype(np.float64) for op in graph.consumers(tensor) if isinstance(op, Linear)]
    out: Floats = np.square(np.concatenate(matrices)).sum(axis=0) if matrices else np.ones(graph.tensors[tensor][1])
    return out
