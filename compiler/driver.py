"""From ONNX files to a program: the compiler's passes in order."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.calibrate import Range, observe_apart
from moevit.compiler.emit import Emitter, Routing
from moevit.compiler.fuse import fuse
from moevit.compiler.hazards import check_program
from moevit.compiler.ir import Graph
from moevit.compiler.joint import join_calibrated, places
from moevit.compiler.legalise import legalise
from moevit.compiler.memory import BlockStore
from moevit.compiler.parallel import one_blas_thread
from moevit.compiler.partition import Plan, plan, stored, unfit
from moevit.compiler.ptq.accuracy import Accuracy, accuracy, chosen, need_acceptable
from moevit.compiler.ptq.mass import with_masses
from moevit.compiler.ptq.sensitivity import Sensitivity, sensitivity
from moevit.compiler.ptq.trial import Known
from moevit.compiler.ptq.tune import Tuned, tune
from moevit.compiler.quantise import Quantised, quantise
from moevit.compiler.stages import Stages
from moevit.compiler.verify import verify
from moevit.config import AcceleratorConfig
from moevit.errors import AllocationError, BeyondRangeError, InputError, UnsupportedNode, UnsupportedOpError
from moevit.pipeline import HostNode, host_parts, only_step
from moevit.program import Program, Source, Task

Inputs = Mapping[str, NDArray]

SENSITIVITY_INPUTS = 8  #: of the calibration data that each stage's errors are measured on


@dataclass(frozen=True)
class Compiled:
    """A program and what the passes learnt about it.

    ``weight_bytes`` are those in the image, ``shared_bytes`` those that identical tensors saved,
    ``peak_activation_bytes`` the most activation memory any task uses. ``host_nodes`` has the nodes of each task
    that are left to the host, ``host_macs`` their multiply-accumulates. ``accuracy`` is that of each program's
    outputs on calibration inputs, by program and output; of :func:`compile_model` only. ``prepared`` and ``data`` are
    what the programs were made from, and the calibration inputs [B, ...] of each.
    """

    program: Program
    instructions: int
    weight_bytes: int
    shared_bytes: int
    peak_activation_bytes: int
    accelerated_macs: int
    seconds: dict[str, float]
    host_macs: int = 0
    accuracy: Mapping[str, Mapping[str, Accuracy]] = field(default_factory=dict)
    prepared: "Prepared | None" = field(default=None, repr=False)
    data: Mapping[str, Inputs] = field(default_factory=dict, repr=False)

    @property
    def host_nodes(self) -> dict[str, list[HostNode]]:
        """By task."""
        pipelines = [self.program.pipeline(name) for name in self.program.names]
        return {p.name: [n for part in host_parts(self.program, p) for n in part.nodes] for p in pipelines}

    @one_blas_thread
    def sensitivity(self, progress: Callable[[str], None] = lambda stage: None) -> dict[str, list[Sensitivity]]:
        """What the quantisation of each stage alone costs, by program, worst first; on a few calibration inputs."""
        assert self.prepared is not None
        out: dict[str, list[Sensitivity]] = {}
        for name, inputs in self.data.items():
            few = chosen(inputs, SENSITIVITY_INPUTS)
            stages, config = self.prepared.stages[name], self.program.config
            found = sensitivity(stages, self.prepared.quantised(name, config), config, few, progress)
            out[name] = sorted(found, key=lambda s: s.sqnr_db)
        return out


@one_blas_thread
def compile_model(
    models: Mapping[str, Path],
    config: AcceleratorConfig,
    calibration: Callable[[str, Mapping[str, tuple[int, ...]]], Inputs],
    *,
    speculate: bool = True,
    route_rows: int | None = None,
    strict: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    accept_accuracy: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Compiled:
    """Compile one model per task into one program. What the machine cannot do of one is left to the host.

    So is what it could do, but not with the values that come up on the calibration inputs; and, of a model that is
    split anyway, what does not fit ``config``, as long as another part does.

    Parameters
    ----------
    models : task name to ONNX file
    config : the machine
    calibration : called with a task's name and its inputs' shapes; returns float inputs [B, ...] by name
    speculate, route_rows : how mixtures of experts are computed, see :class:`~moevit.compiler.emit.Routing`
    strict : refuse a model with a node that the machine cannot do
    shapes : whole shapes of inputs, by name, whose extents a model leaves open
    accept_accuracy : compile also what computes something else than the model, on calibration inputs
    progress : told the name of each step as it starts

    Raises
    ------
    ModelError, UnsupportedOpError, InputError, AllocationError : the model, its data or the machine do not fit
    AccuracyError : the machine's integers do not hold the model's values, and ``accept_accuracy`` is not set
    HazardError : the emitted program is not provably safe (a mistake in the compiler)
    """
    if not models:
        raise InputError("no model given")
    seconds: dict[str, float] = {}
    routing = Routing(speculate, route_rows)
    plans, data, prepared, emitted = _held(models, config, calibration, routing, strict, shapes, progress, seconds)
    sources = [Source(n, Path(p).name, hashlib.sha256(Path(p).read_bytes()).hexdigest()) for n, p in models.items()]
    found: dict[str, dict[str, Accuracy]] = {}
    for name, graph in prepared.graphs.items():
        quantised = prepared.quantised(name, config)
        with _Clock(seconds, progress, name if len(data) > 1 else "")("check"):
            found[name] = accuracy(graph, prepared.stages[name], quantised, config, data[name])
    if not accept_accuracy:
        need_acceptable(found)
    compiled = _finished(emitted, prepared, config, tuple(sources), True, progress, seconds)
    return replace(_with_host(compiled, plans), accuracy=found, data=data)


def _held(
    models: Mapping[str, Path], config: AcceleratorConfig,
    calibration: Callable[[str, Mapping[str, tuple[int, ...]]], Inputs], routing: Routing, strict: bool,
    shapes: Mapping[str, Sequence[int]] | None, progress: Callable[[str], None], seconds: dict[str, float],
) -> tuple[list[Plan], dict[str, Inputs], "Prepared", "_Emitted"]:  # fmt: skip
    """Who computes what of each model, the calibration inputs of each program, what quantisation starts from, and the
    programs.

    Values that the machine does not hold show on the calibration data alone, and what its memories do not hold when
    programs are made; their nodes become the host's then, and all is done again.
    """
    beyond: dict[str, dict[str, UnsupportedNode]] = {name: {} for name in models}
    given: dict[str, Inputs] = {}
    first: dict[str, AllocationError] = {}  # by model
    while True:
        plans = []
        data: dict[str, Inputs] = {}
        for name, path in models.items():
            with _Clock(seconds, progress, name if len(models) > 1 else "")("read"):
                try:
                    plans.append(plan(name, path, strict=strict, shapes=shapes, beyond=beyond[name]))
                except UnsupportedOpError as error:
                    if name in first:  # nothing is left that fits
                        raise first[name] from error
                    raise
            if name not in given:
                given[name] = calibration(name, plans[-1].inputs)
            with _Clock(seconds, lambda step: None, "")("calibrate"):
                data |= plans[-1].data(given[name])
        graphs = {name: graph for p in plans for name, graph in p.graphs.items()}
        try:
            prepared = prepare(graphs, data, progress=progress, seconds=seconds)
            for name in graphs:
                with _Clock(seconds, lambda step: None, "")("quantise"):
                    prepared.quantised(name, config)
        except BeyondRangeError as error:
            task = next(p.name for p in plans if error.task in p.graphs)
            moved = {n: node for n, node in error.moved().items() if n not in beyond[task]}
            if strict or not moved:
                raise
            beyond[task] |= moved  # the host's floats hold what the machine does not
            continue
        refused: dict[str, AllocationError] = {}
        emitted = _emit(prepared, config, routing, progress, seconds, refused)
        if not refused:
            return plans, data, prepared, emitted
        for p in plans:
            for name, too_large in refused.items():
                if name in p.graphs:
                    if strict or len(p.graphs) == 1:  # a model that does not fit should be told so
                        raise too_large
                    first.setdefault(p.name, too_large)
                    beyond[p.name] |= unfit(p.nodes[name], too_large)


def _with_host(compiled: Compiled, plans: list[Plan]) -> Compiled:
    """The program with what is the host's, if anything is."""
    if all(p.pipeline is None for p in plans):
        return compiled
    program = compiled.program
    pipelines = tuple(p.pipeline or only_step(program.task(p.name)) for p in plans)
    parts, models = stored(h for p in plans for h in p.hosts)
    program = replace(program, pipelines=pipelines, host_parts=parts, host_data=models)
    return replace(compiled, program=program, host_macs=sum(part.macs for part in parts))


