"""Gates of mixtures of experts: what softmax, TopK and ScatterElements make of a gate's logits.

TopK's indices depend on the data, so its outputs are no views of what it reads: they are values of their own
that know whose experts they choose. Whatever is done to them is followed only as far as a gate goes, to a
score for each expert in which all but the k largest are zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moevit.compiler.frontend.layout import rearrange
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Opaque, Softmax, Space, Value, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

FORM = (
    "supported is a mixture of experts: the logits of a linear gate, softmax and TopK over all experts in either "
    "order, ScatterElements of the k scores into zeros, each expert's output (linear, activation, linear) times its "
    "score, and their sum by ReduceSum or Add; or onnxruntime's MoE operator"
)
_LARGEST_EPSILON = 1e-4  # where scores are divided by their sum and a little, relative to the smallest such sum


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """The `top_k` largest of each row of logits `(tokens, experts)`."""

    logits: View
    top_k: int

    @property
    def experts(self) -> int:
        """Among how many it chooses."""
        return self.logits.shape[1]


@dataclass(eq=False, kw_only=True)
class Chosen(Value):
    """Something of the chosen experts, `(tokens, top_k)`.

    `kind` is "logits", "index" (which experts), "scores" (their part of the softmax over all experts), or
    "normalised" (the softmax over the chosen ones). Scores below `threshold` are 0.
    """

    choice: Choice
    kind: Literal["logits", "index", "scores", "normalised"]
    threshold: float = 0.0


@dataclass(eq=False, kw_only=True)
class ChosenSum(Value):
    """The sum of the scores of the chosen experts, `(tokens, 1)`."""

    choice: Choice


@dataclass(eq=False, kw_only=True)
class Gate(Value):
    """The chosen experts' scores, and 0 for the others, `(tokens, experts)`; `order` as in `ir.MoE`."""

    choice: Choice
    order: str
    threshold: float


@dataclass(eq=False, kw_only=True)
class Above(Value):
    """Whether each score is at least `threshold`; with `negated`, whether it is not."""

    target: Chosen | Gate
    threshold: float
    negated: bool


def plain(space: Space, view: Any) -> Value | None:
    """The value that something shows completely, in order and unscaled."""
    return space.whole(view) if isinstance(view, View) and (view.mul, view.add) == (1, 0) else None


def same(a: View, b: View) -> bool:
    """Whether two views have equal elements."""
    return (a.mul, a.add) == (b.mul, b.add) and a.same_elements(b)


def is_integer(space: Space, view: View) -> bool:
    """Whether a view holds what ONNX has no floating point type for: indices of experts, or comparisons."""
    value = space.single(view)
    return isinstance(value, Above) or (isinstance(value, Chosen) and value.kind == "index")


def is_part(space: Space, view: View) -> bool:
    """Whether a view shows a part of a gate."""
    return isinstance(space.single(view), Above | Chosen | ChosenSum | Gate)


def top_k_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """TopK of a gate's logits, or of their softmax, which has the same order."""
    view, k = inputs
    if not isinstance(view, View) or isinstance(k, View):
        raise Unmapped("how many it takes depends on the data", "export with a fixed k")
    if int(node.attribute("axis", -1)) % len(view.shape) != len(view.shape) - 1:
        raise Unmapped("it is not over the last axis, the experts of a token", FORM)
    if not node.attribute("largest", 1):
        raise Unmapped("it takes the smallest values, not the largest", FORM)
    top_k, lead = int(np.asarray(k).reshape(-1)[0]), view.shape[:-1]
    if not 1 <= top_k <= view.shape[-1]:
        raise Unmapped(f"it takes {top_k} of {view.shape[-1]} values", "check the model")
    softmax = plain(tracer.space, view)
    is_softmax = isinstance(softmax, Softmax)
    logits = softmax.x.matrix() if isinstance(softmax, Softmax) else view.matrix()
    choice = Choice(logits=logits, top_k=top_k)
    origin = node.origin.joined(softmax.origin) if isinstance(softmax, Softmax) else node.origin
    shape = (logits.shape[0], top_k)
    values = Chosen(origin=origin, shape=shape, choice=choice, kind="scores" if is_softmax else "logits")
    index = Chosen(origin=origin, shape=shape, choice=choice, kind="index")
    return [tracer.space.add(v).reshape(*lead, top_k) for v in (values, index)]


