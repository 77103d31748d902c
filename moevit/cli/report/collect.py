"""Everything that a report says, as plain values: the page and its plots show these and nothing else."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moevit import tools
from moevit.boards.devices import BOARDS
from moevit.boards.resources import estimate as estimate_resources
from moevit.cli import listing
from moevit.cli.groups import EXPERTS, group_layers
from moevit.cli.report import cpu, roofline
from moevit.cli.report.machines import machine_rows
from moevit.config import AcceleratorConfig
from moevit.energy.activity import activity
from moevit.energy.constants import CONSTANTS
from moevit.energy.estimate import estimate
from moevit.energy.power import Power, replaced
from moevit.energy.published import PUBLISHED
from moevit.energy.validate import validate
from moevit.pipeline import Pipeline, machine_tasks
from moevit.program import MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_VALUE, Program, Task
from moevit.sim.dram import DramModel

if TYPE_CHECKING:
    from moevit.sim.inputs import Inputs
    from moevit.sim.result import Result

SCHEMA = 2  #: of report.json

#: what how a figure came about is called, with what that means
METHODS = {
    "rtl": "simulated: the generated Verilog under Verilator, exact cycles, with the DRAM model below",
    "cycle": "simulated: the timing model, within a few percent of the Verilog, with the DRAM model below",
    "estimated": "estimated: events counted in the simulation, times energy per event, with the range of the constants",
    "vivado": "Vivado's power report: its watts of the chip times the simulated latency, and the estimate of the DRAM",
    "measured": "onnxruntime: measured on this machine in the same run; energy of ours: watts of the board's sensor "
    "times the latency on the board",
    "published": "as its paper or a later paper's table states it; operations and boundaries differ between papers",
}


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    models : the ONNX file of each task that has one here, for accuracy and the CPU's time
    inputs : of each task
    results : of a timed back-end, by task
    powers : what replaces the estimated energy, by task
    """

    container: Path
    program: Program
    models: Mapping[str, Path]
    inputs: Mapping[str, "Inputs"]
    results: Mapping[str, "Result"]
    powers: Mapping[str, Power] = field(default_factory=dict)


