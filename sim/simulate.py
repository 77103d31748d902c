"""Runs a task on one of the back-ends, and checks it against the reference when asked to."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from moevit.errors import InputError, MismatchError
from moevit.pipeline import machine_tasks
from moevit.program import Program, Task
from moevit.sim.check import Collector, Place, Values, check_outputs, check_values
from moevit.sim.cycle import Prediction, even_lengths, predict
from moevit.sim.dram import DramModel
from moevit.sim.experts import Lengths, join_lengths, layer_queues
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.isa import IsaSimulator, Memories
from moevit.sim.reference import run_reference
from moevit.sim.result import (
    PartResult,
    Result,
    joined,
    layer_cycles,
    mean_dram_bytes,
    program_dram_bytes,
    stage_cycles,
)
from moevit.sim.rtl import ImageRun, RtlSimulator
from moevit.sim.steps import StepsResult, run_steps
from moevit.sim.timeline import write as write_timeline

BACKENDS = ("isa", "rtl", "cycle")
ISA_BATCH = 32  #: images that a thread works on at a time
RTL_BATCH = 32  #: images between two comparisons

Progress = Callable[[int], None]
Bytes = NDArray[np.uint8]
Quantised = dict[str, NDArray]


def simulate(
    program: Program,
    inputs: Inputs | None,
    task: str | None = None,
    *,
    backend: str = "isa",
    check: bool = False,
    limit: int | None = None,
    dram: DramModel | None = None,
    trace: Path | None = None,
    timeline: Path | None = None,
    progress: Progress | None = None,
    raise_mismatch: bool = True,
) -> Result:
    """Run a task of a program: on the machine, and what of it is the host's in onnxruntime.

    Parameters
    ----------
    program, inputs : what to run; ``cycle`` does without inputs, and then takes a gate's tokens to be spread evenly
    task : name of the task; the first when None
    backend : ``isa``, ``rtl``, or ``cycle``, which is ``isa`` with a prediction of what ``rtl`` would take
    check : compare every output and every intermediate tensor with the NumPy reference; on ``rtl`` the isa
        back-end is compared too. Not of ``cycle``, which has no tensors of its own
    limit : the first so many inputs only
    dram : of ``rtl`` and ``cycle``: the memory model; the configuration's default when None
    trace : of ``rtl``: an FST file to write the waveform to
    timeline : of ``rtl``: a JSON file to write to when each unit worked on each instruction, of the first input
    progress : called with the number of images as they are done
    raise_mismatch : whether a difference that ``check`` finds is raised, or put into the result

    Raises
    ------
    InputError : a parameter or an input does not fit
    SimulationError : the machine stopped with an error
    MismatchError : ``check`` found a difference
    ContainerError : onnxruntime does not take a model of the host's
    ToolError : the rtl simulation cannot be built
    """
    if backend not in BACKENDS:
        raise InputError(f"no back-end {backend!r}", mend=f"choose one of {', '.join(BACKENDS)}")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")
    if backend != "rtl" and any(x is not None for x in (trace, timeline)):
        raise InputError("only the rtl back-end has waveforms and timelines", mend="add --backend rtl")
    if backend == "isa" and dram is not None:
        raise InputError("the isa back-end has no DRAM model", mend="add --backend rtl or --backend cycle")
    if backend == "cycle" and check:
        raise InputError("the cycle back-end predicts cycles and has no values to check", mend="use --backend rtl")
    if backend == "cycle" and dram is not None and dram.seed is not None:
        raise InputError("the cycle back-end does not model random stalls", mend="leave the seed away, or use rtl")
    if backend != "cycle" and inputs is None:
        raise InputError("no inputs given", where=f"the {backend} back-end", mend="add --inputs")
    pipeline = program.pipeline(task)
    tasks = machine_tasks(program, pipeline)
    inputs = None if inputs is None else inputs.limited(limit)
    started = time.monotonic()
    runs: dict[str, _Isa | _Rtl | _Cycle] = {}
    for number, chosen in enumerate(tasks, 1):
        checker = _Checker(program, chosen, raise_mismatch) if check else None
        files = [_numbered(path, number if len(tasks) > 1 else 0) for path in (trace, timeline)]
        if backend == "isa":
            runs[chosen.name] = _Isa(program, chosen, checker)
        elif backend == "rtl":
            runs[chosen.name] = _Rtl(program, chosen, checker, dram, *files)
        else:
            runs[chosen.name] = _Cycle(program, chosen, dram)

    def machine(chosen: Task, values: Inputs, first: int) -> Bytes:
        last = chosen is tasks[-1] and progress is not None
        return runs[chosen.name].run(values, first, progress if last and progress else lambda n: None)

    done = StepsResult({}, {})
    # One thread per batch: BLAS's own would wait for each other in every small product.
    with threadpool_limits(1, user_api="blas"):
        if inputs is not None:
            done = run_steps(program, pipeline, inputs, machine)
        else:
            for run in runs.values():
                assert isinstance(run, _Cycle)
                run.guess()
    parts = [_part_result(program, chosen, runs[chosen.name], backend) for chosen in tasks]
    return joined(program, pipeline, parts, done, backend=backend, wall_s=time.monotonic() - started)


def _numbered(path: Path | None, number: int) -> Path | None:
    """A file for each of several programs: ``wave.2.fst``; the path itself for number 0."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if path is not None and number else path


