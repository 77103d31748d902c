"""LayerNorm of int16 rows to 8 bits, from one pass over the row for its sums and one to normalise.

The variance is exact up to its final rounding: with S = sum(x) and Q = sum(x**2),
``D*Q - S**2 = D**2 * var`` is an integer.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevit.numerics.fixed import quantise_scale, round_shift, saturate
from moevit.numerics.rsqrt import rsqrt

MEAN_FRACTION = 4  #: fraction bits of the row mean
NORMAL_FRACTION = 10  #: fraction bits of (x - mean) / std, int16
BETA_FRACTION = 7  #: beta counts 2**-7 of an output step
GAMMA_WIDTH = 16
BETA_WIDTH = 16
EPSILON_WIDTH = 48
MAX_LENGTH = (1 << 13) - 1  #: longest row


@dataclass(frozen=True)
class RowConstants:
    """Per-instruction constants of a LayerNorm over rows of ``length`` elements.

    ``inverse_mult * 2**-inverse_shift`` is 1/length; ``epsilon`` is length**2 * eps in squared input steps;
    ``output_shift`` is the right shift after gamma, at least ``BETA_FRACTION``.
    """

    length: int
    inverse_mult: int
    inverse_shift: int
    epsilon: int
    output_shift: int

    @staticmethod
    def of(length: int, eps: float, input_scale: float, output_shift: int) -> "RowConstants":
        mult, shift = quantise_scale(1 / length)
        epsilon = round(length * length * eps / input_scale**2)
        return RowConstants(length, mult, shift, min(max(epsilon, 0), (1 << EPSILON_WIDTH) - 1), output_shift)


def quantise_affine(
    gamma: NDArray, beta: NDArray, output_scale: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Integer ``(gamma, beta, output_shift)`` for :func:`affine`, given the float parameters [D].

    The shift is the largest for which gamma fits ``GAMMA_WIDTH`` bits, at most 24.
    """
    limit = (1 << (GAMMA_WIDTH - 1)) - 1
    peak = float(np.max(np.abs(gamma))) / output_scale
    room = math.floor(math.log2(limit / peak)) if peak > 0 else 24
    shift = int(np.clip(room + NORMAL_FRACTION, BETA_FRACTION, 24))
    g = np.round(np.asarray(gamma, np.float64) / output_scale * 2.0 ** (shift - NORMAL_FRACTION))
    b = np.round(np.asarray(beta, np.float64) / output_scale * 2.0**BETA_FRACTION)
    return saturate(g, GAMMA_WIDTH), saturate(b, BETA_WIDTH), shift


def affine(
    normal: ArrayLike, gamma: ArrayLike, beta: ArrayLike, output_shift: int, signed: bool = True
) -> NDArray[np.int64]:
    """``saturate(round_shift(normal * gamma + beta * 2**(output_shift - 7), output_shift), 8)``."""
    total = np.asarray(normal, np.int64) * np.asarray(gamma, np.int64)
    total = total + (np.asarray(beta, np.int64) << (output_shift - BETA_FRACTION))
    return saturate(round_shift(total, output_shift), 8, signed)


def normalise(x: ArrayLike, constants: RowConstants) -> NDArray[np.int64]:
    """(x - mean) / sqrt(var + eps) of int16 rows [..., D], as int16 with ``NORMAL_FRACTION`` fraction bits."""
    x64 = np.asarray(x, dtype=np.int64)
    c = constants
    total = x64.sum(axis=-1, keepdims=True)
    squares = (x64 * x64).sum(axis=-1, keepdims=True)
    mean = round_shift(total * c.inverse_mult, c.inverse_shift - MEAN_FRACTION)
    variance = c.length * squares - total * total + c.epsilon
    mantissa, shift = rsqrt(variance)
    log2_length = c.length.bit_length() - 1
    scale = round_shift(mantissa * c.length, log2_length)  # 1/std = scale * 2**(log2_length - shift)
    down = np.maximum(shift - log2_length + MEAN_FRACTION - NORMAL_FRACTION, 0)
    return saturate(round_shift(((x64 << MEAN_FRACTION) - mean) * scale, down), 16)


def layernorm(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, constants: RowConstants, signed: bool = True
) -> NDArray[np.int64]:
    """LayerNorm of int16 rows [..., D] to int8 (or uint8) with integer ``gamma`` and ``beta`` [D]."""
    return affine(normalise(x, constants), gamma, beta, constants.output_shift, signed)