def collect(subject: Subject, *, accuracy_images: int, threads: int, announce: Any) -> dict[str, Any]:
    """The report's values; what takes long is announced."""
    program = subject.program
    config, digest = program.config.to_dict(), f"{program.config.digest:016x}"
    tasks = {name: _task(subject, name, accuracy_images, threads, announce) for name in subject.results}
    return {
        "schema": SCHEMA,
        "container": subject.container.name,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "config": config,
        "config_digest": digest,
        "macs_per_cycle": program.config.macs_per_cycle,
        "sources": [asdict(source) for source in program.sources],
        "tools": dict(tools.tool_versions()),
        "machine": {"processor": cpu.processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "methods": METHODS,
        "resources": resources(program.config),
        "tasks": tasks,
        "machines": machine_rows(config, digest, tasks, PUBLISHED),
        "energy_constants": [asdict(constant) for constant in CONSTANTS],
        "energy_validation": [check.as_dict() for check in validate()],
    }  # fmt: skip


def resources(config: AcceleratorConfig) -> dict[str, Any]:
    """What the machine takes, and of which device."""
    board = next((b for b in BOARDS.values() if b.device.part == config.device), None)
    taken = asdict(estimate_resources(config))
    return {
        "method": "Scaled from one open synthesis; moevit build --synth maps the configuration itself",
        "estimate": taken,
        "device": None if board is None else asdict(board.device),
        "board": None if board is None else board.name,
    }


def _task(subject: Subject, name: str, accuracy_images: int, threads: int, announce: Any) -> dict[str, Any]:
    program, result = subject.program, subject.results[name]
    pipeline = program.pipeline(name)
    parts = machine_tasks(program, pipeline)
    assert result.cycles is not None and result.layers is not None
    cycles = sum(result.cycles) / len(result.cycles)
    queues = [_mean_queues(part, result) for part in parts]
    counted = activity(
        program.config,
        [(program.instructions(part), _by_gate(part, of)) for part, of in zip(parts, queues, strict=True)],
        macs=result.macs, cycles=cycles, dram_bytes=result.dram_bytes,
    )  # fmt: skip
    taken = estimate_resources(program.config)
    energy = estimate(counted, clock_mhz=program.config.clock_mhz, luts=taken.lut)
    power = subject.powers.get(name)
    dram = result.dram or DramModel.default(program.config)
    out: dict[str, Any] = {
        "simulation": {key: value for key, value in result.as_dict().items() if key not in ("layers", "experts")},
        "cycles": cycles,
        "activity": counted.as_dict(),
        "energy": (energy if power is None else replaced(energy, power)).as_dict(),
        "energy_estimate": energy.as_dict(),
        "power": None if power is None else power.as_dict(),
        "roof": roofline.roof(program.config, dram.bytes_per_cycle).as_dict(),
        "layers": [
            layer
            for part, of in zip(parts, queues, strict=True)
            for layer in _layers(program, part, result, of, f"{part.name}: " if len(parts) > 1 else "")
        ],
        "experts": [gate for part in parts for gate in _experts(part, result)],
        "memory": _memory(program, longest(parts)),
        "host": [asdict(step) for step in result.steps if step.host_ms is not None],
        "cpu": [],
        "cpu_missing": None,
        "accuracy": None,
    }
    if name in subject.models:
        announce(f"{name}: onnxruntime on this machine's CPU")
        feeds = subject.inputs[name].floats(0, 1)
        runs, out["cpu_missing"] = cpu.measure(subject.models[name], feeds, threads)
        out["cpu"] = [run.as_dict() for run in runs]
        announce(f"{name}: accuracy of int8 against float")
        out["accuracy"] = _accuracy(subject, pipeline, accuracy_images)
    return out


def longest(parts: Sequence[Task]) -> Task:
    """Of a pipeline's programs the one with most to do, which stands for all where only one can be shown."""
    return max(parts, key=lambda part: part.macs)


def _mean_queues(task: Task, result: "Result") -> dict[str, list[float]]:
    """By the name of a gate's scores: tokens of each expert, on average over the images."""
    out: dict[str, list[float]] = {}
    for layer in task.layers:
        if layer.kind == "route":
            images = result.experts[layer.name]
            out[layer.outputs[0]] = [sum(counts) / len(images) for counts in zip(*images, strict=True)]
    return out


def _by_gate(task: Task, queues: Mapping[str, Sequence[float]]) -> dict[int, Sequence[float]]:
    """The same by the number of each gate's instruction."""
    return {
        number: queues[layer.outputs[0]]
        for layer in task.layers
        if layer.kind == "route"
        for number in layer.instructions
    }


def _layers(
    program: Program, task: Task, result: "Result", queues: Mapping[str, Sequence[float]], prefix: str
) -> list[dict[str, Any]]:
    """A row for each group of layers, in the order of execution, and one for what no layer accounts for.

    The result's names begin with ``prefix`` where it has several programs.
    """
    assert result.layers is not None
    instructions = program.instructions(task)
    mine = [layer for layer in result.layers if layer.name.startswith(prefix)]
    measured = {layer.name.removeprefix(prefix): layer.cycles for layer in mine}
    entries = {entry.name: entry for entry in listing.grouped_layers(program, task)}
    out = []
    for group in group_layers(task):
        cycles = sum(measured.pop(layer.name) for layer in group.layers)
        point = roofline.point(program.config, group, instructions, queues, cycles)
        point = replace(point, name=f"{prefix}{point.name}")
        entry = entries[group.name]
        busy = point.macs / (cycles * program.config.macs_per_cycle) if cycles > 0 else None
        out.append(
            point.as_dict()
            | {"role": EXPERTS if group.kind == EXPERTS else entry.role, "shape": entry.shape}
            | {"mac_utilisation": busy}
        )
    rest = sum(measured.values())
    ending = {"name": f"{prefix}output", "kind": "output", "role": "results out", "macs": 0, "cycles": rest}
    return [*out, ending]


def _experts(task: Task, result: "Result") -> list[dict[str, Any]]:
    """By gate: tokens of each expert, the fewest, the mean and the most of an image, and how many experts had any."""
    out = []
    for layer in task.layers:
        if layer.kind != "route":
            continue
        images = result.experts[layer.name]
        columns = list(zip(*images, strict=True))
        out.append(
            {
                "gate": layer.name,
                "tokens": [sum(c) / len(images) for c in columns],
                "fewest": [min(c) for c in columns],
                "most": [max(c) for c in columns],
                "used": sum(sum(n > 0 for n in counts) for counts in images) / len(images),
            }
        )
    return out


def _memory(program: Program, task: Task) -> dict[str, Any]:
    """Tensors by place and time, and how much of each memory is used."""
    kinds = (MEMORY_ACTIVATION, MEMORY_KEY, MEMORY_VALUE)
    tensors = [asdict(t) for t in listing.tensors(program, task) if t.memory in kinds]
    keys = ("name", "shape", "dtype", "memory", "first_word", "last_word", "bytes", "written", "read")
    use = listing.memory_use(program, task)
    return {
        "tensors": [{key: tensor[key] for key in keys} for tensor in tensors],
        "instructions": task.instructions,
        "activation_words": use.activation_words,
        "key_value_words": use.key_value_words,
        "ring_words": use.ring_words,
        "columns": program.config.columns,
        "operand_word_bytes": program.config.operand_word_bytes,
    }


def _accuracy(subject: Subject, task: Pipeline, images: int) -> dict[str, Any]:
    """int8 against float on the same images, and both against the truth where the inputs hold it."""
    from moevit.cli.evaluate import figures_of, run_onnx
    from moevit.sim.simulate import simulate

    inputs = subject.inputs[task.name].limited(images)
    floats = run_onnx(subject.models[task.name], task, inputs, lambda n: None)
    ours = simulate(subject.program, inputs, task.name).outputs
    figures = figures_of(task, ours, floats, inputs)
    return {"images": len(inputs), "outputs": figures}
