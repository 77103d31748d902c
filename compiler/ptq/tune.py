"""From a float graph and what calibration saw of it to stages and ranges that quantise well."""

from collections.abc import Mapping
from dataclasses import dataclass

from moevit.compiler.ir import Graph
from moevit.compiler.ptq.clip import clip
from moevit.compiler.ptq.smooth import smooth, spread_kept
from moevit.compiler.ptq.statistics import Calibrated, Range
from moevit.compiler.ptq.trial import Accept, Key, Known, Trial, Version
from moevit.compiler.stages import Stages


@dataclass(frozen=True)
class Tuned:
    """What is quantised: stages of a graph that computes the same as the model, and the ranges of its tensors."""

    stages: Stages
    ranges: dict[str, Range]
    accepted: frozenset[Key] = frozenset()  #: the changes that were made


def tune(
    graph: Graph, calibrated: Calibrated, places: Mapping[str, str] | None = None, known: Known | None = None
) -> Tuned:
    """Even out channels, fuse, and clip, each where it pays.

    Images that are held out decide what pays, as `trial` says; all of them how far it goes. ``places`` and ``known``
    are as of :class:`~moevit.compiler.ptq.trial.Trial`, for several tasks.
    """
    start = Version(graph, calibrated.part)
    trial = Trial(start, calibrated, places or {}, {} if known is None else known)
    _changed(start, trial.accept)
    tuned = _changed(Version(graph, calibrated.whole), lambda key, before, after: key in trial.accepted)
    return Tuned(tuned.stages, tuned.statistics.ranges, frozenset(trial.accepted))


def _changed(version: Version, accept: Accept) -> Version:
    return clip(spread_kept(smooth(version, accept), accept), accept)
