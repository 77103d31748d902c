"""1/sqrt(x) of an unsigned integer: normalise by an even power, 96-entry table, one Newton step."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevit.numerics.reciprocal import leading_one

INPUT_WIDTH = 58  #: bits of x: D * sum(x**2) of int16 rows of up to 8,191 elements, plus epsilon
MANTISSA_FRACTION = 16  #: fraction bits of the normalised input, in [1, 4), and of the result
TABLE_INDEX_SHIFT = 11  #: the table is indexed by ``(m >> TABLE_INDEX_SHIFT) - TABLE_FIRST``
TABLE_FIRST = (1 << MANTISSA_FRACTION) >> TABLE_INDEX_SHIFT
SEED_FRACTION = 15


def _table() -> NDArray[np.int64]:
    index = np.arange(TABLE_FIRST, 4 * TABLE_FIRST)
    middle = (index + 0.5) / TABLE_FIRST
    return np.round((1 << SEED_FRACTION) / np.sqrt(middle)).astype(np.int64)


TABLE = _table()  #: 96 seeds of 1/sqrt(m) for m in [1, 4)


def rsqrt(x: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(mantissa, shift)`` with ``1/sqrt(x) ~= mantissa * 2**-shift``, mantissa in [2**15, 2**16).

    ``x`` is unsigned, ``INPUT_WIDTH`` bits; 0 is treated as 1. Relative error below 2**-13.
    """
    v = np.maximum(np.asarray(x, dtype=np.int64), 1)
    half = leading_one(v) >> 1  # x = m * 4**half with m in [1, 4)
    up = np.maximum(MANTISSA_FRACTION - 2 * half, 0)
    down = np.maximum(2 * half - MANTISSA_FRACTION, 0)
    m = (v << up) >> down  # [2**16, 2**18)
    r0 = TABLE[(m >> TABLE_INDEX_SHIFT) - TABLE_FIRST]
    t = (r0 * r0) >> (2 * SEED_FRACTION - MANTISSA_FRACTION)
    u = (m * t) >> MANTISSA_FRACTION
    r1 = (r0 * ((3 << MANTISSA_FRACTION) - u)) >> MANTISSA_FRACTION
    return np.minimum(r1, (1 << MANTISSA_FRACTION) - 1), MANTISSA_FRACTION + half
