"""Old operator sets, sums that are means, RMS normalisation, and extents that are fixed when a model is read."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx_net import Net, ops

from moevit.compiler.frontend import load
from moevit.errors import InputError, ModelError, UnsupportedOpError

TOKENS, WIDTH, HEADS = 5, 8, 2


def attribute_norm(n: Net, x: str) -> str:
    """Layer normalisation with the axes as attributes, as before opset 18."""
    d = n.op("Sub", x, n.op("ReduceMean", x, axes=[-1]))
    var = n.op("ReduceMean", n.op("Mul", d, d), axes=[-1])
    return n.op("Div", d, n.op("Sqrt", n.op("Add", var, n.const(1e-5))))


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("flat", [False, True])
def test_old_operator_sets(tmp_path: Path, opset: int, flat: bool) -> None:
    """Attributes where there are inputs now; `flat`: a softmax over all axes from the first on but one, by default."""
    heads = 1 if flat else HEADS
    n = Net(1, TOKENS, WIDTH, opset=opset)
    qkv = n.linear(attribute_norm(n, "x"), WIDTH, 3 * WIDTH)
    qkv = n.op("Transpose", n.op("Reshape", qkv, n.ints(TOKENS, 3, heads, WIDTH // heads)), perm=[1, 2, 0, 3])
    first = n.op("Split", qkv, outputs=3, axis=0, split=[1, 1, 1])
    q, k, v = (n.op("Squeeze", first[:-1] + str(i), axes=[0, 1] if flat else [0]) for i in range(3))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[1, 0] if flat else [0, 2, 1]))
    y = n.op("MatMul", n.op("Softmax", scores, **({} if flat else {"axis": -1})), v)
    if not flat:
        y = n.op("Reshape", n.op("Transpose", y, perm=[1, 0, 2]), n.ints(TOKENS, WIDTH))
    y = n.linear(y, WIDTH, WIDTH)
    y = n.op("Dropout", y, **({"ratio": 0.1} if opset < 12 else {}))
    y = n.op("ReduceSum", n.op("Unsqueeze", y, axes=[0]), axes=[1], keepdims=0)
    counts = n.load(tmp_path, n.linear(y, WIDTH, 3)).counts()
    assert (counts["Attention"], counts["LayerNorm"]) == (2, 1)  # the second is the sum over tokens


def test_an_older_operator_set_is_refused(tmp_path: Path) -> None:
    n = Net(1, TOKENS, WIDTH, opset=10)
    with pytest.raises(ModelError, match="operator set 10 is not among 11 to"):
        n.load(tmp_path, n.linear("x", WIDTH, 3))


def test_a_norm_of_sums(tmp_path: Path) -> None:
    n = Net(1, TOKENS, WIDTH)

    def mean(x: str) -> str:
        return n.op("Div", n.op("ReduceSum", x, n.ints(-1)), n.const(WIDTH))

    d = n.op("Sub", "x", mean("x"))
    y = n.op("Div", d, n.op("Sqrt", n.op("Add", mean(n.op("Mul", d, d)), n.const(1e-3))))
    graph = n.load(tmp_path, n.linear(y, WIDTH, 3))
    assert ops(graph) == ["LayerNorm", "Linear"]
    assert graph.ops[0].eps == pytest.approx(1e-3, rel=1e-4)  # type: ignore[attr-defined]


def rms_by_hand(n: Net) -> str:
    square = n.op("ReduceMean", n.op("Mul", "x", "x"), n.ints(-1))
    return n.op("Mul", "x", n.op("Reciprocal", n.op("Sqrt", n.op("Add", square, n.const(1e-5)))))


@pytest.mark.parametrize(
    "build", [rms_by_hand, lambda n: n.op("RMSNormalization", "x", n.random(WIDTH), axis=-1)], ids=["by hand", "node"]
)
def test_rms_normalisation_is_left_to_the_host(tmp_path: Path, build: Callable[[Net], str]) -> None:
    n = Net(1, TOKENS, WIDTH, opset=23)
    with pytest.raises(UnsupportedOpError, match="subtracts the mean"):
        n.load(tmp_path, n.linear(build(n), WIDTH, 3))


def dynamic(path: Path) -> Path:
    """A patch embedding of images of any size."""
    n = Net("batch", 3, "height", "width", opset=17)
    y = n.op("Conv", "x", n.random(6, 3, 4, 4), n.random(6), strides=[4, 4], kernel_shape=[4, 4])
    y = n.op("Reshape", y, n.ints(0, 6, -1))
    return n.save(path / "net.onnx", n.linear(n.op("Transpose", y, perm=[0, 2, 1]), 6, 4))


def test_shapes_are_fixed_when_a_model_is_read(tmp_path: Path) -> None:
    path = dynamic(tmp_path)
    with pytest.raises(ModelError, match="only the batch may be dynamic"):
        load(path)
    graph = load(path, shapes={"x": (1, 3, 8, 12)})
    assert graph.inputs[0].shape == (3, 8, 12)
    assert graph.outputs[0].model_shape == (6, 4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 3, 8, 8)}, "no input 'y'"),
        ({"x": (3, 8, 8)}, "cannot be 3x8x8: in the model it is batchx3xheightxwidth"),
        ({"x": (1, 1, 8, 8)}, "cannot be 1x1x8x8"),
        ({"x": (1, 3, 0, 8)}, "cannot be 1x3x0x8"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(dynamic(tmp_path), shapes=shapes)
    assert caught.value.mend


def test_extents_of_one_name_agree(tmp_path: Path) -> None:
    path = dynamic(tmp_path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "height"
    onnx.save(model, path)
    assert load(path, shapes={"x": (1, 3, 8, 8)}).inputs[0].shape == (3, 8, 8)
    with pytest.raises(InputError, match="batchx3xheightxheight"):
        load(path, shapes={"x": (1, 3, 8, 12)})
