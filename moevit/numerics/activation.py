"""GELU and SiLU as ReLU(x) - delta(|x|): delta is even, small and vanishes, so a short table holds it.

The idea is Edge-MoE's (arXiv 2305.18691); the table is linearly interpolated here. GELU's tanh form differs
from the erf form by less than 5e-4, below one step of every 8-bit output scale it meets, and uses its table.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moevit.numerics.fixed import MID_WIDTH, round_shift

FRACTION = 11  #: fraction bits of the input and of the output (signed, ``MID_WIDTH`` bits)
DELTA_FRACTION = 15  #: fraction bits of delta
TABLE_INDEX_WIDTH = 7


class Activation(enum.IntEnum):
    """What POST applies between its two scaling stages (the value is the instruction's field)."""

    NONE = 0
    RELU = 1
    GELU = 2
    SILU = 3


@dataclass(frozen=True)
class DeltaTable:
    """Nodes of delta over [0, 2**(TABLE_INDEX_WIDTH + step_log2 - FRACTION)); zero beyond.

    ``base`` is unsigned with ``DELTA_FRACTION`` fraction bits; ``slope`` is the signed difference to the next
    node, over ``2**step_log2`` input steps.
    """

    step_log2: int
    base: NDArray[np.int64]
    slope: NDArray[np.int64]

    @property
    def base_width(self) -> int:
        return int(self.base.max()).bit_length()

    @property
    def slope_width(self) -> int:
        return int(np.abs(self.slope).max()).bit_length() + 1


def _delta_gelu(x: float) -> float:
    return x * 0.5 * math.erfc(x / math.sqrt(2))


def _delta_silu(x: float) -> float:
    return x / (1 + math.exp(x))


def _make(delta: Callable[[float], float], step_log2: int) -> DeltaTable:
    n = 1 << TABLE_INDEX_WIDTH
    nodes = [round(delta(i * 2.0 ** (step_log2 - FRACTION)) * (1 << DELTA_FRACTION)) for i in range(n + 1)]
    nodes[n] = 0  # continuous at the end of the table
    base = np.array(nodes, dtype=np.int64)
    return DeltaTable(step_log2, base[:-1], np.diff(base))


TABLES = {
    Activation.GELU: _make(_delta_gelu, 7),  # |x| < 8 in steps of 1/16
    Activation.SILU: _make(_delta_silu, 8),  # |x| < 16 in steps of 1/8
}


def activate(mid: ArrayLike, kind: Activation) -> NDArray[np.int64]:
    """Apply ``kind`` to ``MID_WIDTH``-bit values with ``FRACTION`` fraction bits; same format out."""
    x = np.asarray(mid, dtype=np.int64)
    if kind == Activation.NONE:
        return x
    relu = np.maximum(x, 0)
    if kind == Activation.RELU:
        return relu
    table = TABLES[Activation(kind)]
    magnitude = np.minimum(np.abs(x), (1 << (MID_WIDTH - 1)) - 1)
    index = magnitude >> table.step_log2
    inside = index < (1 << TABLE_INDEX_WIDTH)
    index = np.where(inside, index, 0)
    fraction = magnitude & ((1 << table.step_log2) - 1)
    delta = table.base[index] + round_shift(table.slope[index] * fraction, table.step_log2)
    delta = np.where(inside, delta, 0)
    extra = DELTA_FRACTION - FRACTION
    return round_shift((relu << extra) - delta, extra)
