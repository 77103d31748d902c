"""Layer and RMS normalisation, as one node or as means, differences, squares and roots."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.compiler.frontend.functions import as_function, with_constant
from moevit.compiler.frontend.gate import FORM, is_part
from moevit.compiler.frontend.mixture import reduce_sum_node, shows_mixture
from moevit.compiler.frontend.node import Node, Unmapped
from moevit.compiler.frontend.space import Centred, Function, Mean, Norm, Opaque, Origin, Pointwise, View

if TYPE_CHECKING:
    from moevit.compiler.frontend.trace import Tracer

_PROBE = np.array([1e-3, 0.5, 1.0, 4.0, 100.0])


def mean_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """ReduceMean over any axes."""
    view: View = inputs[0]
    axes = _axes(node, inputs)
    if axes is None:
        return [view]
    if shows_mixture(tracer.space, view):
        raise Unmapped("it averages experts, whose scores are weights already, instead of adding them", FORM)
    return [mean(tracer, node, view, axes, node.attribute("keepdims", 1))]


def sum_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """ReduceSum: of a mixture of experts, or a mean times the number of what is added."""
    view: View = inputs[0]
    try:
        return reduce_sum_node(tracer, node, inputs)
    except Unmapped:
        if shows_mixture(tracer.space, view) or is_part(tracer.space, view):
            raise
    axes = _axes(node, inputs) or ()
    out = mean(tracer, node, view, axes, node.attribute("keepdims", 1))
    return [out.affine(mul=prod(view.shape[a] for a in axes))]


def _axes(node: Node, inputs: Sequence[Any]) -> list[int] | None:
    """The axes that a node reduces, an input since opset 18 (13 for sums) and an attribute before; None for none."""
    rank = len(inputs[0].shape)
    axes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else node.attribute("axes")
    if isinstance(axes, View):
        raise Unmapped("its axes depend on the data", "export with fixed shapes")
    if axes is None or not np.size(axes):
        return None if node.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [int(a) % rank for a in np.asarray(axes).reshape(-1)]


def global_pool_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View]:
    """GlobalAveragePool: `(1, C, H, W)` to `(1, C, 1, 1)`."""
    return [mean(tracer, node, inputs[0], list(range(2, len(inputs[0].shape))), True)]


def mean(tracer: "Tracer", node: Node, view: View, axes: Sequence[int], keep: bool) -> View:
    """The mean of a view over some of its axes."""
    over = {a % len(view.shape) for a in axes}
    kept = [a for a in range(len(view.shape)) if a not in over]
    x = view if over == {len(view.shape) - 1} else view.transpose(*kept, *sorted(over))
    x = x.reshape(prod(view.shape[a] for a in kept), -1)
    key = (x.shape, x.mul, x.add, x.start if x.index is None else x.idx.tobytes())
    if key not in tracer.means:
        tracer.means[key] = Mean(origin=node.origin, shape=(1, x.shape[0]), x=x)
        tracer.space.add(tracer.means[key])
    out = tracer.means[key].view
    return out.reshape(*(1 if a in over else n for a, n in enumerate(view.shape) if keep or a not in over))


def norm_node(tracer: "Tracer", node: Node, inputs: Sequence[Any]) -> list[View | None]:
    """LayerNormalization or RMSNormalization over the last axis; further outputs are not available."""
    view, gamma, beta = (*inputs, None, None)[:3]
    if int(node.attribute("axis", -1)) % len(view.shape) != len(view.shape) - 1:
        raise Unmapped("it normalises over more than the last axis", "normalise each token over its channels")
    if isinstance(gamma, View) or isinstance(beta, View):
        raise Unmapped("its scale or bias depends on the data", "they must be constants")
    x = view.matrix()
    eps = float(node.attribute("epsilon", 1e-5))
    centred = node.op == "LayerNormalization"
    out = norm_of(tracer, node.origin, x, eps, centred=centred).reshape(*view.shape)
    if gamma is not None:
        out = with_constant(tracer, node, "Mul", out, np.asarray(gamma, np.float64), left=False)
    if beta is not None:
        out = with_constant(tracer, node, "Add", out, np.asarray(beta, np.float64), left=False)
    return [out, *[None] * (len(node.proto.output) - 1)]


def norm_of(tracer: "Tracer", origin: Origin, x: View, eps: float, *, centred: bool) -> View:
    """The normalisation of a matrix's rows."""
    x, rows = tracer.space.in_order(x) or (x, None)
    out = tracer.space.add(Norm(origin=origin, shape=x.shape, x=x, eps=eps, centred=centred))
    return out if rows is None else out.at(out.idx[rows])


