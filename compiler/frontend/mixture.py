"""Mixtures of experts: outputs of experts times a gate's scores, and their sum.

An exporter may compute the experts one by one, or all at once with their number as an axis. Here the latter
are taken apart where the gate's scores come in, so that both are the same: a sum that grows by one expert at a
time, in any order, and is complete when all of the gate's experts are in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.gate import FORM, Gate, chosen_sum
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Opaque, Origin, Shape, Space, Sum, Value, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer


@dataclass(eq=False, kw_only=True)
class Mixture(Value):
    """A sum that some experts are in: each one's output `(tokens, channels)` times its score in `gate`.

    `parts` holds the outputs by expert; `others` are what else is in the sum, in its shape.
    """

    gate: Gate
    parts: dict[int, View]
    others: tuple[View, ...] = ()


@dataclass(eq=False, kw_only=True)
class Experts(Value):
    """The sum over all experts of `outputs[e] * gate[:, e]`, `(tokens, channels)`."""

    gate: Gate
    outputs: tuple[View, ...]


def gate_of(space: Space, view: View) -> Gate | None:
    """The gate whose scores a view shows."""
    found = space.single(view)
    return found if isinstance(found, Gate) else None


def mixture_of(space: Space, view: View) -> Mixture | None:
    """The unfinished mixture that a view shows completely, perhaps scaled."""
    found = space.whole(view)
    return found if isinstance(found, Mixture) and view.add == 0 else None


def shows_mixture(space: Space, view: View) -> bool:
    """Whether any element of a view is one of an unfinished mixture."""
    if view.index is None and view.size:
        assert view.start is not None
        return isinstance(space.owner(view.start), Mixture)
    return any(isinstance(v, Mixture) for v in space.owners(view.idx))


def weigh(tracer: "Tracer", node: Node, outputs: View, scores: View) -> View:
    """`outputs * scores`, where `scores` shows a gate's: those of one expert, or of several along an axis."""
    gate = gate_of(tracer.space, scores)
    assert gate is not None
    if scores.add != 0:
        raise Unmapped("a constant is added to the scores of experts", FORM)
    shape = np.broadcast_shapes(outputs.shape, scores.shape)
    outputs = outputs.broadcast(shape).affine(mul=scores.mul)
    # Not broadcast, so that large arrays of outputs cost nothing here.
    places = scores.idx.reshape((1,) * (len(shape) - len(scores.shape)) + scores.shape) - gate.start
    tokens, experts = np.divmod(places, gate.shape[1])
    axes = [i for i, n in enumerate(experts.shape) if n > 1 and np.any(experts != experts.take([0], axis=i))]
    if len(axes) > 1:
        raise Unmapped("its rows mix the scores of experts", FORM)
    if not axes:
        return _finish(tracer, _weighed(gate, node, shape, outputs, tokens, experts), shape)
    (axis,) = axes
    inner = shape[:axis] + shape[axis + 1 :]
    values = [
        _weighed(
            gate, node, inner, tracer.space.cut(outputs, axis, i), tokens.take(i, axis), experts.take(i, axis)
        )
        for i in range(shape[axis])
    ]
    for value in values:
        tracer.space.add(value)  # one after another, so that together they are one array
    whole = View((shape[axis], *inner), values[0].start)
    return whole.transpose(*range(1, axis + 1), 0, *range(axis + 1, len(shape)))


def _weighed(gate: Gate, node: Node, shape: Shape, output: View, tokens: Any, experts: Any) -> Mixture:
    """One expert's output times its scores."""
    rows = np.arange(gate.shape[0])[:, None]
    matrix = np.broadcast_to(tokens, shape).reshape(prod(shape[:-1]), -1) if shape else rows[:0]
    if len(matrix) != len(rows) or not np.all(matrix == rows):
        raise Unmapped("the scores of a token do not multiply the outputs of that token", FORM)
    part = {int(experts.flat[0]): output.matrix()}
    return Mixture(origin=node.origin.joined(gate.origin), shape=shape, gate=gate, parts=part)


def add(tracer: "Tracer", node: Node, a: View, b: View) -> View | None:
    """`a + b` of the same shape, if one of them is an unfinished mixture."""
    found = [mixture_of(tracer.space, v) for v in (a, b)]
    mixtures = [m for m in found if m is not None]
    if not mixtures:
        return None
    gate = mixtures[0].gate
    if any(m.gate is not gate for m in mixtures):
        raise Unmapped("it adds experts of different gates before all of each are added up", FORM)
    parts: dict[int, View] = {}
    others: list[View] = []
    for view, mixture in zip((a, b), found, strict=True):
        if mixture is None:
            others.append(view)
            continue
        for expert, output in mixture.parts.items():
            if expert in parts:
                raise Unmapped(f"it adds expert {expert} a second time", FORM)
            parts[expert] = output.affine(mul=view.mul)
        others += [o.reshape(*a.shape).affine(mul=view.mul) for o in mixture.others]
    if len({p.shape for p in parts.values()}) > 1:
        raise Unmapped("the outputs of experts have different shapes", FORM)
    origin = node.origin.joined(*(m.origin for m in mixtures))
    value = Mixture(origin=origin, shape=a.shape, gate=gate, parts=parts, others=tuple(others))
    return _finish(tracer, value, a.shape)


