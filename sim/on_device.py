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
from moevit.program import Program
from moevit.sim.check import Place, check_outputs, output_values
from moevit.sim.inputs import Inputs, pack, quantise
from moevit.sim.reference import decode_output, run_reference

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
    outputs: dict[str, NDArray[np.float32]]  #: by output name: [B, *shape]
    cycles: tuple[int, ...]  #: by the machine's own count
    seconds: tuple[float, ...]  #: from the start bit to the interrupt, as the host sees it
    counters: dict[str, dict[str, int]]  #: by stage and cause, of the last input
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

    Parameters
    ----------
    device : an open one
    program, inputs : what to run
    task : name of the task; the first when None
    check : compare every output with the NumPy reference, byte for byte
    progress : called with the number of inputs as they are done
    raise_mismatch : whether a difference that ``check`` finds is raised, or put into the result

    Raises
    ------
    InputError : there is no such task, or no input
    DeviceError : the device cannot run it, or stopped
    MismatchError : ``check`` found a difference
    """
    started = time.monotonic()
    chosen = program.task(task)
    if len(inputs) == 0:
        raise InputError("no inputs given", where=device.link.name)
    if not device.holds(program):
        device.load(program)
    device.select(chosen.name)
    runs, parts = [], []
    compared, mismatch = 0, None
    with PowerMeter(device.power_w) as meter:
        for first in range(0, len(inputs), BATCH):
            quantised = quantise(chosen, inputs.floats(first, first + BATCH))
            buffers = pack(program.config, chosen, quantised)
            mine = []
            for buffer in buffers:
                mine.append(device.run(buffer.tobytes()))
                if progress is not None:
                    progress(1)
            runs += mine
            got = np.frombuffer(b"".join(run.output for run in mine), np.uint8).reshape(len(mine), chosen.output_bytes)
            parts.append(got)
            if check and mismatch is None:
                want = run_reference(program, chosen, quantised)
                try:
                    compared += check_outputs(program, chosen, got, want, Place(device.link.name, first))
                except MismatchError as error:
                    if raise_mismatch:
                        raise
                    mismatch = error
        counters = device.counters()
    data = np.concatenate(parts)
    config = program.config
    return DeviceResult(
        device=device.link.name,
        task=chosen.name,
        config=config.name,
        config_digest=f"{config.digest:016x}",
        clock_mhz=config.clock_mhz,
        outputs={y.name: decode_output(chosen, y.name, output_values(chosen, y, data, config)) for y in chosen.outputs},
        cycles=tuple(run.cycles for run in runs),
        seconds=tuple(run.seconds for run in runs),
        counters=counters,
        power_w=meter.watts,
        bit_exact=None if not check else mismatch is None,
        mismatch=mismatch,
        checked_values=compared,
        wall_s=time.monotonic() - started,
    )
