"""Files that are damaged, and models that make no sense: one clear error each, and no traceback."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_answers import cosines
from onnx import TensorProto, numpy_helper
from onnx_net import Net

import moevit
from moevit.cli.evaluate import run_onnx
from moevit.compiler import ir
from moevit.compiler.frontend import load
from moevit.compiler.frontend.check import run_onnxruntime, way_out
from moevit.errors import ModelError, UnsupportedOpError
from moevit.sim.inputs import from_arrays

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOOD = FIXTURES / "dynamo18_norm_mul_hand.onnx"
SPLIT = FIXTURES / "dynamo18_chunk_manual.onnx"


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def feeds(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_suffix(".npz")) as data:
        return {name: data[name].astype(np.float32) for name in data.files}


def with_constant(array: np.ndarray) -> onnx.ModelProto:
    """A fixture with another bias in its classifier."""
    model = onnx.load(GOOD)
    bias = next(i for i in model.graph.initializer if i.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    return model


def test_a_constant_that_does_not_fit_its_shape(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    weight = next(i for i in model.graph.initializer if i.name == "head.weight")
    weight.dims[0] = 16
    with pytest.raises(ModelError, match=r"constant 'head\.weight' cannot be read"):
        load(saved(model, tmp_path / "m.onnx"))


def test_a_constant_of_an_unknown_type(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    model.graph.initializer[0].data_type = 29
    with pytest.raises(ModelError, match=r"constant '.*' cannot be read"):
        load(saved(model, tmp_path / "m.onnx"))


def test_complex_constants(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"constant 'head\.bias' is complex64"):
        load(saved(with_constant(np.zeros(10, np.complex64)), tmp_path / "m.onnx"))
    net = Net(1, 8, 16)
    x = net.linear("x", 16, 8)
    value = numpy_helper.from_array(np.ones(8, np.complex64), "c")
    with pytest.raises(UnsupportedOpError, match="complex numbers"):
        net.load(tmp_path, net.op("Add", x, net.op("Constant", value=value)))


def test_a_model_without_outputs(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    del model.graph.output[:]
    with pytest.raises(ModelError, match="it has no output"):
        load(saved(model, tmp_path / "m.onnx"))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    data = GOOD.read_bytes().replace(b"head.weight", b"head.\xff\xfeight")
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="a name is not text"):
        load(tmp_path / "m.onnx")


def test_a_message_is_one_line_whatever_the_names_are(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    model.graph.node[3].input[0] = "no\nsuch\x00name"
    with pytest.raises(ModelError) as caught:
        load(saved(model, tmp_path / "m.onnx"))
    assert str(caught.value).isprintable()


def test_an_input_larger_than_any_model_has(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40
    with pytest.raises(ModelError, match="a tensor may have"):
        load(saved(model, tmp_path / "m.onnx"))


def test_constants_that_overflow_where_they_are_folded(tmp_path: Path) -> None:
    net = Net(1, 8, 16)
    x = net.op("Mul", net.linear("x", 16, 8), net.const(np.full(8, 3e38)))
    with pytest.raises(ModelError, match="what float32 cannot"):
        net.load(tmp_path, net.op("Mul", x, net.const(np.full(8, 3e38))))


def test_values_that_overflow(tmp_path: Path) -> None:
    net = Net(1, 8, 16)
    x = net.op("MatMul", "x", net.const(np.full((16, 8), 1e30)))
    with pytest.raises(ModelError, match="not finite on random inputs"):
        net.load(tmp_path, net.op("MatMul", x, net.const(np.full((8, 4), 1e30))))


def test_gelu_of_an_unknown_approximation(tmp_path: Path) -> None:
    net = Net(1, 8, 16, opset=20)
    x = net.op("Gelu", net.linear("x", 16, 8), approximate="cubic")
    with pytest.raises(UnsupportedOpError, match="approximation is 'cubic'"):
        net.load(tmp_path, net.linear(x, 8, 4))


def test_a_product_of_two_constants_in_a_gemm(tmp_path: Path) -> None:
    net = Net(1, 8, 16)
    x = net.linear("x", 16, 8)
    with pytest.raises(UnsupportedOpError, match="Gemm"):
        net.load(tmp_path, net.op("Gemm", net.random(8, 8), net.random(8, 8), net.op("Flatten", x)))


@pytest.mark.parametrize(("first", "second"), [("q", "k"), ("k", "v"), ("q", "v")])
def test_attention_that_uses_a_matrix_twice(tmp_path: Path, first: str, second: str) -> None:
    """Each of q, k and v lies in a place of its own, so what is used twice is computed twice."""
    net = Net(1, 3, 16, 16)
    x = net.op("Conv", "x", net.random(8, 3, 4, 4), strides=[4, 4])
    x = net.op("Transpose", net.op("Reshape", x, net.ints(1, 8, 16)), perm=[0, 2, 1])
    norm = net.op("LayerNormalization", x, net.random(8), net.random(8))
    made = {name: net.linear(norm, 8, 8) for name in ("q", "k", "v")}
    made[second] = made[first]
    scores = net.op("MatMul", made["q"], net.op("Transpose", made["k"], perm=[0, 2, 1]))
    out = net.op("MatMul", net.op("Softmax", scores), made["v"])
    path = net.save(tmp_path / "net.onnx", net.linear(out, 8, 8))
    (attention,) = [op for op in load(path) if isinstance(op, ir.Attention)]
    assert len(set(attention.inputs)) == 3
    data = {"x": np.random.default_rng(1).random((4, 3, 16, 16), dtype=np.float32)}
    assert moevit.compile(path, "tiny", data).run(data, check=True).bit_exact


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-30, 2.0, 1e9])
def test_attention_of_any_scale(tmp_path: Path, scale: float) -> None:
    """Scores that POST would saturate are the host's: of several such, each would seem the largest."""
    model = onnx.load(SPLIT)
    (value,) = [a.t for n in model.graph.node for a in n.attribute if a.name == "value" and _is_scale(a.t)] or [
        i for i in model.graph.initializer if _is_scale(i)
    ]
    value.CopyFrom(numpy_helper.from_array(np.float32(scale), value.name))
    path = saved(model, tmp_path / "m.onnx")
    data = feeds(SPLIT)
    if scale > 1000:
        with pytest.raises(UnsupportedOpError, match=r"scores reach .*; the machine holds 354.9"):
            moevit.compile(path, "tiny", data, strict=True)
    program = moevit.compile(path, "tiny", data)
    assert program.run(data, check=True).bit_exact
    nodes = [n for part in program.host_parts for n in part.nodes]
    assert ("Softmax" in {n.op for n in nodes}) == (scale > 1000)