def _finish(tracer: "Tracer", value: Mixture, shape: Shape) -> View:
    """The mixture's view; if all experts are in it, that of the finished sum."""
    gate = value.gate
    if len(value.parts) < gate.shape[1]:
        return tracer.space.add(value).reshape(*shape)
    outputs = tuple(value.parts[e] for e in range(gate.shape[1]))
    experts = Experts(origin=value.origin, shape=outputs[0].shape, gate=gate, outputs=outputs)
    total = tracer.space.add(experts).reshape(*shape)
    origin = Origin(name=value.origin.name, op=value.origin.op)
    for other in value.others:
        total = tracer.space.add(Sum(origin=origin, shape=shape, a=other, b=total)).reshape(*shape)
    return total


def reduce_sum_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """ReduceSum over the experts of a mixture, or over the scores of a token."""
    view: View = inputs[0]
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else node.attribute("axes")
    if isinstance(axes, View) or not isinstance(view, View):
        raise Unmapped("its axes depend on the data", "export with fixed shapes")
    if axes is None or not np.size(axes):
        if node.attribute("noop_with_empty_axes", 0):
            return [view]
        axes = range(len(view.shape))
    over = {int(a) % len(view.shape) for a in np.asarray(axes).reshape(-1)}
    keep = node.attribute("keepdims", 1)
    out = chosen_sum(tracer, node, view, over) or sum_over(tracer, node, view, over)
    if out is None:
        raise Unmapped("the accelerator has no ReduceSum but over the experts of a mixture", FORM)
    return [out.reshape(*(1 if a in over else n for a, n in enumerate(view.shape) if keep or a not in over))]


def sum_over(tracer: "Tracer", node: Node, view: View, over: set[int]) -> View | None:
    """The sum over some axes, if those are the experts of a mixture or have extent 1; without these axes."""
    kept = [a for a in range(len(view.shape)) if a not in over]
    shape = tuple(view.shape[a] for a in kept)
    count = prod(view.shape[a] for a in over)
    if count == 1:
        return view.reshape(*shape)
    if not shows_mixture(tracer.space, view):
        return None
    moved = view.transpose(*sorted(over), *kept).reshape(count, *shape)
    total = moved.take(0, 0)
    for i in range(1, count):
        part = moved.take(0, i)
        both = add(tracer, node, total, part)
        # The result is no mixture any more when the last expert is in it.
        if both is None or any(mixture_of(tracer.space, v) is None for v in (total, part)):
            raise Unmapped("it sums over something else than the experts", FORM)
        total = both
    return total


def product_with_scores(tracer: "Tracer", node: Node, a: View, b: View) -> View | None:
    """`a @ b` if `a` is one row of scores for each token: `(..., 1, experts) @ (..., experts, channels)`."""
    for left, right, swap in ((a, b, False), (b, a, True)):
        if gate_of(tracer.space, left) is None:
            continue
        if swap:  # (channels, experts) @ (experts, 1)
            left, right = (v.transpose(*range(len(v.shape) - 2), -1, -2) for v in (left, right))
        if left.shape[-2] != 1:
            return None
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        if left.shape[-1] != right.shape[-2]:
            return None
        scores = left.reshape(*left.shape[:-2], left.shape[-1], 1)
        out = sum_over(tracer, node, weigh(tracer, node, right, scores), {len(lead)})
        assert out is not None
        return out.reshape(*lead, -1, 1) if swap else out.reshape(*lead, 1, -1)
    return None


def unmapped_mixture(value: Mixture) -> Opaque:
    """What to say of a sum that not all experts are in."""
    present, count = sorted(value.parts), value.gate.shape[1]
    what = ", ".join(map(str, present[:8])) + (", …" if len(present) > 8 else "")
    one = "expert" if len(present) == 1 else "experts"
    return Opaque(
        origin=value.origin,
        shape=value.shape,
        reason=f"the output of {one} {what} of {count} is used otherwise than in the sum over all experts",
        way_out=FORM,
        operands=(value.gate.choice.logits, *value.parts.values(), *value.others),
    )
