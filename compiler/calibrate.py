"""Ranges of every tensor of a graph over calibration inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.interpret import run
from moevit.compiler.ir import Graph
from moevit.errors import InputError

BATCH = 32


@dataclass(frozen=True)
class Range:
    """Smallest and largest value seen; zero is always inside."""

    low: float
    high: float

    @property
    def peak(self) -> float:
        """Largest magnitude; positive even when all values were zero."""
        return max(-self.low, self.high, 1e-6)


def calibrate(graph: Graph, inputs: Mapping[str, NDArray]) -> dict[str, Range]:
    """Run the float graph on ``inputs`` [B, ...] and return the range of each tensor.

    Absolute extremes, not percentiles: on a trained vision transformer with outliers those cost less
    (see docs/numerics.md). Raises InputError for empty or non-finite data.
    """
    count = min((len(v) for v in inputs.values()), default=0)
    if count == 0:
        raise InputError("the calibration data holds no image", mend="give at least one, better a hundred")
    for name, value in inputs.items():
        if not np.isfinite(value).all():
            raise InputError(f"calibration input '{name}' holds values that are not finite")
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for first in range(0, count, BATCH):
        tensors = run(graph, {k: v[first : first + BATCH] for k, v in inputs.items()})
        for name, value in tensors.items():
            low[name] = min(low.get(name, 0.0), float(value.min()))
            high[name] = max(high.get(name, 0.0), float(value.max()))
    return {name: Range(low[name], high[name]) for name in low}