def centre(tracer: "Tracer", node: Node, op: str, a: View, b: View) -> View | None:
    """`x - mean(x)`, if that is what `a op b` is."""
    if op not in ("Add", "Sub"):
        return None
    for x, m, sign in ((a, b, -1 if op == "Add" else 1), *([(b, a, -1)] if op == "Add" else [])):
        found = _row_value(tracer, m)
        if not isinstance(found, Mean) or (m.mul, m.add) != (sign, 0) or found.x.size != x.size:
            continue
        if (found.x.mul, found.x.add) != (x.mul, x.add) or not found.x.same_elements(x.matrix()):
            continue
        if found.centred is None:
            found.centred = Centred(origin=node.origin.joined(found.origin), shape=x.matrix().shape, x=x)
            tracer.space.add(found.centred)
        return found.centred.view.reshape(*x.shape)
    return None


def normalise(tracer: "Tracer", node: Node, op: str, a: View, b: View) -> View | None:
    """`(x - mean) / sqrt(variance + eps)` or `x / sqrt(mean(x²) + eps)`, if that is what `a op b` is.

    A scale stays in the view.
    """
    if op not in ("Mul", "Div"):
        return None
    for x, d in ((a, b), *([(b, a)] if op == "Mul" else [])):
        base, function = as_function(tracer, d)
        squares = _row_value(tracer, base)
        if not isinstance(squares, Mean):
            continue
        whole = tracer.space.whole(x)
        centred = whole if isinstance(whole, Centred) and x.add == 0 else None
        if not _is_mean_square(tracer, squares, x.plain() if centred is None else centred.view):
            continue
        found = _inverse_root(function if op == "Mul" else lambda v, f=function: 1 / f(v))  # type: ignore[misc]
        if found is None or (centred is None and (x.mul, x.add) != (1, 0)):
            continue
        eps, scale = found
        origin = node.origin.joined(*([] if centred is None else [centred.origin]), squares.origin)
        for part in (tracer.space.single(d), tracer.space.whole(squares.x)):
            if part is not None:
                origin = origin.joined(origin, part.origin)
        rows = x.matrix() if centred is None else centred.x.matrix()
        norm = norm_of(tracer, origin, rows, eps, centred=centred is not None)
        return norm.reshape(*x.shape).affine(mul=scale * x.mul)
    return None


def _row_value(tracer: "Tracer", view: View) -> Any:
    """The value with one element per row that a view repeats along its last axis."""
    value = tracer.space.single(view)
    if value is None or not view.shape:
        return None
    rows = view.matrix().idx
    if value.size != len(rows) or not np.array_equal(
        rows[:, 0], np.arange(value.start, value.start + value.size)
    ):
        return None
    return value if np.all(rows == rows[:, :1]) else None


def _is_mean_square(tracer: "Tracer", mean: Mean, x: View) -> bool:
    """Whether a mean is that of `x` squared."""
    square = tracer.space.whole(mean.x)
    if not isinstance(square, Pointwise) or (mean.x.mul, mean.x.add) != (1, 0):
        return False
    if (square.base.mul, square.base.add) != (1, 0) or not square.base.matrix().same_elements(x.matrix()):
        return False
    return bool(np.allclose(square.function(_PROBE), _PROBE**2, rtol=1e-9))


def _inverse_root(function: Function) -> tuple[float, float] | None:
    """`(eps, scale)` of a function that is `scale / sqrt(v + eps)`."""
    with np.errstate(all="ignore"):
        low, high = 1 / np.square(np.asarray(function(np.array([0.0, 1.0])), dtype=np.float64))
        if not np.isfinite([low, high]).all() or high <= low:
            return None
        scale = 1 / np.sqrt(high - low)
        eps = float(low * scale**2)
        if float(function(np.array([1.0]))[0]) < 0:
            scale = -scale
        good = np.allclose(function(_PROBE), scale / np.sqrt(_PROBE + eps), rtol=1e-6)
    return (eps, float(scale)) if good else None


def unmapped_mean(value: Mean | Centred) -> Opaque:
    """What to say of a mean that is not part of a layer normalisation."""
    return Opaque(
        origin=value.origin,
        shape=value.shape,
        reason="this mean or sum is neither over all tokens nor part of a layer normalisation",
        way_out="supported are means over tokens and (x - mean) / sqrt(variance + eps) over channels",
        operands=(value.x,),
    )
