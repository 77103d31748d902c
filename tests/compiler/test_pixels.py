"""Models that take pixels: whole numbers as they come from a decoder, and with the channels of a pixel together."""

from pathlib import Path

import numpy as np
import onnxruntime
import partition_nets as nets
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnx_net import ops

import moevit
from moevit.cli import cli
from moevit.compiler.frontend import load
from moevit.errors import ModelError

SHAPE = (nets.IMAGE, nets.IMAGE, 3)


def model(path: Path, dtype: int) -> Path:
    """Pixels with their channels last, normalised in the model, and a block."""
    net = nets.Vit()
    net.input = helper.make_tensor_value_info("x", dtype, (1, *SHAPE))
    y = net.op("Div", net.op("Cast", "x", to=TensorProto.FLOAT), net.const(255))
    y = net.op("Div", net.op("Sub", y, net.const([0.4, 0.5, 0.6])), net.const([0.2, 0.25, 0.3]))
    y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    weight = net.const(net.rng.normal(size=(nets.WIDTH, 3, nets.PATCH, nets.PATCH)) / 7)
    y = net.op("Conv", y, weight, kernel_shape=[nets.PATCH] * 2, strides=[nets.PATCH] * 2)
    y = net.op("Transpose", net.op("Reshape", y, net.ints(1, nets.WIDTH, nets.TOKENS)), perm=[0, 2, 1])
    return net.save(path, net.head(net.block(y)))


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def test_channels_last_is_a_patch_embedding(tmp_path: Path) -> None:
    graph = load(model(tmp_path / "m.onnx", TensorProto.FLOAT))
    assert ops(graph)[0] == "PatchEmbed"
    assert graph.inputs[0].shape == (1, nets.IMAGE, 3 * nets.IMAGE)
    assert graph.ops[0].patch == (nets.PATCH, 3 * nets.PATCH)  # type: ignore[attr-defined]


def test_whole_numbers_are_what_the_model_takes(tmp_path: Path) -> None:
    """An array of uint8 stands for 0 … 1, and the model for 0 … 255: nothing of that may be lost on the way."""
    path = model(tmp_path / "m.onnx", TensorProto.UINT8)
    program = moevit.compile(path, "tiny", {"x": pixels(6)}, strict=True)
    assert (program.task().inputs[0].scale, program.task().inputs[0].zero_point) == (pytest.approx(1 / 255), 0)
    (got,) = program.run({"x": pixels(6)}, check=True).outputs.values()
    session = onnxruntime.InferenceSession(path)
    want = np.concatenate([session.run(None, {"x": x[None]})[0] for x in pixels(6)])
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)
    program.save(tmp_path / "m.moevit")
    np.savez(tmp_path / "x.npz", x=pixels(4))
    command = ["evaluate", str(tmp_path / "m.moevit"), "--onnx", str(path), "--inputs", str(tmp_path / "x.npz")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output


def test_other_whole_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is int8; export it with float32 or uint8"):
        load(model(tmp_path / "m.onnx", TensorProto.INT8))