def _is_scale(tensor: TensorProto) -> bool:
    array = numpy_helper.to_array(tensor)
    return array.size == 1 and array.dtype == np.float32 and 0.2 < float(array.reshape(())) < 0.3


def test_a_bias_that_dwarfs_its_weights(tmp_path: Path) -> None:
    """A pruned layer: what is left of it is its bias."""
    model = onnx.load(GOOD)
    weight = next(i for i in model.graph.initializer if i.name == "head.weight")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array * np.float32(1e-12), weight.name))
    data = feeds(GOOD)
    result = moevit.compile(saved(model, tmp_path / "m.onnx"), "tiny", data).run(data, check=True)
    (bias,) = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "head.bias"]
    np.testing.assert_allclose(result.outputs["logits"], np.tile(bias, (4, 1)), atol=np.abs(bias).max() / 100)


def test_an_activation_that_the_machine_would_clip_is_the_hosts(tmp_path: Path) -> None:
    model = onnx.load(GOOD)
    weight = next(i for i in model.graph.initializer if i.name == "blocks.0.fc1.weight")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array * np.float32(1000), weight.name))
    path, data = saved(model, tmp_path / "m.onnx"), feeds(GOOD)
    with pytest.raises(UnsupportedOpError, match=r"activation reaches .*; the machine holds 256"):
        moevit.compile(path, "tiny", data, strict=True)
    program = moevit.compile(path, "tiny", data)
    nodes = [n for part in program.host_parts for n in part.nodes]
    assert any("the machine holds 256" in n.reason for n in nodes)
    assert {n.op for n in nodes} <= {"Erf", "Div", "Add", "Mul"}
    result = program.run(data, check=True)
    (got,), (want,) = result.outputs.values(), run_onnxruntime(path, data).values()
    assert result.bit_exact and cosines(got, want).min() > 0.998


def test_external_data_that_onnxruntime_does_not_load(tmp_path: Path) -> None:
    """With shapes in it too. The way out that is named is one."""
    path, other = tmp_path / "m.onnx", tmp_path / "whole.onnx"
    onnx.save(onnx.load(SPLIT), path, save_as_external_data=True, location="m.data", size_threshold=0)
    said = "save it with its weights inside: onnx.save(onnx.load("
    with pytest.raises(ModelError, match="onnxruntime cannot run it") as caught:
        moevit.compile(path, "tiny", feeds(SPLIT))
    assert said in str(caught.value.mend)
    onnx.save(onnx.load(path), other)
    program = moevit.compile(other, "tiny", feeds(SPLIT))
    values = from_arrays({x.name: x.shape for x in program.pipeline().inputs}, feeds(SPLIT))
    with pytest.raises(ModelError, match="onnxruntime cannot load it") as caught:
        run_onnx(path, program.pipeline(), values, lambda n: None)
    assert said in str(caught.value.mend)
    assert run_onnx(other, program.pipeline(), values, lambda n: None)


def test_what_onnxruntime_does_not_run_for_another_reason_is_not_blamed_on_external_data(tmp_path: Path) -> None:
    """The model with its weights inside is no better."""
    model, path = onnx.load(GOOD), tmp_path / "m.onnx"
    model.graph.node[0].op_type = "Odd"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert way_out(path) == way_out(tmp_path / "nothing.onnx") == "export it again"