def softmax_of_chosen(tracer: "Tracer", node: Node, view: View) -> View | None:
    """The softmax over the chosen logits, if `view` is those."""
    found = plain(tracer.space, view)
    if not isinstance(found, Chosen) or found.kind != "logits" or view.shape[-1] != found.choice.top_k:
        return None
    return _chosen(tracer, node, found, view, kind="normalised")


def gather_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """GatherElements: logits or scores of the chosen experts."""
    data, index = inputs
    found = plain(tracer.space, index)
    if not isinstance(found, Chosen):
        return rearrange(tracer, node, inputs)
    fits = isinstance(data, View) and _is_last(node, data) and data.shape[:-1] == index.shape[:-1]
    if fits and found.kind == "index":
        softmax = plain(tracer.space, data)
        if isinstance(softmax, Softmax) and same(softmax.x.matrix(), found.choice.logits):
            return [_chosen(tracer, node, found, index, kind="scores")]
        if same(data.matrix(), found.choice.logits):
            return [_chosen(tracer, node, found, index, kind="logits")]
    raise Unmapped("it gathers by the chosen experts what are not their scores", FORM)


def _chosen(tracer: "Tracer", node: Node, found: Chosen, view: View, **changes: Any) -> View:
    return tracer.space.add(replace(found, origin=node.origin.joined(found.origin), **changes)).reshape(*view.shape)


def chosen_sum(tracer: "Tracer", node: Node, view: View, over: set[int]) -> View | None:
    """The sum of a token's scores `(..., 1)`, if that is what a sum over some axes of `view` is."""
    found = plain(tracer.space, view)
    if not isinstance(found, Chosen) or found.kind != "scores" or found.threshold:
        return None
    if over != {len(view.shape) - 1} or view.shape[-1] != found.choice.top_k:
        return None
    value = ChosenSum(origin=node.origin.joined(found.origin), shape=(found.shape[0], 1), choice=found.choice)
    return tracer.space.add(value).reshape(*view.shape[:-1], 1)


def scored(tracer: "Tracer", node: Node, op: str, a: View, b: View) -> View | None:
    """Scores of chosen experts divided by their sum, or with those below a threshold removed, if `a op b` is that."""
    if op == "Div":
        return _normalised(tracer, node, a, b)
    if op == "Mul":
        for x, condition in ((a, b), (b, a)):
            above = plain(tracer.space, condition)
            if isinstance(above, Above) and not above.negated and plain(tracer.space, x) is above.target:
                return _thresholded(tracer, node, above, x)
    return None


def _normalised(tracer: "Tracer", node: Node, a: View, b: View) -> View | None:
    found, total = plain(tracer.space, a), tracer.space.single(b)
    if not isinstance(found, Chosen) or found.kind != "scores" or found.threshold:
        return None
    if not isinstance(total, ChosenSum) or total.choice is not found.choice or b.mul != 1:
        return None
    # The largest scores add up to at least k / E, so a small constant that avoids a division by zero does nothing.
    if not 0 <= b.add * found.choice.experts <= _LARGEST_EPSILON * found.choice.top_k:
        return None
    rows = np.arange(found.shape[0])[:, None]
    if a.shape != b.shape or not np.all(b.idx.reshape(found.shape) - total.start == rows):
        return None
    return _chosen(tracer, node, replace(found, origin=found.origin.joined(total.origin)), a, kind="normalised")


def compare_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """GreaterOrEqual, Greater, Less and LessOrEqual of scores and a constant."""
    (view, bound), op = inputs, node.op
    if not isinstance(view, View):
        view, bound = bound, view
        op = op.replace("Greater", "?").replace("Less", "Greater").replace("?", "Less")
    target = plain(tracer.space, view)
    is_score = isinstance(target, Gate) or (isinstance(target, Chosen) and target.kind in ("scores", "normalised"))
    if isinstance(bound, View) or not is_score or np.unique(bound).size != 1 or not np.isfinite(bound).all():
        raise Unmapped(f"the accelerator has no {node.op} but of the scores of chosen experts", FORM)
    assert isinstance(target, Chosen | Gate)
    threshold = np.float32(np.asarray(bound).flat[0])
    if op in ("Greater", "LessOrEqual"):  # the next larger number then is the smallest that is kept
        threshold = np.nextafter(threshold, np.float32(np.inf))
    above = Above(
        origin=node.origin.joined(target.origin),
        shape=target.shape,
        target=target,
        threshold=max(0.0, float(threshold)),
        negated=op.startswith("Less"),
    )
    return [tracer.space.add(above).reshape(*view.shape)]


