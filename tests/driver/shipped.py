"""The shipped two-task model on `tiny`, compiled once per process, and what it must answer."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.driver import compile_model
from moevit.config import CONFIGS
from moevit.program import Program, Task
from moevit.sim.inputs import Inputs, pack, quantise, read_inputs
from moevit.sim.isa import IsaSimulator

M3VIT = Path(__file__).resolve().parents[2] / "models" / "m3vit"
SCENES = M3VIT / "test_scenes.npz"


@cache
def program() -> Program:
    images = np.load(M3VIT / "calib_scenes.npz")["images"][:8].astype(np.float32) / 255
    models = {name: M3VIT / f"{name}.onnx" for name in ("seg", "depth")}
    return compile_model(models, CONFIGS["tiny"], lambda task, shapes: dict.fromkeys(shapes, images)).program


def scenes(task: Task, count: int) -> Inputs:
    return read_inputs({x.name: x.shape for x in task.inputs}, [SCENES]).limited(count)


def buffers(task: Task, count: int) -> NDArray[np.uint8]:
    """Input buffers [count, input bytes]."""
    return pack(program().config, task, quantise(task, scenes(task, count).floats()))


def expected(task: Task, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The output buffers [B, output bytes] that the instruction-level simulator writes."""
    whole = program()
    return IsaSimulator(whole.config, whole.image, whole.instructions(task), task.output_bytes).run(data).output
