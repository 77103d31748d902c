"""The gate of a mixture of experts: which experts a token goes to, and with what score.

Logits come from POST's first stage as base-2 fixed point with ``LOGIT_FRACTION`` bits (log2(e) is folded into
the requantisation). The k largest are selected on those exact values; equal ones go to the expert with the lower
number. Scores are ratios of powers of two from a table, against the largest logit of the token, so that nothing
overflows and a common error of the table cancels; the division is one reciprocal per token.
"""

import enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevit.numerics.fixed import MAX_SHIFT, round_shift, saturate
from moevit.numerics.reciprocal import reciprocal

MAX_EXPERTS = 64
MAX_TOP_K = 4

LOGIT_FRACTION = 10  #: fraction bits of a base-2 logit, which has POST's MID_WIDTH bits
EXP_FRACTION = 7  #: fraction bits of the distance to the largest logit that the table sees
TABLE_FRACTION = 14  #: 2**0 in the table; 64 experts' sum fits the reciprocal's input
SCORE_WIDTH = 16  #: bits of a score
SCORE_FRACTION = 16  #: fraction bits of a score; 1.0 saturates to 65535


class RouteOrder(enum.IntEnum):
    """What a gate's scores are the softmax of."""

    NONE = 0  #: not a gate
    SOFTMAX_TOPK = 1  #: all experts; the k largest are kept as they are
    TOPK_SOFTMAX = 2  #: the k largest logits


def _table() -> NDArray[np.int64]:
    n = 1 << EXP_FRACTION
    return np.round(2.0 ** (TABLE_FRACTION - np.arange(n) / n)).astype(np.int64)


TABLE = _table()  #: 2**(14 - f/128), f = 0 … 127


def exponential(distance: ArrayLike) -> NDArray[np.int64]:
    """``2**(TABLE_FRACTION - distance)`` of distances >= 0 with ``LOGIT_FRACTION`` bits: 0 … 2**14."""
    steps = round_shift(distance, LOGIT_FRACTION - EXP_FRACTION)
    entry = TABLE[steps & ((1 << EXP_FRACTION) - 1)]
    return round_shift(entry, np.minimum(steps >> EXP_FRACTION, MAX_SHIFT))


def select(logits: ArrayLike, k: int) -> NDArray[np.int64]:
    """Numbers [..., k] of the k largest of logits [..., E], largest first; of equal ones the lower number."""
    return np.argsort(-np.asarray(logits, np.int64), axis=-1, kind="stable")[..., :k]


def route(logits: ArrayLike, k: int, order: RouteOrder, threshold: int = 0) -> NDArray[np.int64]:
    """Scores [..., E] of logits [..., E]; 0 where the token does not go to that expert.

    Parameters
    ----------
    logits : base-2 fixed point, ``LOGIT_FRACTION`` bits
    k : experts per token, 1 … min(E, MAX_TOP_K)
    order : of softmax and selection
    threshold : scores below it are dropped (as are scores of 0, which would add nothing)

    Returns int64 in 0 … 65535, ``SCORE_FRACTION`` fraction bits.
    """
    x = np.asarray(logits, np.int64)
    chosen = select(x, k)
    terms = exponential(x.max(axis=-1, keepdims=True) - x)
    kept = np.take_along_axis(terms, chosen, axis=-1)
    total = (terms if order == RouteOrder.SOFTMAX_TOPK else kept).sum(axis=-1, keepdims=True)
    mantissa, shift = reciprocal(total)
    score = saturate(round_shift(kept * mantissa, shift - SCORE_FRACTION), SCORE_WIDTH, signed=False)
    scores = np.zeros_like(x)
    np.put_along_axis(scores, chosen, np.where(score >= threshold, score, 0), axis=-1)
    return scores


def apply_score(mid: ArrayLike, score: ArrayLike) -> NDArray[np.int64]:
    """POST's second stage for the rows of an expert: ``mid * score``, as ``fixed.rescale`` with the row's score."""
    return round_shift(np.asarray(mid, np.int64) * np.asarray(score, np.int64), SCORE_FRACTION)