def not_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Not of a comparison of scores."""
    above = plain(tracer.space, inputs[0])
    if not isinstance(above, Above):
        raise Unmapped("the accelerator has no Not but of a comparison of scores", FORM)
    return [tracer.space.add(replace(above, negated=not above.negated)).reshape(*inputs[0].shape)]


def where_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """Where: scores below a threshold removed; or a rearrangement, if the condition is constant."""
    above = plain(tracer.space, inputs[0])
    if not isinstance(above, Above):
        return rearrange(tracer, node, inputs)
    kept, other = (inputs[2], inputs[1]) if above.negated else inputs[1:3]
    fits = isinstance(kept, View) and kept.shape == inputs[0].shape and not isinstance(other, View)
    if not fits or np.any(other) or plain(tracer.space, kept) is not above.target:
        raise Unmapped("it does something else than to replace scores below a threshold by zero", FORM)
    return [_thresholded(tracer, node, above, kept)]


def _thresholded(tracer: "Tracer", node: Node, above: Above, view: View) -> View:
    target = above.target
    origin = node.origin.joined(above.origin, target.origin)
    threshold = max(target.threshold, above.threshold)
    return tracer.space.add(replace(target, origin=origin, threshold=threshold)).reshape(*view.shape)


def scatter_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """ScatterElements of the chosen experts' scores into zeros: a gate. Any scale stays in the view."""
    data, index, updates = inputs
    where = plain(tracer.space, index)
    if not isinstance(where, Chosen):
        return rearrange(tracer, node, inputs)
    choice = where.choice
    if where.kind != "index" or isinstance(data, View) or np.any(data) or not isinstance(updates, View):
        raise Unmapped("what it scatters is not the scores of chosen experts into zeros", FORM)
    if node.attribute("reduction", "none") not in ("none", "add"):  # the same, no expert being chosen twice
        raise Unmapped(f"it scatters with reduction '{node.attribute('reduction')}'", FORM)
    scores = tracer.space.whole(updates)
    if not isinstance(scores, Chosen) or scores.choice is not choice or updates.add != 0:
        raise Unmapped("what it scatters is not made of the values of the TopK that gives its indices", FORM)
    if scores.kind not in ("scores", "normalised"):
        raise Unmapped("the scores that it scatters are no softmax", FORM)
    if not _is_last(node, data) or index.shape != updates.shape or data.shape[:-1] != index.shape[:-1]:
        raise Unmapped("it does not scatter along the experts of each token", FORM)
    if data.shape[-1] != choice.experts:
        raise Unmapped(f"it scatters scores of {choice.experts} experts among {data.shape[-1]}", FORM)
    origin = node.origin.joined(where.origin, scores.origin)
    return [gate(tracer, choice, scores, origin).reshape(*data.shape).affine(mul=updates.mul)]


def gate(tracer: "Tracer", choice: Choice, scores: Chosen, origin: Any) -> View:
    """The gate that has these scores."""
    value = Gate(
        origin=origin,
        shape=choice.logits.shape,
        choice=choice,
        order="softmax_topk" if scores.kind == "scores" else "topk_softmax",
        threshold=scores.threshold,
    )
    return tracer.space.add(value)


def _is_last(node: Node, data: Any) -> bool:
    return int(node.attribute("axis", 0)) % len(data.shape) == len(data.shape) - 1


def unmapped_gate(value: Chosen | ChosenSum | Gate | Above) -> Opaque:
    """What to say of a part of a gate that is used for something else."""
    choice = value.target.choice if isinstance(value, Above) else value.choice
    what = "what is made of a gate's scores" if isinstance(value, Gate) else "what is made of the chosen values"
    return Opaque(
        origin=value.origin,
        shape=value.shape,
        reason=f"{what} is no mixture of experts",
        way_out=FORM,
        operands=(choice.logits,),
    )


COMPARISONS = ("GreaterOrEqual", "Greater", "Less", "LessOrEqual")
