"""Models of the two libraries that most vision transformers come from, exported by both of torch's exporters."""

from pathlib import Path

import numpy as np
import pytest
import zoo
from graph_answers import cosines, simulated

from moevit.compiler.driver import compile_graphs
from moevit.compiler.frontend.check import run_onnxruntime
from moevit.compiler.frontend.load import load
from moevit.config import CONFIGS

pytestmark = pytest.mark.torch

LEAST = 0.998


def compare(path: Path, size: int, images: int = 4) -> float:
    """All of a file on the machine: the least cosine of its answers with onnxruntime's."""
    graph = load(path)
    data = np.random.default_rng(1).random((8 + images, 3, size, size), dtype=np.float32)
    compiled = compile_graphs({"main": graph}, CONFIGS["zcu104"], {"main": {"image": data[images:]}})
    assert compiled.accelerated_macs == graph.macs() > 0
    tested = {"image": data[:images]}
    (got,) = simulated(compiled, graph, tested).outputs.values()
    (want,) = run_onnxruntime(path, tested).values()
    return float(cosines(got, want).min())


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "script"])
@pytest.mark.parametrize("name", zoo.MODELS)
def test_all_is_read_and_computed(tmp_path: Path, name: str, dynamo: bool, opset: int) -> None:
    path = zoo.export(zoo.MODELS[name], tmp_path / "m.onnx", dynamo=dynamo, opset=opset)
    assert compare(path, zoo.IMAGE) >= LEAST


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "script"])
@pytest.mark.parametrize("name", zoo.OTHERS)
def test_other_families(tmp_path: Path, name: str, dynamo: bool) -> None:
    size = 56 if name == "registers" else zoo.IMAGE
    path = zoo.export(zoo.OTHERS[name], tmp_path / "m.onnx", dynamo=dynamo, opset=18, size=size)
    assert compare(path, size) >= LEAST


@pytest.mark.parametrize(("name", "dynamo"), [("DeiT-Ti", True), ("ViT-S", False)])
def test_whole_models(tmp_path: Path, name: str, dynamo: bool) -> None:
    path = zoo.export(zoo.FULL[name], tmp_path / "m.onnx", dynamo=dynamo, opset=18, size=224)
    assert compare(path, 224, images=1) >= LEAST