def _part_result(program: Program, task: Task, run: "_Isa | _Rtl | _Cycle", backend: str) -> PartResult:
    """What one of the machine's programs did."""
    runs = run.images
    lengths = join_lengths(run.lengths)
    checker = run.checker
    return PartResult(
        task=task.name,
        macs=task.macs,
        cycles=tuple(image.cycles for image in runs) or None,
        stages=stage_cycles(runs, "other" if backend == "cycle" else "idle") if runs else None,
        layers=layer_cycles(program, task, runs) if runs else None,
        dram_bytes=run.dram_bytes(lengths),
        experts=layer_queues(program, task, lengths),
        dram=run.dram,
        mismatch=None if checker is None else checker.mismatch,
        checked=checker is not None,
        checked_values=0 if checker is None else checker.compared,
        simulated_cycles=run.simulated_cycles,
    )


class _Checker:
    """Compares with the reference, batch by batch and in any thread."""

    def __init__(self, program: Program, task: Task, raise_mismatch: bool) -> None:
        self.program, self.task, self.raise_mismatch = program, task, raise_mismatch
        self.compared = 0
        self.mismatch: MismatchError | None = None
        self._lock = Lock()

    def __call__(self, quantised: Quantised, values: Values, buffers: Bytes, place: Place) -> None:
        want = run_reference(self.program, self.task, quantised)
        try:
            compared = check_values(self.program, self.task, values, want, place)
            compared += check_outputs(self.program, self.task, buffers, want, place)
        except MismatchError as error:
            if self.raise_mismatch:
                raise
            with self._lock:
                self.mismatch = self.mismatch or error
        else:
            with self._lock:
                self.compared += compared


class _Isa:
    """The isa back-end over a whole set of inputs: batches, on as many threads as there are CPUs."""

    dram: DramModel | None = None
    simulated_cycles: int | None = None

    def __init__(self, program: Program, task: Task, checker: _Checker | None) -> None:
        self.program, self.task, self.checker = program, task, checker
        self.images: list[ImageRun] = []
        self.lengths: list[Lengths] = []  # per batch
        self.simulator = IsaSimulator(program.config, program.image, program.instructions(task), task.output_bytes)

    def run(self, inputs: Inputs, number: int, progress: Progress) -> Bytes:
        """Output buffers [N, output bytes]; ``number`` is the first input's."""

        def batch(first: int) -> tuple[Bytes, Lengths]:
            end = min(first + ISA_BATCH, len(inputs))
            memories = self.batch(quantise(self.task, inputs.floats(first, end)), number + first)
            progress(end - first)
            return memories.output, memories.lengths

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = list(pool.map(batch, range(0, len(inputs), ISA_BATCH)))
        self.lengths += [lengths for _, lengths in results]
        return np.concatenate([outputs for outputs, _ in results])

    def batch(self, quantised: Quantised, first: int) -> Memories:
        """One batch, of which the first image has number ``first``; checked if that is wanted."""
        collector = None if self.checker is None else Collector(self.task, self.program.config)
        memories = self.simulator.run(pack(self.program.config, self.task, quantised), after=collector)
        if self.checker is not None and collector is not None:
            self.checker(quantised, collector.values, memories.output, Place("isa", first))
        return memories

    def dram_bytes(self, lengths: Lengths) -> dict[str, int]:
        """What an inference moves."""
        return program_dram_bytes(self.program, self.task, lengths)


