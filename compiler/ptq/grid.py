"""Finding the integers that a quantised model's weights are multiples of.

A matrix that was dequantised, transposed, split or scaled by constants has rows that are integers times a scale still.
With that scale they lose nothing, and it is the model's own.
"""

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.ptq.statistics import Floats

LOWEST, HIGHEST = -128, 127  #: the machine's weights are all of int8, though it never chooses -128 itself
_CLOSE = 1e-3  #: of a step; float32 rounds 127 steps by 1.5e-5
_LOOK = 16  #: values of a row that are tried first


def steps_of(weight: NDArray) -> Floats:
    """Of each row of `(out, in)` the largest scale of which all values are multiples by -128 to 127; else 0.

    A row all of whose values have one magnitude has no scale of its own: any will do.
    """
    signed = weight.astype(np.float64)
    exact = np.abs(signed)
    out = np.zeros(len(exact))
    peak = exact.max(axis=1, initial=0)
    # the scale is at least this
    need = np.maximum(signed.max(axis=1, initial=0) / (HIGHEST + 0.5), signed.min(axis=1, initial=0) / (LOWEST - 0.5))
    least = np.where(exact > peak[:, None] * 1e-6, exact, np.inf).min(axis=1, initial=np.inf)
    open_ = np.flatnonzero(np.isfinite(least) & (least < peak * (1 - 1e-6)))
    order = np.argsort(-exact, axis=1)[:, :_LOOK] if exact.shape[1] > _LOOK else None
    for divisor in range(1, -LOWEST + 1):
        if not len(open_):
            break
        step = least[open_] / divisor
        fits = need[open_] <= step
        if order is not None:
            fits &= _multiples(np.take_along_axis(exact[open_], order[open_], axis=1), step)
        rows = open_[fits]
        rows = rows[_multiples(exact[rows], least[rows] / divisor)]
        if len(rows):
            out[rows] = _refined(exact[rows], least[rows] / divisor)
            open_ = np.setdiff1d(open_, rows)
    return out


def _multiples(values: Floats, step: Floats) -> NDArray[np.bool_]:
    ratio = values / step[:, None]
    return np.asarray((np.abs(ratio - np.round(ratio)) < _CLOSE).all(axis=1))


def _refined(values: Floats, step: Floats) -> Floats:
    """The scale that fits all of a row's values best: the least one alone has the error of one rounding."""
    q = np.round(values / step[:, None])
    out: Floats = (values * q).sum(axis=1) / np.square(q).sum(axis=1)
    return out
