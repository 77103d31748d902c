"""Base-2 softmax in a single pass over the scores, with an integer running maximum.

Scores arrive in tiles of ``lanes`` keys. Each tile's probabilities are stored against the running maximum
*at that moment*; because the maximum is an integer power of two, bringing an old tile to the final maximum is
a shift. The row sum is taken over exactly the values that enter P.V, so the weights sum to one. The result
depends on ``lanes`` (the tile width) through where the running maximum grows; that is part of the definition.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevit.numerics.fixed import MAX_SHIFT, MULT_WIDTH, round_shift, saturate
from moevit.numerics.reciprocal import reciprocal

SCORE_WIDTH = 16
SCORE_FRACTION = 6  #: fraction bits of a base-2 score
MAX_WIDTH = SCORE_WIDTH - SCORE_FRACTION + 1  #: bits of the signed integer maximum
PROBABILITY_WIDTH = 8
TABLE_WIDTH = 13  #: bits of a table entry, 2**12 * 2**-f
_TABLE_FRACTION = 12
MAX_EMPTY = -(1 << (MAX_WIDTH - 1))  #: running maximum before the first key


def _table() -> NDArray[np.int64]:
    n = 1 << SCORE_FRACTION
    return np.round(2.0 ** (_TABLE_FRACTION - np.arange(n) / n)).astype(np.int64)


TABLE = _table()  #: 2**(12 - f/64), f = 0 … 63
PROBABILITY_SHIFT = _TABLE_FRACTION - PROBABILITY_WIDTH  #: 2**0 would be 256; the maximum is never reached


def tile_maximum(scores: ArrayLike) -> NDArray[np.int64]:
    """Integer exponent strictly above the largest of the scores on the last axis."""
    return (np.max(np.asarray(scores, np.int64), axis=-1) >> SCORE_FRACTION) + 1


def probability(scores: ArrayLike, maximum: ArrayLike) -> NDArray[np.int64]:
    """``256 * 2**(score - maximum)`` as uint8, for scores below ``maximum`` (an integer exponent)."""
    distance = (np.asarray(maximum, np.int64) << SCORE_FRACTION) - np.asarray(scores, np.int64)
    entry = TABLE[distance & ((1 << SCORE_FRACTION) - 1)]
    return round_shift(entry, np.minimum(PROBABILITY_SHIFT + (distance >> SCORE_FRACTION), MAX_SHIFT))


def rescale_probability(p: ArrayLike, growth: ArrayLike) -> NDArray[np.int64]:
    """Bring stored probabilities to a maximum that has grown by ``growth`` >= 0 since."""
    return round_shift(p, np.minimum(np.asarray(growth, np.int64), 15))


def softmax(scores: ArrayLike, lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Unnormalised uint8 probabilities [..., N] and their exact row sums [...], of int16 scores [..., N]."""
    s = np.asarray(scores, np.int64)
    n = s.shape[-1]
    running = np.full(s.shape[:-1], MAX_EMPTY, np.int64)
    parts, maxima = [], []
    for first in range(0, n, lanes):
        tile = s[..., first : first + lanes]
        running = np.maximum(running, tile_maximum(tile))
        parts.append(probability(tile, running[..., None]))
        maxima.append(running)
    final = [rescale_probability(p, (running - m)[..., None]) for p, m in zip(parts, maxima, strict=True)]
    p = np.concatenate(final, axis=-1)
    return p, p.sum(axis=-1)


def row_scale(
    row_sum: ArrayLike, mult: int, shift: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """POST multiplier and shift of each row of P.V: ``mult * 2**-shift / row_sum``.

    ``mult`` is the instruction's normalised multiplier. Returns (mult, shift) per row, 16 and 6 bits.
    """
    mantissa, recip_shift = reciprocal(row_sum)
    combined = round_shift(mantissa * mult, MULT_WIDTH)
    total = recip_shift + shift - MULT_WIDTH
    return saturate(combined, MULT_WIDTH, signed=False), np.clip(total, 0, MAX_SHIFT)