def compile_graphs(
    graphs: Mapping[str, Graph],
    config: AcceleratorConfig,
    data: Mapping[str, Inputs],
    sources: tuple[Source, ...] = (),
    *,
    routing: Routing | None = None,
    progress: Callable[[str], None] = lambda step: None,
    seconds: dict[str, float] | None = None,
) -> Compiled:
    """As :func:`compile_model`, for graphs and calibration inputs [B, ...] by task name.

    ``seconds`` is what the steps before have taken, and is added to.
    """
    seconds = {} if seconds is None else seconds
    prepared = prepare(graphs, data, progress=progress, seconds=seconds)
    compiled = finish(prepared, config, sources, routing=routing, progress=progress, seconds=seconds)
    return replace(compiled, data=data)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What of a compilation does not depend on the machine, by task: it serves all configurations.

    ``graphs`` are the models as they were read, with what a quantised one's probabilities add up to.
    """

    graphs: Mapping[str, Graph]
    stages: Mapping[str, Stages]
    ranges: Mapping[str, dict[str, Range]]
    _integers: dict[tuple[str, int], Quantised] = field(default_factory=dict, repr=False)

    def quantised(self, name: str, config: AcceleratorConfig) -> Quantised:
        """A task in integers; the machine's columns are all that it depends on."""
        key = name, config.columns
        if key not in self._integers:
            with _refusals_of(name):
                self._integers[key] = quantise(self.stages[name], self.ranges[name], config)
        return self._integers[key]


