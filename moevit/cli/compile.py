"""`moevit compile`: ONNX models to a program container."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.cli.sensitivity import say_sensitivity, write_sensitivity
from moevit.errors import InputError, MoevitError
from moevit.pipeline import host_parts, machine_tasks

if TYPE_CHECKING:
    from moevit.compiler.driver import Compiled
    from moevit.compiler.ptq.sensitivity import Sensitivity
    from moevit.pipeline import Pipeline

_log = logging.getLogger(__name__)

_NAMED = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<path>.+)", re.DOTALL)
STEPS_PER_TASK = 5  #: steps that the compiler announces for each task; one more follows for all of them
SHOWN_NODES = 6  #: of the host's nodes with one reason
ONLY_TASK = "main"  #: name of the task when there is one model and it is given without a name


@json_command(name="compile")
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL.onnx...")
@click.option("--config", "config_name", required=True, metavar="NAME|FILE.json", help="The machine.")
@click.option(
    "--calib", "calibration", multiple=True, required=True, metavar="[NAME=]FILE.npz|DIR",
    help="Inputs that fix the scales of the activations: arrays named after the model's inputs, or pictures. "
    "Several are joined; NAME=... is for that task only.",
)
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), metavar="OUT.moevit",
    help="The container to write.",
)
@click.option(
    "--no-speculation", is_flag=True,
    help="Fetch an expert's weights only when it is known to have tokens: fewer bytes, more cycles.",
)
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
    help="The whole shape of an input whose extents the model leaves open.",
)
@click.option(
    "--sensitivity", "sensitivity_file", type=click.Path(path_type=Path), metavar="FILE.json",
    help="Measure what the quantisation of each stage alone costs, print the worst, and write all to this file, also "
    "where the container is refused for its accuracy.",
)
@click.option(
    "--strict", is_flag=True,
    help="Refuse a model with a node that the accelerator cannot do, in place of leaving it to the host.",
)
@click.option(
    "--accept-accuracy", is_flag=True,
    help="Write the container even if its answers on calibration inputs are not the model's.",
)
def command(
    output: Output,
    models: tuple[str, ...],
    config_name: str,
    calibration: tuple[str, ...],
    target: Path,
    no_speculation: bool,
    shapes: tuple[str, ...],
    sensitivity_file: Path | None,
    strict: bool,
    accept_accuracy: bool,
) -> dict[str, Any]:
    """Turn ONNX models into a program container.

    Several models become tasks of one container, and what they have in common is stored once; give each a
    name (seg=SEG.onnx depth=DEPTH.onnx). Nodes that the accelerator cannot do are left to the host, where onnxruntime
    computes them; they are listed with reasons. At the end some calibration inputs are run in the machine's integers
    and in float: if the answers have little in common it is an error. The container is written whole or not at all.
    """
    started = time.perf_counter()
    from moevit.config import get_config

    tasks = parse_models(models)
    data = parse_calibration(calibration, tasks)
    fixed = parse_shapes(shapes)
    sources = [*tasks.values(), *(path for paths in data.values() for path in paths)]
    _check_target(target, sources)
    if sensitivity_file is not None:
        _check_target(sensitivity_file, sources, "--sensitivity")
        if sensitivity_file.absolute() == target.absolute():
            raise InputError("is the container", where=f"--sensitivity {sensitivity_file}", mend="choose another name")
    config = get_config(config_name)

    from moevit import container
    from moevit.compiler.driver import compile_model
    from moevit.compiler.ptq.accuracy import need_acceptable
    from moevit.sim.inputs import read_inputs

    with output.progress("compiling", STEPS_PER_TASK * len(tasks) + 1) as advance:
        done = _Steps(advance)
        compiled = compile_model(
            tasks, config, lambda task, wanted: read_inputs(wanted, data[task]).floats(),
            speculate=not no_speculation, strict=strict, shapes=fixed, progress=done,
            accept_accuracy=accept_accuracy or sensitivity_file is not None,
        )  # fmt: skip
    errors: dict[str, list[Sensitivity]] = {}
    if sensitivity_file is not None:
        with output.progress("sensitivity") as advance:
            errors = compiled.sensitivity(lambda stage: advance(1))
        write_sensitivity(sensitivity_file, errors)
        if not accept_accuracy:  # a program that is refused is what one wants to know this of
            need_acceptable(compiled.accuracy)
    target.parent.mkdir(parents=True, exist_ok=True)
    container.save(compiled.program, target)
    seconds = time.perf_counter() - started
    result = summary(compiled) | {"output": target, "strict": strict, "wall_s": round(seconds, 3)}
    _say(output, result, compiled, target)
    if sensitivity_file is not None:
        result["sensitivity"] = sensitivity_file
        say_sensitivity(output, errors)
        output.say(f"{sensitivity_file}: all stages")
    return result


def summary(compiled: "Compiled") -> dict[str, Any]:
    """What `--json` says about a compilation, but for the time and the file.

    ``task_bytes`` are, of each task, the weights and constants that it reads, and those that no other task reads.
    """
    from moevit.cli.listing import task_bytes
    from moevit.compiler.ptq.accuracy import as_json

    program = compiled.program
    return {
        "config": program.config.name,
        "config_digest": f"{program.config.digest:016x}",
        "tasks": list(program.names),
        "instructions": compiled.instructions,
        "weight_bytes": compiled.weight_bytes,
        "shared_bytes": compiled.shared_bytes,
        "task_bytes": task_bytes(program),
        "peak_activation_bytes": compiled.peak_activation_bytes,
        "accelerated_macs": compiled.accelerated_macs,
        "host_macs": compiled.host_macs,
        "host_nodes": [
            {"task": task} | asdict(node) for task, nodes in compiled.host_nodes.items() for node in nodes
        ],
        "calibration_accuracy": as_json(compiled.accuracy),
        "seconds": {step: round(seconds, 4) for step, seconds in compiled.seconds.items()},
    }


def parse_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Task names and model files; without a name, ``main`` for a single model, else the file's stem.

    Raises
    ------
    InputError
        A file does not exist, or two tasks have one name.
    """
    out: dict[str, Path] = {}
    for argument in arguments:
        name, path = _split(argument)
        if name is None:
            name = ONLY_TASK if len(arguments) == 1 else path.stem
        if name in out:
            raise InputError(
                f"two tasks are named {name!r}", where=argument, mend="name them: NAME=MODEL.onnx"
            )
        out[name] = path
    return out


