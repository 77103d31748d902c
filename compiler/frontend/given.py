"""From formats of a model's tensors to those of the graph's.

A tensor of the model that is quantised is a view; one of the graph shows columns of a value, scaled. Where both show
the same value, and one is a multiple of the other, the format of the one is that of the other with its scale changed.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from moevit.compiler import ir
from moevit.compiler.frontend.form import Elements
from moevit.compiler.frontend.lower import Lowering
from moevit.compiler.frontend.space import (
    NO_ADDRESS,
    Active,
    Addresses,
    Affine,
    Floats,
    Pointwise,
    Softmax,
    Source,
    Sum,
    Value,
    View,
)

_CLOSE = 1e-4  #: relative difference that rounding constants to float32 may cause
_SHIFT = 0.02  #: of a step, that an offset may be away from a whole number of them


class Formats:
    """Finds the formats of a lowered model's tensors.

    Parameters
    ----------
    lowering : Lowering
        Whose operations are made.
    stated : iterable of (View, Given)
        The model's tensors that are quantised, in the order of computation.
    """

    def __init__(self, lowering: Lowering, stated: Iterable[tuple[View, ir.Given]]) -> None:
        self.lowering = lowering
        self.by_value: dict[int, list[tuple[Elements, ir.Given]]] = {}
        self.by_origin: dict[str, ir.Given] = {}
        self.by_softmax: dict[int, ir.Given] = {}
        for view, given in stated:
            owner = lowering.space.single(view)
            if isinstance(owner, Pointwise):
                self.by_origin[owner.origin.name] = given
            elif isinstance(owner, Softmax) and view.mul == 1 and view.add == 0:
                self.by_softmax[owner.start] = given
            elements = self._settled(view)
            if elements is not None:
                start = lowering.space.owners(elements.idx)[0].start
                self.by_value.setdefault(start, []).append((elements, given))

    def _settled(self, view: View) -> Elements | None:
        """Elements of one value that the graph computes, nothing of which is new; else None."""
        space = self.lowering.space
        if _unread(space.single(view)):
            return None
        elements = Elements.of(view.reshape(1, -1))
        while True:
            owners = space.owners(elements.idx)
            pending = [v for v in owners if isinstance(v, Affine | Pointwise | Sum)]
            if any(_unread(v) for v in pending):
                return None
            if not pending:
                alone = len(owners) == 1 and not (elements.idx == NO_ADDRESS).any()
                return elements if alone and len(owners[0].shape) >= 2 else None
            for value in pending:
                self.lowering.settle(elements, value)

    def of_value(self, value: Value, cols: Addresses, mul: Floats, add: Floats) -> ir.Given | None:
        """The format of `value[:, cols] * mul + add`: of those stated the one that most of its elements have, and of
        several the last, which is what the next operation reads."""
        best, most = None, 0
        for elements, given in self.by_value.get(value.start, ()):
            width = value.shape[-1]
            column = (elements.idx - value.start) % width
            place = np.full(width, -1)
            place[cols] = np.arange(len(cols))
            at = place[column]
            seen = at >= 0
            count = int(seen.sum())
            if count == 0 or count < most:
                continue
            changed = _changed(given, elements.mul[seen], elements.add[seen], mul[at[seen]], add[at[seen]])
            if changed is not None:
                best, most = changed, count
        return best

    def of_input(self, value: Source) -> ir.Given | None:
        """The format of an input."""
        flat = Source(origin=value.origin, shape=(1, value.size), start=value.start, name=value.name,
                      dtype=value.dtype, model_shape=value.model_shape)  # fmt: skip
        width = value.size
        return self.of_value(flat, np.arange(width), np.ones(width), np.zeros(width))

    def of_active(self, value: Active) -> ir.Given | None:
        """The format of what an activation gives, also where all experts' is computed as one."""
        width = value.shape[-1]
        own = self.of_value(value, np.arange(width), np.ones(width), np.zeros(width))
        return own or self.by_origin.get(value.origin.name)

    def of_probabilities(self, tensor: str) -> ir.Given | None:
        """The format of an attention's probabilities."""
        softmax = self.lowering.softmaxes.get(tensor)
        return None if softmax is None else self.by_softmax.get(softmax.start)


def _unread(value: Value | None) -> bool:
    """Whether nothing was made of an elementwise value: it lies inside of something."""
    return isinstance(value, Pointwise | Sum) and not isinstance(value.found, View)


def _changed(given: ir.Given, mul: Floats, add: Floats, own_mul: Floats, own_add: Floats) -> ir.Given | None:
    """The format of `own_mul * x + own_add`, when that of `mul * x + add` is given; None if it is no format."""
    if np.any(own_mul == 0):
        return None
    ratio = mul / own_mul
    first = float(ratio.flat[0])
    if not first > 0 or np.any(np.abs(ratio - first) > _CLOSE * first):
        return None
    offset = (add - own_add * ratio) / given.scale
    steps = float(np.mean(offset))
    if np.any(np.abs(offset - steps) > _SHIFT) or abs(steps - round(steps)) > _SHIFT:
        return None
    return replace(given, scale=given.scale / first, zero_point=given.zero_point + round(steps))


def with_formats(
    lowering: Lowering, stated: Iterable[tuple[View, ir.Given]]
) -> tuple[list[ir.Op], dict[str, ir.Input]]:
    """The operations and inputs that were made, those whose format the model states with it."""
    formats = Formats(lowering, stated)
    known: dict[str, ir.Given] = {}
    for tensor, value, cols, mul, add in lowering.shown:
        given = formats.of_value(value, cols, mul, add) if len(value.shape) == 2 else None
        if given is not None:
            known[tensor] = given

    def noted(op: ir.Op) -> ir.Op:
        op = replace(op, given=known.get(op.output))
        if isinstance(op, ir.MoE):
            op = replace(op, given_hidden=tuple(formats.of_active(a) for a in lowering.hidden[op.output]))
        elif isinstance(op, ir.Attention):
            op = replace(op, given_probabilities=formats.of_probabilities(op.output))
        return op

    inputs = {n: replace(i, given=formats.of_input(lowering.sources[n])) for n, i in lowering.inputs.items()}
    return [noted(op) for op in lowering.ops], inputs
