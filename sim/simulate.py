"""Runs a task on one of the back-ends, and checks it against the reference when asked to."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from moevit.errors import InputError
from moevit.program import Program, Task
from moevit.sim.check import Collector, Place, check_outputs, check_values, output_values
from moevit.sim.dram import DramModel
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.isa import IsaSimulator
from moevit.sim.reference import Tensors, decode_output, run_reference
from moevit.sim.result import Result, layer_cycles, program_dram_bytes, stage_cycles
from moevit.sim.rtl import ImageRun, RtlSimulator

BACKENDS = ("isa", "rtl")
ISA_BATCH = 32  #: images that a thread works on at a time
RTL_BATCH = 64  #: images between two comparisons

Progress = Callable[[int], None]


def simulate(
    program: Program,
    inputs: Inputs,
    task: str | None = None,
    *,
    backend: str = "isa",
    check: bool = False,
    limit: int | None = None,
    dram: DramModel | None = None,
    trace: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a task of a program.

    Parameters
    ----------
    program, inputs : what to run
    task : name of the task; the first when None
    backend : ``isa`` or ``rtl``
    check : compare every output and every intermediate tensor with the NumPy reference; on ``rtl`` the isa
        back-end is compared too
    limit : the first so many inputs only
    dram : of ``rtl``: the memory model; the configuration's default when None
    trace : of ``rtl``: an FST file to write the waveform to
    progress : called with the number of images as they are done

    Raises
    ------
    InputError : a parameter or an input does not fit
    SimulationError : the machine stopped with an error
    MismatchError : ``check`` found a difference
    ToolError : the rtl simulation cannot be built
    """
    if backend not in BACKENDS:
        raise InputError(f"no back-end {backend!r}", mend=f"choose one of {', '.join(BACKENDS)}")
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")
    if backend != "rtl" and (dram is not None or trace is not None):
        raise InputError("only the rtl back-end has a DRAM model and waveforms", mend="add --backend rtl")
    chosen = program.task(task)
    inputs = inputs.limited(limit)
    started = time.monotonic()
    run = _Isa(program, chosen, check) if backend == "isa" else _Rtl(program, chosen, check, dram, trace)
    buffers, checked = run.run(inputs, progress or (lambda n: None))
    outputs = {
        y.name: decode_output(chosen, y.name, output_values(chosen, y, buffers, program.config))
        for y in chosen.outputs
    }
    runs = run.images
    config = program.config
    cycles = tuple(image.cycles for image in runs) or None
    utilisation = None
    if cycles:
        utilisation = chosen.macs * len(cycles) / (sum(cycles) * config.macs_per_cycle)
    return Result(
        backend=backend,
        task=chosen.name,
        config=config.name,
        config_digest=f"{config.digest:016x}",
        clock_mhz=config.clock_mhz,
        outputs=outputs,
        cycles=cycles,
        macs=chosen.macs,
        mac_utilisation=utilisation,
        stages=stage_cycles(runs) if runs else None,
        layers=layer_cycles(program, chosen, runs) if runs else None,
        dram_bytes=runs[0].dram_bytes if runs else program_dram_bytes(program, chosen),
        dram=run.dram,
        bit_exact=True if check else None,
        checked_values=checked,
        simulated_cycles=run.simulated_cycles,
        wall_s=time.monotonic() - started,
    )


def _reference(program: Program, task: Task, inputs: Inputs, first: int, end: int) -> Tensors:
    return run_reference(program, task, quantise(task, inputs.floats(first, end)))


class _Isa:
    """The isa back-end over a whole set of inputs: batches, on as many threads as there are CPUs."""

    dram: DramModel | None = None
    simulated_cycles: int | None = None

    def __init__(self, program: Program, task: Task, check: bool) -> None:
        self.program, self.task, self.check = program, task, check
        self.images: list[ImageRun] = []
        self.simulator = IsaSimulator(program.config, program.image, program.instructions(task), task.output_bytes)

    def run(self, inputs: Inputs, progress: Progress) -> tuple[NDArray[np.uint8], int]:
        """Output buffers [N, output bytes], and how many values were compared."""

        def batch(first: int) -> tuple[NDArray[np.uint8], int]:
            end = min(first + ISA_BATCH, len(inputs))
            done = self.batch(inputs, first, end)
            progress(end - first)
            return done

        # One thread per batch: BLAS's own would wait for each other in every small product.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = list(pool.map(batch, range(0, len(inputs), ISA_BATCH)))
        return np.concatenate([output for output, _ in results]), sum(n for _, n in results)

    def batch(self, inputs: Inputs, first: int, end: int) -> tuple[NDArray[np.uint8], int]:
        """One batch, checked if that is wanted."""
        quantised = quantise(self.task, inputs.floats(first, end))
        collector = Collector(self.task, self.program.config) if self.check else None
        memories = self.simulator.run(pack(self.task, quantised), after=collector)
        compared = 0
        if collector is not None:
            want = run_reference(self.program, self.task, quantised)
            place = Place("isa", first)
            compared += check_values(self.program, self.task, collector.values, want, place)
            compared += check_outputs(self.program, self.task, memories.output, want, place)
        return memories.output, compared


class _Rtl:
    """The rtl back-end over a whole set of inputs."""

    def __init__(self, program: Program, task: Task, check: bool, dram: DramModel | None, trace: Path | None) -> None:
        self.program, self.task, self.check = program, task, check
        self.simulator = RtlSimulator(program, task, dram=dram, trace=trace)
        self.dram = self.simulator.dram
        self.images: list[ImageRun] = []
        self.simulated_cycles = 0

    def run(self, inputs: Inputs, progress: Progress) -> tuple[NDArray[np.uint8], int]:
        """As :meth:`_Isa.run`."""
        outputs, compared = [], 0
        for first in range(0, len(inputs), RTL_BATCH):
            end = min(first + RTL_BATCH, len(inputs))
            quantised = quantise(self.task, inputs.floats(first, end))
            result = self.simulator.run(pack(self.task, quantised), tensors=self.check, progress=progress)
            self.images += result.images
            self.simulated_cycles += result.simulated_cycles
            outputs.append(result.outputs)
            if self.check:
                want = run_reference(self.program, self.task, quantised)
                place = Place("rtl", first)
                compared += check_values(self.program, self.task, result.values, want, place)
                compared += check_outputs(self.program, self.task, result.outputs, want, place)
                _, more = _Isa(self.program, self.task, check=True).run(_part(inputs, first, end), lambda n: None)
                compared += more
        return np.concatenate(outputs), compared


def _part(inputs: Inputs, first: int, end: int) -> Inputs:
    return Inputs({k: v[first:end] for k, v in inputs.arrays.items()}, {})