@contextmanager
def _refusals_of(task: str) -> Iterator[None]:
    """What cannot be quantised is named with its task."""
    try:
        yield
    except BeyondRangeError as error:
        raise error.of_task(task) from error


@one_blas_thread
def prepare(
    graphs: Mapping[str, Graph],
    data: Mapping[str, Inputs],
    *,
    progress: Callable[[str], None] = lambda step: None,
    seconds: dict[str, float] | None = None,
) -> Prepared:
    """The first half of :func:`compile_graphs`."""
    seconds = {} if seconds is None else seconds
    models = {name: with_masses(graph, data[name]) for name, graph in graphs.items()}
    graphs = {name: verify(legalise(graph), "legalise") for name, graph in models.items()}
    seen = {}
    for name, graph in graphs.items():
        with _Clock(seconds, progress, name if len(graphs) > 1 else "")("calibrate"):
            fuse(graph)  # what no stage takes is an error before the long part
            seen[name] = observe_apart(graph, data[name])
    seen = join_calibrated(graphs, seen)
    tuned: dict[str, Tuned] = {}
    known: Known = {}
    for name, graph in graphs.items():
        with _refusals_of(name), _Clock(seconds, progress, name if len(graphs) > 1 else "")("tune"):
            tuned[name] = tune(graph, seen[name], places(graph) if len(graphs) > 1 else {}, known)
    return Prepared(models, {n: t.stages for n, t in tuned.items()}, {n: t.ranges for n, t in tuned.items()})


@one_blas_thread
def finish(
    prepared: Prepared,
    config: AcceleratorConfig,
    sources: tuple[Source, ...] = (),
    *,
    routing: Routing | None = None,
    prove: bool = True,
    progress: Callable[[str], None] = lambda step: None,
    seconds: dict[str, float] | None = None,
) -> Compiled:
    """The second half of :func:`compile_graphs`.

    Without ``prove`` the hazard checker does not run: for a program that is only timed.
    """
    seconds = {} if seconds is None else seconds
    emitted = _emit(prepared, config, routing, progress, seconds)
    return _finished(emitted, prepared, config, sources, prove, progress, seconds)


@dataclass(frozen=True, eq=False)
class _Emitted:
    """Programs of all tasks; ``peak`` in words of activation memory."""

    tasks: tuple[Task, ...]
    blocks: BlockStore
    peak: int


def _emit(
    prepared: Prepared, config: AcceleratorConfig, routing: Routing | None, progress: Callable[[str], None],
    seconds: dict[str, float], refused: dict[str, AllocationError] | None = None,
) -> _Emitted:  # fmt: skip
    """Programs of the tasks. With ``refused``, all tasks are tried, and why one does not fit is put there, by name."""
    stages = prepared.stages
    clocks = {name: _Clock(seconds, progress, name if len(stages) > 1 else "") for name in stages}
    blocks = BlockStore()
    tasks, peak = [], 0
    for name, clock in clocks.items():
        with clock("quantise"):
            quantised = prepared.quantised(name, config)
        with clock("emit"):
            try:
                emitter = Emitter(name, stages[name], quantised, config, blocks, routing)
                tasks.append(emitter.run())
                peak = max(peak, emitter.peak)
            except AllocationError as error:
                if refused is None:
                    raise
                refused[name] = error
    return _Emitted(tuple(tasks), blocks, peak)


def _finished(
    emitted: _Emitted, prepared: Prepared, config: AcceleratorConfig, sources: tuple[Source, ...], prove: bool,
    progress: Callable[[str], None], seconds: dict[str, float],
) -> Compiled:  # fmt: skip
    """The programs as one, proved if that is wanted."""
    tasks, blocks = emitted.tasks, emitted.blocks
    program = Program(config, tasks, sources, bytes(blocks.data), blocks.shared)
    with _Clock(seconds, progress, "")("hazards"):
        for task in tasks if prove else ():
            check_program(program, task)
    instructions = sum(t.instructions for t in tasks)
    return Compiled(
        program, instructions, len(program.image) - 64 * instructions, blocks.shared, emitted.peak * config.columns,
        sum(t.macs for t in tasks), seconds, prepared=prepared,
    )  # fmt: skip


class _Clock:
    """Times the steps and announces them."""

    def __init__(self, seconds: dict[str, float], progress: Callable[[str], None], task: str) -> None:
        self.seconds, self.progress, self.task = seconds, progress, task

    def __call__(self, step: str) -> "_Clock":
        self.step = step
        return self

    def __enter__(self) -> None:
        self.progress(f"{self.task} {self.step}".strip())
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + time.perf_counter() - self.start


def random_calibration(seed: int = 0, images: int = 16) -> Callable[[str, Mapping[str, tuple[int, ...]]], Inputs]:
    """Calibration data for models without any: uniform in [0, 1]. Only for machines' tests, not for accuracy."""

    def make(task: str, shapes: Mapping[str, tuple[int, ...]]) -> Inputs:
        rng = np.random.default_rng(seed)
        return {n: rng.random((images, *shape), dtype=np.float32) for n, shape in shapes.items()}

    return make
