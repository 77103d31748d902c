"""The command: runs the tasks, collects what there is to say, and writes page, plots, tables and JSON."""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command, to_json
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.program import Program
    from moevit.sim.inputs import Inputs
    from moevit.sim.result import Result

EXAMPLES = """
\b
Examples:
  moevit report vit.moevit --inputs images.npz --onnx vit.onnx -o build/report
  moevit report m3vit.moevit --inputs scenes.npz --onnx seg=seg.onnx --onnx depth=depth.onnx -o build/report
  moevit report m3vit.moevit --backend cycle -o build/report
"""


@json_command(name="report", epilog=EXAMPLES)
@click.argument("container", type=click.Path(path_type=Path), metavar="FILE.moevit")
@click.option(
    "--inputs", multiple=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="As for simulate and evaluate. Without any only the cycle back-end can run, with experts used evenly.",
)
@click.option(
    "--onnx", "models", multiple=True, metavar="[TASK=]MODEL.onnx",
    help="The model of a task: adds its accuracy, and onnxruntime's time on this machine's CPU.",
)
@click.option(
    "--power", "power_files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Watts in place of the estimate: reports/power.txt of a Vivado build, or what `moevit run --json` printed on "
    "a board with a sensor, for each task.",
)  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task; may be given several times.")
@click.option(
    "--backend", type=click.Choice(["rtl", "cycle"]), default="rtl", show_default=True,
    help="rtl: the Verilog, cycle by cycle; cycle: the model of its timing.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=1, show_default=True, help="Images that are timed, of each task."
)
@click.option(
    "--accuracy-limit", type=click.IntRange(min=1), default=256, show_default=True,
    help="Images that accuracy is measured on.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads for onnxruntime; all without it.", metavar="N"
)
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where report.html, report.json, the plots and the tables go; made if it does not exist.",
)  # fmt: skip
def command(
    output: Output,
    container: Path,
    inputs: tuple[Path, ...],
    models: tuple[str, ...],
    power_files: tuple[Path, ...],
    tasks: tuple[str, ...],
    backend: str,
    limit: int,
    accuracy_limit: int,
    threads: int | None,
    folder: Path,
) -> dict[str, Any]:
    """Write a report of a container: what its tasks take, and how that compares.

    Latency is simulated, energy estimated from what the simulation counts, unless --power has watts; published
    accelerators stand beside both with their sources; with --onnx, onnxruntime on this machine's CPU too. The page
    needs no network.
    """
    started = time.perf_counter()
    from moevit.cli.report.collect import Subject, collect
    from moevit.cli.report.page import page
    from moevit.cli.report.plots import draw_all
    from moevit.cli.report.power import powers
    from moevit.container import load

    program = load(container)
    chosen = [program.pipeline(name).name for name in tasks] or list(program.names)
    files = _models(models, program)
    if backend == "rtl" and not inputs:
        raise InputError("Missing option '--inputs'", where="--backend rtl", mend="or choose --backend cycle")
    if files and not inputs:
        raise InputError("accuracy and the CPU's time need inputs", where="--onnx", mend="add --inputs")
    watts = powers(program, power_files)
    values = {name: _inputs(program, name, inputs) for name in chosen if inputs}
    folder.mkdir(parents=True, exist_ok=True)

    results, timelines = {}, {}
    for name in chosen:
        output.note(f"{name}: simulating ({backend}) …")
        results[name], timelines[name] = _run(output, program, name, values.get(name), backend, limit)
    subject = Subject(container, program, {n: p for n, p in files.items() if n in chosen}, values, results, watts)
    report = to_json(
        collect(subject, accuracy_images=accuracy_limit, threads=threads or os.cpu_count() or 1, announce=output.note)
    )
    for name, spans in timelines.items():
        report["tasks"][name]["timeline"] = spans
    output.note("drawing …")
    plots = draw_all(report, folder)
    _write_tables(folder, report)
    _write(folder / "report.json", json.dumps(report, indent=1) + "\n")
    _write(folder / "report.html", page(report, plots))
    _say(output, report)
    seconds = round(time.perf_counter() - started, 3)
    output.say(f"Report: {folder / 'report.html'}    ({seconds:.0f} s)")
    return report | {"files": {"page": folder / "report.html", "json": folder / "report.json"}, "wall_s": seconds}


