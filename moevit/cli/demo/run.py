"""The command: compiles, runs, compares, and hands what was found to `say` and `picture`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from moevit.cli.output import Output, json_command
from moevit.errors import MismatchError

if TYPE_CHECKING:
    from moevit.cli.demo.report import Run
    from moevit.config import AcceleratorConfig
    from moevit.models.scenes import SceneSet
    from moevit.program import Program
    from moevit.sim.inputs import Inputs
    from moevit.sim.result import Result

TASKS = ("seg", "depth")
DEFAULT_SCENES = (0, 5, 8, 9)  #: that run on the rtl back-end: some with two items or more, and one that goes wrong
TURN = 2  #: scenes of a task before the other has its turn; they run at the same time
MAX_LOSS = {"seg": 0.01, "depth": 0.01}  #: of mean IoU, and in metres of RMSE, against float


@json_command(name="demo")
@click.option("--config", "config_name", default="tiny", show_default=True, metavar="NAME|FILE.json")
@click.option(
    "--scene", "scenes", multiple=True, type=click.IntRange(min=0), default=DEFAULT_SCENES, show_default=True,
    help="Number of a scene that runs on the rtl back-end; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Scenes of the isa back-end; all without it.")
@click.option(
    "-o", "--output", "folder", default=Path("build/demo"), show_default=True, metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False), help="Where the container and the picture go.",
)  # fmt: skip
def command(
    output: Output, config_name: str, scenes: tuple[int, ...], limit: int | None, folder: Path
) -> dict[str, Any]:
    """Compile the shipped two-task model, run real scenes on both simulators, compare them, and draw a picture."""
    from moevit import container
    from moevit.cli.demo import measure, say
    from moevit.cli.demo.picture import draw
    from moevit.cli.demo.report import Report, TaskReport
    from moevit.config import get_config
    from moevit.models.scenes import load_scenes, m3vit_path
    from moevit.sim import verilate
    from moevit.sim.inputs import Inputs, read_inputs

    started = time.perf_counter()
    config = get_config(config_name)
    folder.mkdir(parents=True, exist_ok=True)
    file = m3vit_path("test_scenes.npz")
    data = load_scenes(file)
    scenes = _checked(scenes, len(data))

    program = _compile(output, config)
    target = folder / f"m3vit_{config.name}.moevit"
    container.save(program, target)
    held = measure.storage(program, target.stat().st_size)
    say.model(output, program, held)

    inputs = read_inputs({x.name: x.shape for x in program.tasks[0].inputs}, [file])
    count = len(data) if limit is None else min(limit, len(data))
    floats = {name: _onnxruntime(output, program, name, inputs) for name in TASKS}
    isa, accuracy, usage = {}, {}, {}
    for name in TASKS:
        isa[name] = _run(output, program, name, inputs.limited(count), "isa")
        accuracy[name] = measure.accuracy(
            name, _only(isa[name]), floats[name][:count], _truth(data, name, range(count))
        )
        usage[name] = measure.usage(program, program.task(name), isa[name].experts)
    say.accuracy(output, [(accuracy[name], isa[name]) for name in TASKS])
    for name, found in accuracy.items():
        if found.loss > MAX_LOSS[name]:
            output.fail(f"{name}: integer arithmetic loses {found.loss:.3f} of {found.figure}")
    say.experts(output, [(name, usage[name], isa[name]) for name in TASKS], held)

    verilate.build(config, announce=output.note)
    rtl, runs = _turns(output, program, inputs, scenes)
    for name in TASKS:
        _compare(name, scenes, _only(isa[name]), _only(rtl[name]))
    pixels = {name: values[list(scenes)] for name, values in inputs.arrays.items()}
    report = Report(
        program, held, scenes, data.images[list(scenes), 0], runs,
        {
            name: TaskReport(
                program.task(name), accuracy[name], isa[name], rtl[name], usage[name],
                measure.part_cycles(program, program.task(name), rtl[name], rtl[name].experts),
                _truth(data, name, scenes), _answer(floats[name][list(scenes)]), _answer(_only(rtl[name])),
                measure.first_experts(
                    program, program.task(name), usage[name][-1].layer, Inputs(pixels, {}).floats()
                ),
            )
            for name in TASKS
        },
    )  # fmt: skip
    say.runs(output, runs, list(report.tasks.values()))
    say.parts(output, report)
    say.stages(output, report)
    picture = folder / "report.png"
    draw(picture, report)
    seconds = time.perf_counter() - started
    output.say(f"Picture: {picture}    Container: {target}    ({seconds:.0f} s)")
    return {
        "container": target,
        "storage": asdict(held),
        "tasks": {name: task.as_dict() for name, task in report.tasks.items()},
        "runs": [asdict(run) for run in runs],
        "picture": picture,
        "wall_s": round(seconds, 3),
    }


def _checked(scenes: Sequence[int], count: int) -> tuple[int, ...]:
    """The scenes once each; click's error for one that there is not."""
    for scene in scenes:
        if scene >= count:
            raise click.BadParameter(f"there are scenes 0 to {count - 1}, not {scene}", param_hint="--scene")
    return tuple(dict.fromkeys(scenes))


