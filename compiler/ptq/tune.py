"""From a float graph and what calibration saw of it to stages and ranges that quantise well."""

from dataclasses import dataclass

import numpy as np

from moevit.compiler.fuse import fuse
from moevit.compiler.ir import Graph
from moevit.compiler.ptq.clip import clip
from moevit.compiler.ptq.smooth import smooth, spread_kept
from moevit.compiler.ptq.statistics import Range, Statistics
from moevit.compiler.stages import Stages


@dataclass(frozen=True)
class Tuned:
    """What is quantised: stages of a graph that computes the same as the model, and the ranges of its tensors."""

    stages: Stages
    ranges: dict[str, Range]


def tune(graph: Graph, statistics: Statistics) -> Tuned:
    """Even out channels, fuse, and clip where it pays."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # of extreme weights; such are not chosen
        graph, statistics = smooth(graph, statistics)
        stages, statistics = spread_kept(fuse(graph), statistics)
        return Tuned(stages, clip(statistics))
