"""`moevit workload`: a standing workload as files, for the commands that take models and inputs."""

import os
import time
from pathlib import Path
from typing import Any

import click

from moevit.cli.output import Output, json_command
from moevit.cli.simulate import write_npz
from moevit.errors import InputError

CALIBRATION, INPUTS = "calibration.npz", "inputs.npz"

EXAMPLES = """
\b
Examples:
  moevit workload m3vit-tiny-seg -o build/m3vit-cityscapes
  moevit workload deit-s -o build/deit-s
"""


@json_command(name="workload", epilog=EXAMPLES)
@click.argument("name", metavar="NAME")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where the files go; made if it does not exist.",
)  # fmt: skip
def command(output: Output, name: str, folder: Path) -> dict[str, Any]:
    """Write one of `moevit bench`'s workloads as files: TASK.onnx for each task, calibration.npz and inputs.npz.

    They are for the commands that take models and images: compile, report, sweep, compare. Weights are random, gates
    use the experts as trained ones do; a graph that is shared by several tasks is in each one's file.
    """
    started = time.perf_counter()
    from moevit.bench.onnx_file import to_onnx
    from moevit.bench.workloads import choose, shipped_m3vit

    chosen = choose(name)
    if len(chosen) != 1:
        raise InputError("name one workload", where=f"moevit workload {name}")
    workload = chosen[0]
    if workload.model is shipped_m3vit:
        raise InputError(f"{workload.name} is in the repository", mend="take models/m3vit/*.onnx")
    output.note("making the model …")
    model = workload.model()
    protos = {task: to_onnx(graph) for task, graph in model.graphs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for task, proto in protos.items():
        path = folder / f"{task}.onnx"
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        os.replace(temporary, path)
        files.append(path)
    for file, images in ((CALIBRATION, model.calibration), (INPUTS, model.inputs)):
        write_npz(folder / file, images)
        files.append(folder / file)
    for path in files:
        output.say(f"{path}: {path.stat().st_size:,} bytes")
    tasks = " ".join(f"{task}={folder / task}.onnx" for task in protos)
    output.say(f"Compile it: moevit compile {tasks} --config {workload.configs[0]} --calib {folder / CALIBRATION} -o …")
    return {"workload": workload.name, "files": files, "wall_s": round(time.perf_counter() - started, 3)}