def _models(arguments: Sequence[str], program: "Program") -> dict[str, Path]:
    """The ONNX file of each task. Raises InputError for a task that there is not, or a file that is not there."""
    from moevit.cli.compile import parse_models

    if len(program.names) == 1 and len(arguments) == 1 and "=" not in arguments[0]:
        files = {program.names[0]: Path(arguments[0])}
    else:
        files = parse_models(arguments) if arguments else {}
    for name, path in files.items():
        program.pipeline(name)
        if not path.is_file():
            raise InputError("no such file", where=f"--onnx {path}")
    return files


def _inputs(program: "Program", name: str, files: Sequence[Path]) -> "Inputs":
    from moevit.sim.inputs import read_inputs

    return read_inputs({x.name: x.shape for x in program.pipeline(name).inputs}, files)


def _run(
    output: Output, program: "Program", name: str, inputs: "Inputs | None", backend: str, limit: int
) -> tuple["Result", list[dict[str, Any]]]:
    """A task's result, and of rtl its timeline."""
    from moevit.cli.report.spans import read_spans
    from moevit.pipeline import machine_tasks
    from moevit.sim import verilate
    from moevit.sim.simulate import simulate

    if backend == "cycle":
        return simulate(program, inputs, name, backend=backend, limit=None if inputs is None else limit), []
    verilate.build(program.config, announce=output.note)
    with tempfile.TemporaryDirectory(prefix="moevit-report-") as folder:
        trace = Path(folder) / "trace.json"
        parts = machine_tasks(program, program.pipeline(name))
        if len(parts) > 1:  # a timeline is of one program
            return simulate(program, inputs, name, backend=backend, limit=limit), []
        result = simulate(program, inputs, name, backend=backend, limit=limit, timeline=trace)
        assert result.cycles is not None
        return result, read_spans(trace, parts[0], result.cycles[0])


def _write_tables(folder: Path, report: Mapping[str, Any]) -> None:
    from moevit.cli.report import tables

    for table in tables.general_tables(report):
        _write(folder / f"{table.name}.csv", table.csv())
    for name, task in report["tasks"].items():
        for table in tables.task_tables(task):
            _write(folder / f"{name}-{table.name}.csv", table.csv())


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _say(output: Output, report: Mapping[str, Any]) -> None:
    from moevit.cli.report.machines import METHOD_NAMES

    for name, task in report["tasks"].items():
        simulation, total = task["simulation"], task["energy"]["total_joules"]
        own = task["energy"]["accelerator_joules"]
        alone = f"; accelerator and its DRAM traffic alone {1000 * own['typical']:.3g}" if own else ""
        output.say(
            f"{name} on {report['config']['name']} at {report['config']['clock_mhz']:g} MHz: "
            f"{simulation['latency_ms']:.3f} ms ({METHOD_NAMES[simulation['backend']]}), "
            f"{1000 * total['typical']:.3g} mJ ({METHOD_NAMES[task['energy']['method']]}, "
            f"{1000 * total['low']:.3g} … {1000 * total['high']:.3g}{alone})"
        )
        for step in task["host"]:
            output.say(f"  {step['name']} on this CPU: {step['host_ms']:.3f} ms (measured), not in the above")
        for run in task["cpu"]:
            energy = f", {1000 * run['joules']:.3g} mJ" if run["joules"] else ", energy counters not readable"
            output.say(f"  onnxruntime {run['precision']} on this CPU: {run['latency_ms']:.3f} ms (measured){energy}")
        if task["cpu_missing"]:
            output.say(f"  int8 on this CPU: {task['cpu_missing']}")