def parse_calibration(arguments: Sequence[str], tasks: Mapping[str, Path]) -> dict[str, list[Path]]:
    """The calibration files of each task: those given for it, else those given for all.

    Raises
    ------
    InputError
        A file is given for a task that there is not, or a task has none.
    """
    named: dict[str, list[Path]] = {}
    common: list[Path] = []
    for argument in arguments:
        name, path = _split(argument)
        if name is not None and name not in tasks:
            raise InputError(
                f"there is no task {name!r}",
                where=f"--calib {argument}",
                mend=f"choose one of {', '.join(tasks)}",
            )
        (common if name is None else named.setdefault(name, [])).append(path)
    out = {task: named.get(task, common) for task in tasks}
    for task, paths in out.items():
        if not paths:
            raise InputError(f"task {task!r} has no calibration data", mend=f"add --calib {task}=FILE.npz")
        for path in paths:
            if not path.exists():
                raise InputError("no such file or folder", where=f"--calib {path}")
    return out


def parse_shapes(arguments: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Input names and shapes, from ``NAME=1x3x224x224``. Raises InputError for what is none."""
    out: dict[str, tuple[int, ...]] = {}
    for argument in arguments:
        name, _, extents = argument.rpartition("=")
        parts = extents.lower().split("x")
        if not name or not all(part.isdecimal() and len(part) < 10 for part in parts):
            raise InputError(
                "is no shape of an input", where=f"--shape {argument}", mend="write NAME=1x3x224x224, the batch first"
            )
        out[name] = tuple(int(part) for part in parts)
    return out


def _split(argument: str) -> tuple[str | None, Path]:
    """``NAME=FILE`` or ``FILE``; a file that is called like that counts as a file."""
    match = _NAMED.fullmatch(argument)
    if match is None or Path(argument).exists():
        return None, Path(argument)
    return match["name"], Path(match["path"])


def _check_target(target: Path, sources: Sequence[Path], option: str = "-o") -> None:
    """Refuse before the work what would fail or destroy something after it."""
    if target.is_dir():
        raise InputError("is a folder", where=f"{option} {target}", mend="name a file in it")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise InputError("would overwrite an input", where=f"{option} {target}", mend="choose another name")
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise MoevitError("is no folder", where=f"{option} {target}: {folder}", mend="choose another place")


class _Steps:
    """Advances a progress bar: the compiler says when a step starts, so one is done when the next does."""

    def __init__(self, advance: Any) -> None:
        self.advance, self.begun = advance, False

    def __call__(self, step: str) -> None:
        _log.info("%s", step)
        if self.begun:
            self.advance(1)
        self.begun = True


def _say_host(output: Output, compiled: "Compiled", pipeline: "Pipeline") -> None:
    """Which nodes are the host's, and why: those of equal reasons on a line."""
    nodes = compiled.host_nodes[pipeline.name]
    if not nodes:
        output.say("  all nodes on the accelerator")
        return
    parts = host_parts(compiled.program, pipeline)
    steps = " → ".join(step.kind for step in pipeline.steps)
    macs = sum(part.macs for part in parts)
    output.say(f"  {len(nodes)} nodes with {macs:,} MACs on the host: {steps}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        reasons.setdefault((node.reason, node.way_out), []).append(f"{node.op} '{node.name}'")
    for (reason, way_out), names in reasons.items():
        shown = ", ".join(names[:SHOWN_NODES]) + (f" and {len(names) - SHOWN_NODES} more" * (len(names) > SHOWN_NODES))
        output.say(f"    {shown}: {reason} ({way_out})")


def _say_accuracy(output: Output, compiled: "Compiled") -> None:
    """How near the integers come to the float model; a program that is not what the user named is named too."""
    for task, outputs in compiled.accuracy.items():
        for name, a in outputs.items():
            which = f"'{name}'" if len(compiled.accuracy) == 1 else f"'{name}' of {task}"
            output.say(
                f"  output {which} on calibration inputs: cosine {a.cosine:.5f}, relative RMS error "
                f"{a.relative_rms_err:.2%}" + ("" if a.acceptable else ": not the model's answers, but accepted")
            )


def _say(output: Output, result: Mapping[str, Any], compiled: "Compiled", target: Path) -> None:
    program = compiled.program
    for name in program.names:
        pipeline = program.pipeline(name)
        tasks = machine_tasks(program, pipeline)
        source = next(s.file for s in program.sources if s.task == name)
        macs, instructions = sum(t.macs for t in tasks), sum(t.instructions for t in tasks)
        output.say(f"{source}: task {name}, {macs:,} MACs in {instructions} instructions")
        _say_host(output, compiled, pipeline)
    _say_accuracy(output, compiled)
    output.say(f"  weights and constants {result['weight_bytes']:,} bytes")
    if result["shared_bytes"]:
        output.say(f"  shared by several readers: {result['shared_bytes']:,} bytes are stored once")
    if len(program.names) > 1:
        own = ", ".join(f"{task} {sizes['own']:,}" for task, sizes in result["task_bytes"].items())
        output.say(f"  bytes of one task only: {own}")
    there = program.config.activation_words * program.config.columns
    output.say(f"  activation memory: {result['peak_activation_bytes']:,} of {there:,} bytes at most")
    output.say(f"{target}: {target.stat().st_size:,} bytes for {result['config']}, {result['wall_s']:.1f} s")