def _compile(output: Output, config: "AcceleratorConfig") -> "Program":
    """Both tasks as one program."""
    from moevit.cli.compile import STEPS_PER_TASK
    from moevit.compiler.driver import compile_model
    from moevit.models.scenes import m3vit_path
    from moevit.sim.inputs import read_inputs

    calibration = [m3vit_path("calib_scenes.npz")]
    with output.progress("compiling", STEPS_PER_TASK * len(TASKS) + 1) as advance:
        return compile_model(
            {name: m3vit_path(f"{name}.onnx") for name in TASKS},
            config,
            lambda task, shapes: read_inputs(shapes, calibration).floats(),
            progress=lambda step: advance(1),
        ).program


def _onnxruntime(output: Output, program: "Program", name: str, inputs: "Inputs") -> NDArray[np.float32]:
    """The float model's output for all scenes."""
    from moevit.cli.evaluate import run_onnx
    from moevit.models.scenes import m3vit_path

    with output.progress(f"onnxruntime, {name}", len(inputs)) as advance:
        (values,) = run_onnx(m3vit_path(f"{name}.onnx"), program.task(name), inputs, advance).values()
    return np.asarray(values)


def _run(output: Output, program: "Program", name: str, inputs: "Inputs", backend: str) -> "Result":
    """A task on a back-end; on rtl every tensor is compared."""
    from moevit.sim.simulate import simulate

    with output.progress(f"{backend}, {name}", len(inputs)) as advance:
        return simulate(program, inputs, name, backend=backend, check=backend == "rtl", progress=advance)


def _turns(
    output: Output, program: "Program", inputs: "Inputs", scenes: Sequence[int]
) -> tuple[dict[str, "Result"], list["Run"]]:
    """Both tasks on the machine in turns, some scenes each time; each task's results as one."""
    from moevit.cli.demo import measure
    from moevit.cli.demo.report import Run
    from moevit.sim.inputs import Inputs

    results: dict[str, list[Result]] = {name: [] for name in TASKS}
    runs = []
    for first in range(0, len(scenes), TURN):
        turn = list(scenes[first : first + TURN])
        part = Inputs({name: values[turn] for name, values in inputs.arrays.items()}, {})
        for name in TASKS:
            result = _run(output, program, name, part, "rtl")
            results[name].append(result)
            for scene, cycles in zip(turn, result.cycles or (), strict=True):
                runs.append(Run(scene, name, cycles, cycles / (1000 * result.clock_mhz)))
    return {name: measure.merge(found) for name, found in results.items()}, runs


def _only(result: "Result") -> NDArray[np.float32]:
    (values,) = result.outputs.values()
    return values


def _compare(task: str, scenes: Sequence[int], isa: NDArray[np.float32], rtl: NDArray[np.float32]) -> None:
    """Hold the outputs of both runs to each other; within the rtl run all tensors were compared already."""
    for scene, mine in zip(scenes, rtl, strict=True):
        if scene >= len(isa):
            continue
        for index in np.argwhere(mine != isa[scene]):
            got, want = mine[tuple(index)], isa[scene][tuple(index)]
            raise MismatchError(tensor=task, index=index, got=got, want=want, where=f"rtl, scene {scene}")


def _truth(data: "SceneSet", task: str, scenes: Sequence[int]) -> NDArray[np.generic]:
    truth: Mapping[str, NDArray[np.generic]] = {"seg": data.seg, "depth": data.depth}
    return truth[task][list(scenes)]


def _answer(values: NDArray[np.float32]) -> NDArray[np.generic]:
    """Outputs [n, channels, height, width] as a picture of each: the number of the largest, or the only one."""
    return values.argmax(axis=1) if values.shape[1] > 1 else values[:, 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo as the command line runs its commands, with the same exit statuses."""
    import sys

    from moevit.cli import LazyGroup

    class Demo(LazyGroup):
        """The one command."""

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            return command

    group = Demo(name="moevit", callback=lambda: None)
    group.main(["demo", *(sys.argv[1:] if arguments is None else arguments)], prog_name="moevit")
