"""Where to clip what an activation gives: between the error of values cut off and that of all others' steps.

GELU, SiLU and ReLU leave most values near zero and a few far out, and no channel can be scaled behind them. What an
error costs is weighted with the power of the weights it is multiplied with. A value cut off counts several times its
square: rounding errors of a row's channels are independent and average out, the errors of values cut off all have
one sign, and images that were not in the calibration set reach further.
"""

from dataclasses import replace

import numpy as np

from moevit.compiler.ptq.statistics import Floats, Range, bucket_values
from moevit.compiler.ptq.trial import Accept, Version, always

CLIPPED = 8.0  #: weight of a clipping error's square beside a rounding error's
FRACTIONS = tuple(i / 40 for i in range(40, 9, -1))
LEVELS = 255


def clip(version: Version, accept: Accept = always) -> Version:
    """The ranges of activations as far as it pays; those inside a mixture of experts together."""
    ranges = version.statistics.ranges
    groups: dict[str, dict[str, Range]] = {}
    for name, counted in version.statistics.hidden.items():
        smaller = clipped(ranges[name], counted)
        if smaller != ranges[name]:
            groups.setdefault(name.rpartition("#")[0] or name, {})[name] = smaller
    for name, group in groups.items():
        statistics = version.statistics
        after = replace(version, own=version.stages, statistics=replace(statistics, ranges=statistics.ranges | group))
        if accept(("clip", name), version, after):
            version = after
    return version


def clipped(seen: Range, counted: Floats) -> Range:
    """A one-sided range, from what was seen and `statistics.buckets` of the values."""
    used = np.flatnonzero(counted)
    values, weights = bucket_values()[used], counted[used]

    def error(fraction: float) -> float:
        top = seen.high * fraction
        step = (top - seen.low) / LEVELS
        beyond = np.square(np.maximum(values - top, 0)) @ weights
        return float(CLIPPED * beyond + step**2 / 12 * weights.sum())

    return Range(seen.low, seen.high * min(FRACTIONS, key=error))
