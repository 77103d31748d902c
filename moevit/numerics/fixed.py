"""Rounding, saturation and requantisation: the machine's only way from a wide integer to a narrow one.

``requantise`` is the first stage of POST. A float scale is represented as ``mult * 2**-shift`` with a
normalised 16-bit ``mult`` (:func:`quantise_scale`), so its relative error is at most 2**-16.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BIAS_WIDTH = 32  #: bits of a signed bias
MULT_WIDTH = 16  #: bits of an unsigned multiplier
SHIFT_WIDTH = 6  #: bits of a right shift
MID_WIDTH = 20  #: bits of POST's signed intermediate value
ZERO_POINT_WIDTH = 8  #: bits of an unsigned output zero point

MAX_SHIFT = (1 << SHIFT_WIDTH) - 1

IntArray = NDArray[np.integer]


def saturate(x: ArrayLike, bits: int, signed: bool = True) -> NDArray[np.int64]:
    """Clamp integers to the range of ``bits`` bits; never wraps. Returns int64 of the same shape."""
    lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(np.asarray(x, dtype=np.int64), lo, hi)


def round_shift(x: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """``floor(x / 2**shift + 1/2)``: arithmetic right shift, halves rounded towards plus infinity.

    This is the only rounding rule of the machine. ``shift`` (0 … 63) broadcasts against ``x``.
    """
    x64 = np.asarray(x, dtype=np.int64)
    s = np.asarray(shift, dtype=np.int64)
    # floor(x/2**s + 1/2) == (floor(x / 2**(s-1)) + 1) >> 1, which cannot overflow for large shifts.
    if s.size and s.min() > 0:
        out = x64 >> (s - 1)
        out += 1
        out >>= 1
        return out
    return np.where(s > 0, ((x64 >> np.maximum(s - 1, 0)) + 1) >> 1, x64)


def requantise(acc: ArrayLike, bias: ArrayLike, mult: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """``saturate(round_shift((acc + bias) * mult, shift), MID_WIDTH)``.

    Parameters
    ----------
    acc : int32 accumulators, any shape
    bias : int32, broadcast against ``acc`` (per output channel on the last axis)
    mult : unsigned ``MULT_WIDTH`` bits, broadcast
    shift : 0 … ``MAX_SHIFT``, broadcast

    Returns int64 values of ``MID_WIDTH`` bits. The sum has 33 bits and the product 49: nothing wraps.
    """
    total = np.asarray(acc, dtype=np.int64) + np.asarray(bias, dtype=np.int64)
    return saturate(round_shift(total * np.asarray(mult, dtype=np.int64), shift), MID_WIDTH)


def rescale(mid: ArrayLike, mult: int, shift: int, zero_point: int) -> NDArray[np.int64]:
    """POST's second stage, per tensor: ``round_shift(mid * mult, shift) + zero_point``, not yet saturated."""
    return round_shift(np.asarray(mid, dtype=np.int64) * mult, shift) + zero_point


def quantise_scale(scale: float) -> tuple[int, int]:
    """The ``(mult, shift)`` nearest to a positive float ``scale``, with ``mult`` in [2**15, 2**16).

    Raises ValueError when ``scale`` is not a positive finite number or cannot be represented
    (``2**-48 <= scale < 2**16`` always can).
    """
    mult, shift = quantise_scales(np.array([scale], np.float64))
    return int(mult[0]), int(shift[0])


def quantise_scales(scales: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As :func:`quantise_scale`, for an array of scales."""
    wrong = ~((scales > 0) & np.isfinite(scales))
    if wrong.any():
        raise ValueError(f"scale must be a positive finite number, not {scales[wrong][0]}")
    mantissa, exponent = np.frexp(scales)  # scale = mantissa * 2**exponent, mantissa in [0.5, 1)
    mult = np.rint(mantissa * (1 << MULT_WIDTH)).astype(np.int64)
    carry = mult == 1 << MULT_WIDTH
    shift = MULT_WIDTH - exponent.astype(np.int64) - carry
    outside = (shift < 0) | (shift > MAX_SHIFT)
    if outside.any():
        raise ValueError(f"scale {scales[outside][0]} is outside the representable range")
    return np.where(carry, mult >> 1, mult), shift
