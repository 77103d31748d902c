"""Attention masks that are constants: those that hide nothing vanish, and keys that no query sees are left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.frontend.node import Unmapped
from moevit.compiler.frontend.space import Affine, Const, Floats, Product, Space, View

Keys = NDArray[np.int64]

HIDDEN = -1e4
# What is added to a score to hide its key: exp(-1e4) is 0 in float32 and far below it beside any other score.

_WAY_OUT = "supported are constant masks that hide nothing, or the same keys from all queries"


def additive(mask: Any) -> Floats:
    """A mask as what is added to the scores; of a boolean one, True means visible. Raises `Unmapped`."""
    if isinstance(mask, View):
        raise Unmapped("its attention mask depends on the data", _WAY_OUT + "; or let the host apply it")
    array = np.asarray(mask)
    if array.dtype == bool:
        return np.where(array, 0.0, -np.inf)
    return array.astype(np.float64)


def seen_keys(mask: Floats, keys: int) -> Keys | None:
    """The keys that an additive mask `(..., queries, keys)` leaves visible; None if all are.

    What is added to all scores of a query alike changes no probability.

    Raises
    ------
    Unmapped
        If queries or heads see different keys, or the mask is a bias that only weighs them.
    """
    if not mask.size or not np.isfinite(mask.max(axis=-1)).all():
        raise Unmapped("its attention mask hides all keys from a query", _WAY_OUT)
    rows = (mask - mask.max(axis=-1, keepdims=True)).reshape(-1, mask.shape[-1])
    hidden = rows <= HIDDEN
    if np.any(rows[~hidden] < -1e-6):
        raise Unmapped("a bias is added to its scores, which stay inside the machine", _WAY_OUT)
    if np.any(hidden != hidden[:1]):
        raise Unmapped("its attention mask differs between queries or heads", _WAY_OUT)
    seen = np.flatnonzero(np.broadcast_to(~hidden[0], (keys,)))
    return None if len(seen) == keys else seen


def unmasked(space: Space, scores: View) -> tuple[View, Keys | None]:
    """Scores without the constants that were added to them or put in their place, and the keys that are seen.

    Raises `Unmapped` for masks that cannot be left out; other views come back as they are.
    """
    added: Floats = np.zeros((1,) * max(len(scores.shape), 1))
    while True:
        value = space.whole(scores)
        if isinstance(value, Affine) and value.mul is None and products(space, value.base):
            add = scores.add if value.add is None else scores.add + scores.mul * value.add
            added = added + np.asarray(add).reshape(scores.shape if value.add is not None else (1,) * added.ndim)
            scores = value.base.reshape(*scores.shape).affine(mul=scores.mul)
            continue
        filled = _filled(space, scores) if value is None else None
        if filled is None:
            break
        scores, holes = filled
        added = added + holes
    if not np.any(added):
        return scores, None
    return scores, seen_keys(added, scores.shape[-1])


def products(space: Space, view: View) -> list[Product]:
    """The scores that a view shows, whatever constants were added to them or put in their place."""
    found: list[Product] = []
    for value in space.owners(view.idx):
        if isinstance(value, Product):
            found.append(value)
        elif isinstance(value, Affine):
            found += products(space, value.base)
    return found


def _filled(space: Space, scores: View) -> tuple[View, Floats] | None:
    """All of a value of which constants have taken some places, and those constants, 0 elsewhere."""
    owners = space.owners(scores.idx)
    constants = [o for o in owners if isinstance(o, Const)]
    computed = [o for o in owners if not isinstance(o, Const)]
    if len(computed) != 1 or not constants or computed[0].size != scores.size:
        return None
    whole = computed[0].view.reshape(*scores.shape)
    if not products(space, whole):
        return None
    holes = np.zeros(scores.shape)
    for constant in constants:
        mine = (scores.idx >= constant.start) & (scores.idx < constant.start + constant.size)
        holes[mine] = constant.array[scores.idx[mine] - constant.start]
    taken = scores.idx != whole.idx
    if np.any(taken & (holes > HIDDEN)):
        return None
    holes[taken] = scores.mul * holes[taken] + scores.add
    return View(scores.shape, whole.start, None, scores.mul, scores.add), holes


def without(seen: Keys | None, *views: View) -> Sequence[View]:
    """Keys and values `(keys, channels)` with the seen keys only."""
    return views if seen is None else [v.at(v.idx[seen]) for v in views]
