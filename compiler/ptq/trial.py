"""Whether a change pays is tried: both versions run in integers, on images that the change was not derived from.

Three of four images give the ranges and the changes; some of the others run through the unchanged model in integers.
A change touches a window of few stages. These run before and after it on the same integers, which carry the errors of
all stages ahead of them, and what comes out is compared with what the float model makes of these very inputs. So the
figures hold what a formula of steps and powers leaves out: channels that go beyond their range on another image or
for the errors that come in, and constants that do not fit the loader.

Tasks that share a computation share its trials, so that what they share stays shared.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import interpret
from moevit.compiler.fuse import fuse
from moevit.compiler.ir import Array, Graph, MoE
from moevit.compiler.ptq.emulate import Emulator, Integers, decode
from moevit.compiler.ptq.statistics import Calibrated, Statistics
from moevit.compiler.quantise import Format, choose_formats, quantise
from moevit.compiler.stages import LinearStage, MoeStage, Stage, Stages, reads
from moevit.config import CONFIGS

MACHINE = CONFIGS["zcu104"]  #: what is decided must not depend on the machine, or configurations had different models
ROWS = 1600  #: of a tensor, that a trial compares, if there are images enough
IMAGES = 2, 64  #: least and most
BYTES = 1 << 29  #: of integers that are held
BETTER = 1.0  #: at most this much of the error before may be left
MUCH_BETTER = 0.8  #: where there is but one image, from which the change was derived, too

Key = tuple[str, str]  #: the kind of a change, and the tensor it is made for
Known = dict[tuple[str, frozenset[str]], bool]  #: by kind, and the places of what was compared
Accept = Callable[[Key, "Version", "Version"], bool]


@dataclass(frozen=True, eq=False)
class Version:
    """A graph, what calibration has seen of it, and its stages."""

    graph: Graph
    statistics: Statistics
    own: Stages | None = None  #: where they are more than `fuse` makes of the graph

    @cached_property
    def stages(self) -> Stages:
        """What is quantised."""
        return self.own or fuse(self.graph)


def always(key: Key, before: Version, after: Version) -> bool:
    """Accepts every change."""
    return True


@dataclass(eq=False)
class Trial:
    """Accepts what lowers the error, and keeps in mind what it was.

    Parameters
    ----------
    start : the version without changes, with what was seen of the images that are not held out
    calibrated : where the others are
    places : what identifies each tensor of the graph beyond this task
    known : results of other tasks' trials, to which this one's are added
    """

    start: Version
    calibrated: Calibrated
    places: Mapping[str, str] = field(default_factory=dict)
    known: Known = field(default_factory=dict)
    accepted: set[Key] = field(default_factory=set)
    tensors: dict[str, NDArray[np.int16]] = field(init=False)

    done: dict[tuple[Version, str], dict[str, Integers]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        graph, stages = self.start.graph, self.start.stages
        sizes = [int(np.prod(shape)) for shape in graph.tensors.values()]
        rows = max(shape[0] for t, shape in graph.tensors.items() if len(shape) == 2)
        least, most = IMAGES
        count = min(max(-(-ROWS // rows), least), most, max(BYTES // (2 * sum(sizes)), 1))
        emulator = Emulator(stages, quantise(stages, self.start.statistics.ranges, MACHINE), MACHINE)
        self.tensors = {
            i.name: emulator.encode(i.name, interpret.take_input(i, self.calibrated.held)[:count]).astype(np.int16)
            for i in graph.inputs
        }
        for q in emulator.quantised.stages:
            self._keep(emulator.step(q, self._given(q.stage)))

    def _keep(self, tensors: Mapping[str, Integers]) -> None:
        self.tensors |= {t: values.astype(np.int16) for t, values in tensors.items()}

    def _given(self, s: Stage) -> dict[str, Integers]:
        return {t: self.tensors[t].astype(np.int64) for t in reads(s)}

    def accept(self, key: Key, before: Version, after: Version) -> bool:
        """Whether a change lowers the error of what is computed from the tensors it changes."""
        old, new = before.statistics.ranges, after.statistics.ranges
        changed = {t for t in new if new[t] is not old.get(t)}
        window = [s for s in before.stages.stages if changed & set(_touched(s, changed))]
        made = {t for s in window for t in _made(s)}
        compared = {t for t in made - changed if t in before.graph.tensors}
        places = (key[0], frozenset(self.places.get(t, t) for t in compared))
        names = {s.name for s in window}
        if not self.known.get(places, True):
            return False
        integers, real = self._run(after, names)
        if places not in self.known:
            unchanged, real_before = self._run(before, names)
            differ = [t for t in compared if not np.array_equal(unchanged[t], integers[t])]
            want = self._float(before, made, differ)
            limit = BETTER if self.calibrated.fresh else MUCH_BETTER
            self.known[places] = _error(real, want) < limit * _error(real_before, want)
        if self.known[places]:
            self.accepted.add(key)
            self._keep({t: values for t, values in integers.items() if t in changed})
        left = after if self.known[places] else before
        self.done = {k: made for k, made in self.done.items() if k[0] is left and k[1] in names}
        return self.known[places]

    def _run(self, version: Version, window: set[str]) -> tuple[dict[str, Integers], dict[str, Array]]:
        """What the stages of a window make of the tensors there are: integers, and what they stand for."""
        quantised = quantise(version.stages, version.statistics.ranges, MACHINE, window)
        emulator = Emulator(version.stages, quantised, MACHINE)
        made: dict[str, Integers] = {}
        for q in quantised.stages:
            key = version, q.stage.name  # the window of the change before this one may have had the same stages
            if key not in self.done:
                given = self._given(q.stage) | {t: made[t] for t in reads(q.stage) if t in made}
                self.done[key] = emulator.step(q, given)
            made |= self.done[key]
        return made, emulator.real(made)

    def _float(self, version: Version, made: set[str], wanted: Iterable[str]) -> dict[str, Array]:
        """What the float model makes of the tensors there are."""
        graph = version.graph
        formats: dict[str, Format] = choose_formats(version.stages, version.statistics.ranges)
        known: dict[str, Array] = {}

        def value(tensor: str) -> Array:
            if tensor not in known:
                given = None if tensor in made else self.tensors.get(tensor)
                op = graph.producer(tensor)
                if given is not None and (op is None or given.shape[1:] == graph.tensors[tensor]):
                    known[tensor] = decode(given.astype(np.int64), formats[tensor])
                else:
                    assert op is not None
                    operands = [value(t) for t in op.inputs]
                    if isinstance(op, MoE):
                        known[tensor] = interpret.mixture(op, operands[0])
                    else:
                        known[tensor] = interpret.evaluate(op, *operands)
            return known[tensor]

        return {t: value(t) for t in wanted}


def _made(s: Stage) -> tuple[str, ...]:
    """The tensors that a stage makes."""
    if isinstance(s, LinearStage) and s.key is not None and s.value is not None:
        return s.output, s.key, s.value
    return (s.output,)


def _touched(s: Stage, changed: Iterable[str]) -> Iterable[str]:
    """Tensors that a stage reads or makes, in memory or on the way through it."""
    own = (s.output, s.moe.output) if isinstance(s, MoeStage) else (s.output,)
    inside = [t for t in changed if t.rpartition("#")[0] in own]
    norm = getattr(s, "norm_output", None)
    return (*reads(s), *_made(s), *inside, *([] if norm is None else [norm]))


def _error(got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Power of the errors beside that of the values, over all tensors that are wanted."""
    noise = (np.square(got[t] - v, dtype=np.float64).sum() for t, v in want.items())
    power = (max(np.square(v, dtype=np.float64).sum(), 1e-30) for v in want.values())
    return float(sum(n / p for n, p in zip(noise, power, strict=True)))
