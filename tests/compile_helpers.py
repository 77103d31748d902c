"""Compiled fixtures for tests, each made once per process."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.driver import Compiled, compile_model
from moevit.config import CONFIGS
from moevit.program import Task

FIXTURES = Path(__file__).parent / "fixtures"
SHIPPED = Path(__file__).parents[1] / "models" / "fashion_vit"
ODD = FIXTURES / "dynamo20_odd37.onnx"  # 37 tokens, dim 72, 3 heads of 24
SMALL = FIXTURES / "dynamo18_chunk_manual.onnx"


def float_inputs(path: Path) -> dict[str, NDArray[np.float32]]:
    """The calibration inputs of a fixture or of the shipped model, [B, ...]."""
    if path.parent == SHIPPED:
        images = np.load(SHIPPED / "calib_images.npz")["images"][:64]
        return {"image": images[:, None].astype(np.float32) / 255}
    with np.load(path.with_suffix(".npz")) as data:
        return {name: data[name].astype(np.float32) for name in data.files}


@cache
def compiled(path: Path, config: str) -> Compiled:
    """A fixture compiled for a named configuration."""
    return compile_model({"main": path}, CONFIGS[config], lambda task, shapes: float_inputs(path))


def quantised_inputs(task: Task, values: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.uint8]]:
    """Model inputs as the machine takes them."""
    return {
        i.name: np.clip(np.round(values[i.name] / i.scale) + i.zero_point, 0, 255)
        .astype(np.uint8)
        .reshape(-1, *i.shape)
        for i in task.inputs
    }