class _Cycle:
    """The cycle back-end over a whole set of inputs: the isa back-end says how many tokens each expert has."""

    simulated_cycles: int | None = None
    checker: _Checker | None = None

    def __init__(self, program: Program, task: Task, dram: DramModel | None) -> None:
        self.program, self.task = program, task
        self.dram = dram or DramModel.default(program.config)
        self.images: list[Prediction] = []
        self.lengths: list[Lengths] = []

    def run(self, inputs: Inputs, number: int, progress: Progress) -> Bytes:
        """Output buffers [N, output bytes]; ``number`` is the first input's."""
        isa = _Isa(self.program, self.task, None)
        buffers = isa.run(inputs, number, progress)
        self._predict(join_lengths(isa.lengths), len(inputs))
        return buffers

    def guess(self) -> None:
        """One run, of an image whose tokens go to all experts alike."""
        self._predict(even_lengths(self.program.instructions(self.task)), 1)

    def _predict(self, lengths: Lengths, images: int) -> None:
        self.lengths.append(lengths)
        instructions = self.program.instructions(self.task)
        known: dict[tuple[bytes, ...], Prediction] = {}  # images differ in their queues only
        for i in range(images):
            key = tuple(counts[i].tobytes() for counts in lengths.values())
            if key not in known:
                queues = {gate: counts[i].tolist() for gate, counts in lengths.items()}
                known[key] = predict(self.program.config, instructions, self.task.entry, self.dram, queues)
            self.images.append(known[key])

    def dram_bytes(self, lengths: Lengths) -> dict[str, int]:
        """What an inference moves, on average."""
        moved = program_dram_bytes(self.program, self.task, lengths)
        spare = round(sum(image.speculative_bytes for image in self.images) / len(self.images))
        return moved | {"weights": moved["weights"] + spare, "speculative": spare}


class _Rtl:
    """The rtl back-end over a whole set of inputs."""

    def __init__(
        self, program: Program, task: Task, checker: _Checker | None, dram: DramModel | None, trace: Path | None,
        timeline: Path | None,
    ) -> None:  # fmt: skip
        self.program, self.task, self.checker, self.timeline = program, task, checker, timeline
        self.simulator = RtlSimulator(program, task, dram=dram, trace=trace)
        self.isa = _Isa(program, task, checker)
        self.dram = self.simulator.dram
        self.images: list[ImageRun] = []
        self.lengths: list[Lengths] = []
        self.simulated_cycles = 0

    def run(self, inputs: Inputs, number: int, progress: Progress) -> Bytes:
        """Output buffers [N, output bytes]; ``number`` is the first input's."""
        outputs = []
        for first in range(0, len(inputs), RTL_BATCH):
            quantised = quantise(self.task, inputs.floats(first, first + RTL_BATCH))
            buffers = pack(self.program.config, self.task, quantised)
            recorded = self.timeline if number + first == 0 else None
            result = self.simulator.run(
                buffers, tensors=self.checker is not None, timeline=recorded is not None, progress=progress
            )
            if recorded is not None and result.timeline is not None:
                write_timeline(recorded, self.program, self.task, result.timeline, result.images[0].cycles)
            self.images += result.images
            self.lengths.append(result.lengths)
            self.simulated_cycles += result.simulated_cycles
            outputs.append(result.outputs)
            if self.checker is not None:
                self.checker(quantised, result.values, result.outputs, Place("rtl", number + first))
                self.isa.batch(quantised, number + first)
        return np.concatenate(outputs)

    def dram_bytes(self, lengths: Lengths) -> dict[str, int]:
        """What an inference moves, on average."""
        return mean_dram_bytes(self.images)
