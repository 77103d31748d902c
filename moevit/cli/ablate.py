"""`moevit ablate`: each technique of the machine against the plain way."""

import importlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command, to_json
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.ablate.result import Technique
    from moevit.ablate.subject import Subject
    from moevit.config import AcceleratorConfig
    from moevit.program import Program

_log = logging.getLogger(__name__)

TECHNIQUES = ("attention", "softmax", "activation", "unified", "experts")
ON_RTL = {"attention", "unified", "experts"}  #: those that need the verilated machine
FILES = {"json": "ablation.json", "png": "ablation.png", "svg": "ablation.svg"}

EXAMPLES = """
\b
Examples:
  moevit ablate seg.onnx --config tiny --calib calib.npz --inputs test.npz -o build/ablation
  moevit ablate vit.onnx --config tiny --calib calib.npz --inputs test.npz --only attention,softmax -o out --json
"""


@json_command(name="ablate", epilog=EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--config", "config_name", required=True, metavar="NAME|FILE.json", help="The machine.")
@click.option(
    "--calib", "calibration", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
    help="Inputs that fix the scales of the activations, as for compile.",
)
@click.option(
    "--inputs", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="Inputs that values are measured on, with labels or targets if there are any, as for evaluate. Cycles are "
    "measured on the first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N inputs.")
@click.option("--only", metavar="A,B,...", help=f"Only some of {', '.join(TECHNIQUES)}.")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help=f"Where {', '.join(FILES.values())} go; made if it does not exist.",
)  # fmt: skip
def command(
    output: Output,
    model: Path,
    config_name: str,
    calibration: tuple[Path, ...],
    inputs: tuple[Path, ...],
    limit: int | None,
    only: str | None,
    folder: Path,
) -> dict[str, Any]:
    """Compare each technique of the machine with the plain way.

    Where the machine can do both it runs both, on the Verilog or with the values it computes; every figure says
    where it comes from: rtl, isa, reference, or computed. The exit status is 1 if ways that must agree do not.
    """
    started = time.perf_counter()
    chosen = parse_only(only)
    from moevit.config import get_config

    config = get_config(config_name)
    folder.mkdir(parents=True, exist_ok=True)

    from moevit.ablate.plot import draw
    from moevit.ablate.show import LEGEND, table
    from moevit.sim.dram import DramModel

    with output.progress("compiling", None):
        subject = _subject(model, config, calibration, inputs, limit)
    if ON_RTL & set(chosen):
        from moevit.sim import verilate

        verilate.build(config, announce=output.note)
    with output.progress("comparing", len(chosen)) as advance:
        techniques = []
        for name in chosen:
            techniques.append(_run(name, subject))
            advance(1)
    for technique in techniques:
        for line in table(technique):
            output.say(line)
        output.say()
        for what, holds in technique.checks.items():
            if not holds:
                output.fail(f"{technique.key}, {what}: no")
    dram = DramModel.default(config)
    files = {kind: folder / name for kind, name in FILES.items()}
    result = {
        "model": model.name,
        "config": config.name,
        "config_digest": f"{config.digest:016x}",
        "images": len(subject.inputs),
        "dram": dram.as_dict(),
        "techniques": {technique.key: technique.as_dict() for technique in techniques},
        "files": files,
        "wall_s": round(time.perf_counter() - started, 3),
    }
    files["json"].write_text(json.dumps(to_json(result), indent=2, allow_nan=False) + "\n")
    shown = [technique for technique in techniques if technique.applicable]
    draw([files["png"], files["svg"]], shown, f"{model.name} on {config.name}")
    output.say(LEGEND)
    output.say(f"DRAM of the RTL: {dram}.")
    output.say("Files: " + ", ".join(str(path) for path in files.values()))
    return result


def parse_only(only: str | None) -> tuple[str, ...]:
    """The techniques that are asked for, in the usual order. Raises InputError for a name that is none."""
    if only is None:
        return TECHNIQUES
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in TECHNIQUES:
            raise InputError(f"no technique {name!r}", where="--only", mend=f"choose from {', '.join(TECHNIQUES)}")
    if not names:
        raise InputError("names no technique", where="--only", mend=f"choose from {', '.join(TECHNIQUES)}")
    return tuple(name for name in TECHNIQUES if name in names)


def _subject(
    model: Path,
    config: "AcceleratorConfig",
    calibration: Sequence[Path],
    inputs: Sequence[Path],
    limit: int | None,
) -> "Subject":
    """Compile the model and read its data."""
    from moevit.ablate.subject import Subject
    from moevit.cli.evaluate import run_onnx
    from moevit.compiler.driver import compile_model
    from moevit.sim.inputs import read_inputs

    def compiled(**options: Any) -> "Program":
        return compile_model(
            {"main": model}, config, lambda task, shapes: read_inputs(shapes, calibration).floats(), **options
        ).program

    program = compiled()
    task = program.tasks[0]
    values = read_inputs({x.name: x.shape for x in task.inputs}, inputs).limited(limit)
    floats = run_onnx(model, task, values, lambda count: None)
    return Subject(program, values, floats, compiled, _log.info)


def _run(name: str, subject: "Subject") -> "Technique":
    from moevit.ablate.result import NotApplicableError, Technique

    module = importlib.import_module(f"moevit.ablate.{name}")
    try:
        technique = module.run(subject)
    except NotApplicableError as reason:
        return Technique(name, module.TITLE, reason=str(reason))
    assert isinstance(technique, Technique)
    return technique
