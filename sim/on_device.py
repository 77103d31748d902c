"""Runs a task on a device, a board or the RTL simulation as one, and holds its outputs to the reference."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.driver import Device
from moevit.driver.power import PowerMeter
from moevit.errors import InputError, MismatchError
from moevit.pipeline import machine_tasks
from moevit.program import Program, Task
from moevit.sim.check import Place, check_outputs
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.reference import run_reference
from moevit.sim.steps import run_steps

BATCH = 16  #: inputs between two comparisons

Progress = Callable[[int], None]


@dataclass(frozen=True)
class DeviceResult:
    """B inputs that a device has run."""

    device: str
    task: str
    config: str
    config_digest: str
    clock_mhz: float  #: the configuration's; what the board really has is not known here
    outputs: dict[str, NDArray]  #: by output name: [B, *shape]
    cycles: tuple[int, ...]  #: by the machine's own count
    seconds: tuple[float, ...]  #: from the start bit to the interrupt, as the host sees it
    host_seconds: dict[str, float]  #: by part of the task that the host does, the average of an input
    counters: dict[str, dict[str, dict[str, int]]]  #: by program, stage and cause, of the last input
    power_w: float | None  #: average while the inputs ran; None where the board has no sensor
    bit_exact: bool | None  #: None when it was not checked
    mismatch: MismatchError | None  #: the first difference, if there is one
    checked_values: int  #: elements of outputs that were compared and equal
    wall_s: float

    @property
    def images(self) -> int:
        return len(self.cycles)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``moevit run --json``; the outputs themselves are not in it."""
        return {
            "device": self.device,
            "task": self.task,
            "config": self.config,
            "config_digest": self.config_digest,
            "clock_mhz": self.clock_mhz,
            "images": self.images,
            "cycles": list(self.cycles),
            "latency_ms": sum(self.cycles) / self.images / (self.clock_mhz * 1000),
            "host_latency_ms": sum(self.seconds) / self.images * 1000,
            "host_seconds": self.host_seconds,
            "counters": self.counters,
            "power_w": self.power_w,
            "bit_exact": self.bit_exact,
            "mismatch": None if self.mismatch is None else self.mismatch.as_json(),
            "checked_values": self.checked_values,
            "wall_s": self.wall_s,
        }


def run_on_device(
    device: Device,
    program: Program,
    inputs: Inputs,
    task: str | None = None,
    *,
    check: bool = False,
    progress: Progress | None = None,
    raise_mismatch: bool = True,
) -> DeviceResult:
    """Run a task of a program on each input. The program is loaded unless the device holds it already.

    What the task leaves to the host is run on this computer, as by the simulators.

    Parameters
    ----------
    device : an open one
    program, inputs : what to run
    task : name of the task; the first when None
    check : compare every output of the machine with the NumPy reference, byte for byte
    progress : called with the number of inputs as they are done
    raise_mismatch : whether a difference that ``check`` finds is raised, or put into the result

    Raises
    ------
    InputError : there is no such task, or no input
    DeviceError : the device cannot run it, or stopped
    MismatchError : ``check`` found a difference
    """
    started = time.monotonic()
    pipeline = program.pipeline(task)
    if len(inputs) == 0:
        raise InputError("no inputs given", where=device.link.name)
    if not device.holds(program):
        device.load(program)
    last = machine_tasks(program, pipeline)[-1].name

    def one_done(name: str) -> None:
        if progress is not None and name == last:
            progress(1)

    machine = _Machine(device, program, check, raise_mismatch, one_done)
    with PowerMeter(device.power_w) as meter:
        done = run_steps(program, pipeline, inputs, machine)
    config = program.config
    return DeviceResult(
        device=device.link.name,
        task=pipeline.name,
        config=config.name,
        config_digest=f"{config.digest:016x}",
        clock_mhz=config.clock_mhz,
        outputs=done.outputs,
        cycles=tuple(sum(of_image) for of_image in zip(*machine.cycles.values(), strict=True)),
        seconds=tuple(sum(of_image) for of_image in zip(*machine.seconds.values(), strict=True)),
        host_seconds={name: sum(took) / len(took) for name, took in done.host_seconds.items()},
        counters=machine.counters,
        power_w=meter.watts,
        bit_exact=None if not check else machine.mismatch is None,
        mismatch=machine.mismatch,
        checked_values=machine.compared,
        wall_s=time.monotonic() - started,
    )


class _Machine:
    """The steps of a pipeline that the machine does, on the device: what they took, and whether they are right."""

    def __init__(
        self, device: Device, program: Program, check: bool, raise_mismatch: bool, done: Callable[[str], None]
    ) -> None:
        self.device, self.program, self.check, self.raise_mismatch = device, program, check, raise_mismatch
        self.done = done
        self.cycles: dict[str, list[int]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.counters: dict[str, dict[str, dict[str, int]]] = {}
        self.compared = 0
        self.mismatch: MismatchError | None = None

    def __call__(self, task: Task, inputs: Inputs, first: int) -> NDArray[np.uint8]:
        """Output buffers [B, output bytes]; see ``sim.steps``."""
        self.device.select(task.name)
        parts = [self._batch(task, inputs, n, first) for n in range(0, len(inputs), BATCH)]
        self.counters[task.name] = self.device.counters()
        return np.concatenate(parts)

    def _batch(self, task: Task, inputs: Inputs, begin: int, first: int) -> NDArray[np.uint8]:
        quantised = quantise(task, inputs.floats(begin, begin + BATCH))
        rows = []
        for buffer in pack(self.program.config, task, quantised):
            run = self.device.run(buffer.tobytes())
            rows.append(np.frombuffer(run.output, np.uint8))
            self.cycles.setdefault(task.name, []).append(run.cycles)
            self.seconds.setdefault(task.name, []).append(run.seconds)
            self.done(task.name)
        got = np.stack(rows)
        if self.check and self.mismatch is None:
            want = run_reference(self.program, task, quantised)
            try:
                self.compared += check_outputs(
                    self.program, task, got, want, Place(self.device.link.name, first + begin)
                )
            except MismatchError as error:
                if self.raise_mismatch:
                    raise
                self.mismatch = error
        return got
