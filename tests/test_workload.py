"""`moevit workload`: the files hold the very model that `moevit bench` measures."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moevit.bench.onnx_file import to_onnx
from moevit.bench.vit import Shape, build
from moevit.bench.workloads import SHAPES, WORKLOADS, Model, random_model
from moevit.cli import cli
from moevit.compiler import ir
from moevit.compiler.frontend.load import load

MIXED = Shape(
    image=(3, 32, 48), patch=16, dim=32, depth=2, heads=2, hidden=64, outputs=5, class_only=False, moe_layers=(1,),
    experts=4, expert_hidden=16, top_k=2,
)  # fmt: skip
DENSE = Shape(image=(3, 32, 32), patch=16, dim=32, depth=1, heads=2, hidden=64, outputs=10)


@pytest.mark.parametrize("shape", [MIXED, DENSE])
def test_the_front_end_reads_back_what_was_written(shape: Shape, tmp_path: Path) -> None:
    """Operation by operation, with every constant as it was, but that the patches' bias is with their positions."""
    graph = build("graph", shape, 3)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    read = load(path)
    assert [type(op) for op in read] == [type(op) for op in graph]
    bias = graph.ops[0].constants()["bias"]
    for ours, theirs in zip(graph, read, strict=True):
        assert graph.tensors[ours.output] == read.tensors[theirs.output]
        for name, value in ours.constants().items():
            moved = -bias if (ours.name, name) == ("patches", "bias") else bias if name == "pos" else 0
            got = theirs.constants()[name]
            np.testing.assert_allclose(got, value + moved, rtol=1e-6, atol=1e-6, err_msg=f"{ours.name} {name}")
    assert read.macs() == graph.macs()
    assert [output.name for output in read.outputs] == [output.name for output in graph.outputs]


def test_what_a_workload_has_not_is_refused() -> None:
    graph = build("graph", DENSE)
    other = ir.Graph(
        name="other", inputs=graph.inputs, outputs=graph.outputs,
        ops=tuple(
            ir.Activation(name=op.name, x=op.x, output=op.output, kind="relu") if isinstance(op, ir.Activation) else op
            for op in graph
        ),
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"Activation block0\.gelu"):
        to_onnx(other)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> Model:
        return random_model(seg=MIXED, depth=MIXED)

    from moevit.bench import workloads

    monkeypatch.setitem(WORKLOADS, "small", workloads.Workload("small", small, "seg", ("tiny",), {}))
    folder = tmp_path / "out"
    done = CliRunner().invoke(cli, ["workload", "small", "-o", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in folder.iterdir()) == ["calibration.npz", "depth.onnx", "inputs.npz", "seg.onnx"]
    assert json.loads(done.stdout)["files"] == [
        str(folder / name) for name in ("seg.onnx", "depth.onnx", "calibration.npz", "inputs.npz")
    ]
    model = [f"{task}={folder / task}.onnx" for task in ("seg", "depth")]
    done = CliRunner().invoke(
        cli, ["compile", *model, "--config", "tiny", "--calib", str(folder / "calibration.npz"), "-o",
              str(tmp_path / "small.moevit")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "all nodes on the accelerator" in done.output


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "no workload 'nothing'"), ("deit-s,deit-ti", "name one"), ("m3vit-scene-seg", "models/m3vit")],
)
def test_what_does_not_fit_is_said_and_leaves_nothing(tmp_path: Path, name: str, says: str) -> None:
    done = CliRunner().invoke(cli, ["workload", name, "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "out").exists()


def test_all_shapes_are_of_workloads() -> None:
    assert set(SHAPES) < set(WORKLOADS)
