"""`moevit evaluate`: a container's accuracy beside onnxruntime's on the same inputs."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.errors import InputError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moevit.pipeline import Pipeline
    from moevit.program import Program, Task
    from moevit.sim.inputs import Inputs

BATCH = 64  #: inputs that onnxruntime gets at a time, where the model lets us choose

EXAMPLES = """
\b
Examples:
  moevit evaluate vit.moevit --onnx vit.onnx --inputs test_images.npz
  moevit evaluate vit.moevit --onnx vit.onnx --inputs test_images.npz --limit 100 --json
"""


@json_command(name="evaluate", epilog=EXAMPLES)
@click.argument("container", type=click.Path(path_type=Path), metavar="FILE.moevit")
@click.option(
    "--onnx", "model", required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx",
    help="The model that the container was compiled from.",
)
@click.option(
    "--inputs", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="As for simulate. An array 'labels' [N] holds classes; one named after an output, or 'targets', what "
    "that output should be.",
)
@click.option("--task", metavar="NAME", help="The task to run; the first without it.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N inputs.")
@click.option("--labels", default="labels", show_default=True, metavar="KEY", help="Name of the array of labels.")
def command(
    output: Output,
    container: Path,
    model: Path,
    inputs: tuple[Path, ...],
    task: str | None,
    limit: int | None,
    labels: str,
) -> dict[str, Any]:
    """Compare a container's accuracy with onnxruntime's.

    Runs the isa back-end, which computes exactly what the hardware does, and the float model on the same
    inputs. Needs no C++ compiler.
    """
    started = time.perf_counter()
    from moevit.container import load
    from moevit.sim.inputs import read_inputs
    from moevit.sim.simulate import simulate

    program = load(container)
    chosen = program.pipeline(task)
    values = read_inputs({x.name: x.shape for x in chosen.inputs}, inputs).limited(limit)
    if labels != "labels" and labels not in values.extra:
        raise InputError(f"the inputs hold no array {labels!r} with one label each", mend="see --labels")
    _note_other_model(output, program, chosen, model)
    with output.progress("onnxruntime", len(values)) as advance:
        floats = run_onnx(model, chosen, values, advance)
    with output.progress("isa", len(values)) as advance:
        result = simulate(program, values, chosen.name, progress=advance)
    figures = figures_of(chosen, result.outputs, floats, values, labels)
    summary = _summary(figures)
    output.say(f"Task {chosen.name} on {program.config.name}: {len(values)} images")
    for name, values_of in figures.items():
        for figure, value in values_of.items():
            output.say(f"  {name:24} {figure:18} {value:.5f}")
    return summary | {
        "config": program.config.name,
        "config_digest": f"{program.config.digest:016x}",
        "task": chosen.name,
        "images": len(values),
        "outputs": figures,
        "isa_wall_s": result.wall_s,
        "host_ms": result.host_ms,
        "wall_s": time.perf_counter() - started,
    }


def figures_of(
    task: "Pipeline",
    got: Mapping[str, "NDArray"],
    want: Mapping[str, "NDArray"],
    inputs: "Inputs",
    labels: str = "labels",
) -> dict[str, dict[str, float]]:
    """By output: how far ``got`` is from the float model's ``want``, and both from what the inputs say of the truth."""
    only = len(task.outputs) == 1
    return {y.name: _figures(got[y.name], want[y.name], inputs, labels, y.name, only) for y in task.outputs}


def _figures(
    got: "NDArray", want: "NDArray", inputs: "Inputs", labels: str, name: str, only: bool
) -> dict[str, float]:
    """All that can be said about one output."""
    from moevit.sim import metrics

    out = metrics.distance(got, want)
    if got.ndim == 2 and got.shape[1] > 1:
        given = inputs.extra.get(labels)
        usable = given is not None and given.shape == (len(got),) and given.dtype.kind in "iu"
        out |= metrics.classification(got, want, given if usable else None)
    target = inputs.extra.get(name, inputs.extra.get("targets") if only else None)
    if target is not None:
        out |= metrics.against_target(got, want, target)
    return out


def _summary(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Over all outputs: the worst cosine and error, and each other figure where only one output has it."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for of_output in figures.values() for name in of_output):
        values = [of_output[name] for of_output in figures.values() if name in of_output]
        if name == "cosine":
            merged[name] = min(values)
        elif name in ("max_abs_err", "relative_rms_err"):
            merged[name] = max(values)
        elif len(values) == 1:
            merged[name] = values[0]
    return merged


def _note_other_model(output: Output, program: "Program", task: "Pipeline", model: Path) -> None:
    """Say if the container was compiled from another file."""
    if not model.is_file():
        raise ModelError("no such file", where=str(model))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    for source in program.sources:
        if source.task == task.name and source.sha256 != digest:
            output.note(f"note: the container was compiled from another {source.file} than {model}")


def run_onnx(model: Path, task: "Task | Pipeline", inputs: "Inputs", progress: Any) -> dict[str, "NDArray"]:
    """The float model's outputs [N, *shape] by name.

    Raises
    ------
    ModelError
        onnxruntime cannot load or run the model, or it is another one than the task's.
    """
    import numpy as np
    import onnxruntime

    from moevit.host import as_it_takes

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        from moevit.compiler.frontend.check import way_out

        raise ModelError(
            f"onnxruntime cannot load it: {_line(error)}", where=str(model), mend=way_out(model)
        ) from error
    entries = {entry.name: entry.shape for entry in session.get_inputs()}
    missing = {x.name for x in task.inputs} ^ set(entries)
    outputs = {y.name: y.shape for y in task.outputs}
    missing |= set(outputs) - {entry.name for entry in session.get_outputs()}
    if missing:
        raise ModelError(
            f"is not the model of task {task.name!r}: it differs in {', '.join(sorted(missing))}", where=str(model)
        )
    fixed = next((shape[0] for shape in entries.values() if shape and isinstance(shape[0], int)), None)
    names = list(outputs)
    parts = []
    for batch, count in _batches(inputs, fixed):
        try:
            got = session.run(names, as_it_takes(session, batch))
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run it: {_line(error)}", where=str(model)) from error
        shaped = zip(got, outputs.values(), strict=True)
        parts.append([(part if fixed == 1 else part[:count]).reshape(count, *shape) for part, shape in shaped])
        progress(count)
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _batches(inputs: "Inputs", fixed: int | None) -> Iterator[tuple[dict[str, "NDArray"], int]]:
    """Batches and how many of each are real; the last is filled up where the model's batch is fixed."""
    import numpy as np

    step = fixed or BATCH
    for first in range(0, len(inputs), step):
        batch = inputs.floats(first, first + step)
        count = len(next(iter(batch.values())))
        if fixed and count < fixed:
            batch = {k: np.concatenate([v, np.repeat(v[-1:], fixed - count, axis=0)]) for k, v in batch.items()}
        yield batch, count
