"""1/x of an unsigned integer: normalise, 64-entry table, one Newton step."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

INPUT_WIDTH = 21  #: bits of x: row sums of 8-bit probabilities over up to 8,191 keys
MANTISSA_FRACTION = 16  #: fraction bits of the normalised input and of the result
TABLE_INDEX_WIDTH = 6
SEED_FRACTION = 15  #: fraction bits of a table entry


def _table() -> NDArray[np.int64]:
    n = 1 << TABLE_INDEX_WIDTH
    middle = 1 + (np.arange(n) + 0.5) / n
    return np.round((1 << SEED_FRACTION) / middle).astype(np.int64)


TABLE = _table()  #: seeds of 1/m for m in [1, 2), indexed by the bits below the leading one


def leading_one(x: ArrayLike) -> NDArray[np.int64]:
    """Position of the highest set bit of positive integers below 2**62 (0 for 0 and 1)."""
    v = np.asarray(x, dtype=np.int64)
    position = np.zeros_like(v)
    for step in (32, 16, 8, 4, 2, 1):
        high = (v >> step) > 0
        position += np.where(high, step, 0)
        v = np.where(high, v >> step, v)
    return position


def reciprocal(x: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(mantissa, shift)`` with ``1/x ~= mantissa * 2**-shift`` and mantissa in [2**15, 2**16).

    ``x`` is unsigned, ``INPUT_WIDTH`` bits; 0 is treated as 1. Relative error below 2**-13.
    """
    v = np.maximum(np.asarray(x, dtype=np.int64), 1)
    position = leading_one(v)
    up = np.maximum(MANTISSA_FRACTION - position, 0)
    down = np.maximum(position - MANTISSA_FRACTION, 0)
    m = (v << up) >> down  # [2**16, 2**17)
    index = (m >> (MANTISSA_FRACTION - TABLE_INDEX_WIDTH)) & ((1 << TABLE_INDEX_WIDTH) - 1)
    r0 = TABLE[index]
    u = (m * r0) >> SEED_FRACTION
    r1 = (r0 * ((2 << MANTISSA_FRACTION) - u)) >> SEED_FRACTION
    return np.minimum(r1, (1 << MANTISSA_FRACTION) - 1), MANTISSA_FRACTION + position
