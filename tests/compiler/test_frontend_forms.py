"""The front end on small models written out by hand: the ways to spell each operation, and what it refuses.

Every model that loads has also been compared with onnxruntime, by `load` itself.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_net import Net, ops

from moevit.compiler import ir
from moevit.compiler.frontend.activation import Found, identify
from moevit.compiler.frontend.functions import gelu, gelu_tanh
from moevit.errors import ModelError, UnsupportedOpError

# Activations.


def spell_erf(n: Net, x: str) -> str:
    e = n.op("Erf", n.op("Div", x, n.const(math.sqrt(2))))
    return n.op("Mul", n.op("Mul", x, n.op("Add", e, n.const(1))), n.const(0.5))


def spell_erf_half_first(n: Net, x: str) -> str:
    e = n.op("Erf", n.op("Mul", x, n.const(math.sqrt(0.5))))
    return n.op("Mul", n.op("Add", n.const(1), e), n.op("Mul", n.const([0.5]), x))


def spell_erf_half_in_bracket(n: Net, x: str) -> str:
    e = n.op("Erf", n.op("Mul", x, n.const(math.sqrt(0.5))))
    return n.op("Mul", x, n.op("Add", n.op("Mul", e, n.const(0.5)), n.const(0.5)))


def spell_tanh(n: Net, x: str) -> str:
    cube = n.op("Pow", x, n.const(3))
    inner = n.op("Mul", n.op("Add", x, n.op("Mul", cube, n.const(0.044715))), n.const(math.sqrt(2 / math.pi)))
    return n.op("Mul", n.op("Mul", x, n.const(0.5)), n.op("Add", n.op("Tanh", inner), n.const(1)))


def spell_tanh_factored(n: Net, x: str) -> str:
    square = n.op("Mul", x, x)
    inner = n.op("Add", n.op("Mul", square, n.const(0.044715)), n.const(1))
    inner = n.op("Mul", n.op("Mul", x, n.const(math.sqrt(2 / math.pi))), inner)
    return n.op("Mul", n.op("Mul", n.const(0.5), n.op("Add", n.op("Tanh", inner), n.const(1))), x)


def spell_silu_exp(n: Net, x: str) -> str:
    return n.op("Div", x, n.op("Add", n.op("Exp", n.op("Neg", x)), n.const(1)))


SPELLINGS: list[tuple[str, Callable[[Net, str], str]]] = [
    ("gelu", spell_erf),
    ("gelu", spell_erf_half_first),
    ("gelu", spell_erf_half_in_bracket),
    ("gelu", lambda n, x: n.op("Gelu", x)),
    ("gelu_tanh", spell_tanh),
    ("gelu_tanh", spell_tanh_factored),
    ("gelu_tanh", lambda n, x: n.op("Gelu", x, approximate="tanh")),
    ("silu", lambda n, x: n.op("Mul", x, n.op("Sigmoid", x))),
    ("silu", spell_silu_exp),
    ("silu", lambda n, x: n.op("Mul", x, n.op("Sigmoid", n.op("Mul", x, n.const(1.702))))),  # "quick" GELU
    ("relu", lambda n, x: n.op("Relu", x)),
    ("relu", lambda n, x: n.op("Max", x, n.const(0))),
    ("relu", lambda n, x: n.op("Clip", x, n.const(0))),
    ("relu", lambda n, x: n.op("Mul", n.op("Relu", x), n.const(3))),
    ("relu", lambda n, x: n.op("Relu", n.op("Neg", x))),
    ("relu", lambda n, x: n.op("LeakyRelu", x, alpha=0.0)),
]


@pytest.mark.parametrize(("kind", "spell"), SPELLINGS)
def test_activations(tmp_path: Path, kind: str, spell: Callable[[Net, str], str]) -> None:
    n = Net(1, 3, 8, opset=20)
    graph = n.load(tmp_path, n.linear(spell(n, n.linear("x", 8, 9)), 9, 4))
    assert ops(graph) == ["Linear", "Activation", "Linear"]
    assert graph.ops[1].kind == kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["bias with one value for all", "before the axes are moved"])
def test_activation_forms(tmp_path: Path, form: str) -> None:
    n = Net(1, 3, 8, opset=20)
    if form.startswith("bias"):
        y = n.op("Gelu", n.op("Add", n.linear("x", 8, 9, bias=False), n.const([0.25] * 9)))
    else:
        y = n.op("Transpose", n.linear("x", 8, 9), perm=[0, 2, 1])
        y = n.op("Transpose", spell_erf(n, y), perm=[0, 2, 1])
    assert ops(n.load(tmp_path, n.linear(y, 9, 4))) == ["Linear", "Activation", "Linear"]


def test_identify() -> None:
    assert identify(lambda x: 3 * x + 1) == Found("linear", 1.0, pytest.approx(3), pytest.approx(1))
    found = identify(lambda x: 2 * gelu(-0.5 * x) + 1)
    assert found is not None
    assert found.kind == "gelu"
    assert (found.scale, found.mul, found.add) == pytest.approx((-0.5, 2, 1), abs=1e-4)
    assert identify(lambda x: gelu(x) + 1e-3 * x) is None
    assert identify(lambda x: 0.5 * gelu(x) + 0.5 * gelu_tanh(x)) is None
    assert identify(np.tanh) is None
    assert identify(np.sqrt) is None
    assert identify(lambda x: np.clip(x, 0, 6)) is None
    assert identify(lambda x: 0 * x + 2) == Found("linear", 1.0, 0.0, 2.0)


# Layer normalisation.


def norm(n: Net, x: str, square: str, divide: str, keep: int = 1) -> str:
    def mean(y: str) -> str:
        m = n.op("ReduceMean", y, n.ints(-1), keepdims=keep)
        return m if keep else n.op("Unsqueeze", m, n.ints(2))

    d = n.op("Sub", x, mean(x))
    again = n.op("Sub", x, mean(x)) if square == "twice" else d
    var = mean(n.op("Mul", d, d) if square == "mul" else n.op("Pow", d, n.const(2)))
    root = n.op("Sqrt", n.op("Add", var, n.const(1e-3)))
    if divide == "div":
        return n.op("Div", again, root)
    if divide == "reciprocal":
        return n.op("Mul", n.op("Reciprocal", root), again)
    return n.op("Mul", again, n.op("Div", n.const(1), root))


@pytest.mark.parametrize("square", ["pow", "mul", "twice"])
@pytest.mark.parametrize("divide", ["div", "reciprocal", "one over"])
@pytest.mark.parametrize("affine", ["both", "gamma", "none"])
def test_layer_norm(tmp_path: Path, square: str, divide: str, affine: str) -> None:
    n = Net(1, 3, 8)
    y = norm(n, "x", square, divide, keep=int(affine != "none"))
    if affine != "none":
        y = n.op("Mul", n.random(8), y)
    if affine == "both":
        y = n.op("Add", y, n.random(8))
    graph = n.load(tmp_path, n.linear(y, 8, 4))
    assert ops(graph) == ["LayerNorm", "Linear"]
    assert graph.ops[0].eps == pytest.approx(1e-3, rel=1e-4)  # type: ignore[attr-defined]


# Attention.

WHERE_SCALED = ["q", "k", "scores", "both", "divided", "in the weights", "not at all"]


def attend(n: Net, q: str, k: str, v: str, heads: int, size: int, scaled: str, tokens: int = 5) -> str:
    def split(x: str, *perm: int) -> str:
        return n.op("Transpose", n.op("Reshape", x, n.ints(0, tokens, heads, size)), perm=list(perm))

    scale = size**-0.5
    q, k, v = split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1), split(v, 0, 2, 1, 3)
    if scaled in ("q", "both"):
        q = n.op("Mul", q, n.const(scale if scaled == "q" else scale**0.5))
    if scaled in ("k", "both"):
        k = n.op("Mul", n.const(scale if scaled == "k" else scale**0.5), k)
    s = n.op("MatMul", q, k)
    if scaled == "scores":
        s = n.op("Mul", s, n.const(scale))
    if scaled == "divided":
        s = n.op("Div", s, n.const(1 / scale))
    if scaled == "in the weights":
        s = n.op("Add", s, n.const(np.zeros((tokens, tokens))))
    y = n.op("Transpose", n.op("MatMul", n.op("Softmax", s, axis=-1), v), perm=[0, 2, 1, 3])
    return n.op("Reshape", y, n.ints(0, tokens, heads * size))


@pytest.mark.parametrize("scaled", WHERE_SCALED)
def test_attention_scale(tmp_path: Path, scaled: str) -> None:
    n = Net("batch", 5, 8)
    q, k, v = (n.linear("x", 8, 6) for _ in range(3))
    graph = n.load(tmp_path, n.linear(attend(n, q, k, v, 2, 3, scaled), 6, 8))
    assert ops(graph) == ["Linear"] * 3 + ["Attention", "Linear"]
    op = graph.ops[3]
    assert isinstance(op, ir.Attention)
    assert (op.heads, op.head_dim) == (2, 3)
    assert op.scale == pytest.approx(1 if scaled in ("in the weights", "not at all") else 3**-0.5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(["qkv", "heads", "size"]), how=st.sampled_from(["gather", "split", "slice"]))
def test_any_order_of_fused_channels(tmp_path: Path, order: list[str], how: str) -> None:
    """Whatever the order of the fused projection's channels, q, k and v come out head-major."""
    tokens, heads, size = 4, 2, 3
    n = Net(1, tokens, 5)
    extents = {"qkv": 3, "heads": heads, "size": size}
    y = n.op("Reshape", n.linear("x", 5, 18), n.ints(1, tokens, *(extents[o] for o in order)))
    axes = {o: 2 + i for i, o in enumerate(order)}
    y = n.op("Transpose", y, perm=[axes["qkv"], 0, axes["heads"], 1, axes["size"]])
    if how == "gather":
        parts = [n.op("Gather", y, n.const(i, np.int64), axis=0) for i in range(3)]
    elif how == "split":
        parts = [n.op("Squeeze", p, n.ints(0)) for p in n.split(y, 0, 3)]
    else:
        parts = [n.op("Slice", y, n.ints(i), n.ints(i + 1), n.ints(0)) for i in range(3)]
        parts = [n.op("Reshape", p, n.ints(heads, tokens, size)) for p in parts]
    q, k, v = parts
    last = [0, 1, 3, 2] if how != "slice" else [0, 2, 1]
    s = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=last)), n.const(0.5))
    y = n.op("MatMul", n.op("Softmax", s, axis=-1), v)
    y = n.op("Transpose", y, perm=[0, 2, 1, 3] if how != "slice" else [1, 0, 2])
    y = n.op("Reshape", y, n.ints(1, tokens, heads * size))
    graph = n.load(tmp_path, n.linear(y, 6, 5))
    assert ops(graph) == ["Linear"] * 3 + ["Attention", "Linear"]
    assert all(op.weight.shape == (6, 5) for op in graph.ops[:3])  # type: ignore[attr-defined]


def test_einsum_attention(tmp_path: Path) -> None:
    n = Net(1, 5, 8)
    q, k, v = (n.op("Reshape", n.linear("x", 8, 6), n.ints(1, 5, 2, 3)) for _ in range(3))
    p = n.op("Softmax", n.op("Einsum", q, k, equation="bihd,bjhd->bhij"), axis=-1)
    y = n.op("Reshape", n.op("Einsum", p, v, equation="bhij,bjhd->bihd"), n.ints(1, 5, 6))
    graph = n.load(tmp_path, n.op("Einsum", y, n.random(6, 4), equation="bnd,de->bne"))
    assert ops(graph) == ["Linear"] * 3 + ["Attention", "Linear"]


def test_transposed_scores(tmp_path: Path) -> None:
    n = Net(1, 5, 8)
    q, k, v = (n.linear("x", 8, 6) for _ in range(3))
    s = n.op("MatMul", k, n.op("Transpose", q, perm=[0, 2, 1]))
    p = n.op("Softmax", n.op("Transpose", s, perm=[0, 2, 1]), axis=-1)
    assert ops(n.load(tmp_path, n.op("MatMul", p, v))) == ["Linear"] * 3 + ["Attention"]


def test_the_attention_operator(tmp_path: Path) -> None:
    n = Net(1, 5, 8, opset=23)
    q, k, v = (n.linear("x", 8, w) for w in (8, 4, 4))
    y = n.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=2)
    graph = n.load(tmp_path, n.linear(y, 8, 3))
    op = graph.ops[3]
    assert isinstance(op, ir.Attention)
    assert (op.heads, op.head_dim, op.scale) == (4, 2, pytest.approx(2**-0.5))


# Folding of constants.


def test_constants_fold_into_the_layers_beside_them(tmp_path: Path) -> None:
    n = Net(1, 5, 8)
    y = n.op("Mul", n.linear("x", 8, 6), n.random(6))  # LayerScale
    y = n.op("Sub", n.random(6), y)
    z = n.op("Relu", y)
    z = n.op("Add", n.op("Div", z, n.random(6)), n.random(6))  # into the layer after it
    z = n.linear(z, 6, 8)
    total = n.op("Mul", n.op("Add", n.op("Add", "x", z), n.random(8)), n.const(1.0))
    y = n.op("LayerNormalization", total, n.random(8), n.random(8), axis=-1)
    y = n.op("Add", n.op("Mul", y, n.random(8)), n.random(8))
    graph = n.load(tmp_path, n.linear(y, 8, 3, bias=False))
    assert ops(graph) == ["Linear", "Activation", "Linear", "Add", "LayerNorm", "Linear"]


def test_gemm_in_all_its_forms(tmp_path: Path) -> None:
    n = Net(1, 8)
    y = n.op("Gemm", "x", n.random(8, 6), n.random(6), alpha=0.5, beta=2.0)
    y = n.op("Gemm", n.op("Transpose", y, perm=[1, 0]), n.random(4, 6), n.random(1, 4), transA=1, transB=1)
    graph = n.load(tmp_path, n.op("MatMul", n.random(3, 4), n.op("Transpose", y, perm=[1, 0])))
    assert ops(graph) == ["Linear"] * 3


# Images.


def patches(n: Net, x: str, form: str) -> str:
    if form == "conv":
        return n.op("Conv", x, n.random(5, 3, 2, 4), n.random(5), kernel_shape=[2, 4], strides=[2, 4])
    if form == "padded to nothing":
        x = n.op("Pad", x, n.ints(*[0] * 8))
        return n.op("Conv", x, n.random(5, 3, 2, 4), strides=[2, 4], pads=[0, 0, 0, 0])
    y = n.op("Reshape", x, n.ints(1, 3, 3, 2, 2, 4))
    y = n.op("Transpose", y, perm=[0, 2, 4, 3, 5, 1] if form == "channels last" else [0, 2, 4, 1, 3, 5])
    y = n.linear(n.op("Reshape", y, n.ints(1, 6, 24)), 24, 5)
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1]), n.ints(1, 5, 3, 2))


@pytest.mark.parametrize("form", ["conv", "padded to nothing", "channels last", "channels first"])
@pytest.mark.parametrize("normalised", [True, False])
def test_patches(tmp_path: Path, form: str, normalised: bool) -> None:
    n = Net(1, 3, 6, 8)
    x = "x"
    if normalised:
        x = n.op("Div", n.op("Sub", x, n.random(1, 3, 1, 1)), n.const(np.array([0.5, 2, 3]).reshape(3, 1, 1)))
    y = n.op("Add", patches(n, x, form), n.random(1, 5, 3, 2))  # positions, before they are tokens
    y = n.op("Transpose", n.op("Flatten", y, axis=2), perm=[1, 0]) if form == "flat" else y
    y = n.op("Transpose", n.op("Reshape", y, n.ints(1, 5, -1)), perm=[0, 2, 1])
    y = n.op("Concat", n.random(1, 2, 5), y, axis=1)
    graph = n.load(tmp_path, n.linear(y, 5, 4))
    assert ops(graph) == ["PatchEmbed", "Assemble", "Linear"]
    assert graph.tensors["x"] == (3, 6, 8)
    assert graph.ops[0].patch == (2, 4)  # type: ignore[attr-defined]
    assert graph.ops[1].prefix.shape == (2, 5)  # type: ignore[attr-defined]


def test_grey_images_without_a_channel_axis_and_of_bytes(tmp_path: Path) -> None:
    n = Net("n", 4, 6, dtype=TensorProto.UINT8)
    y = n.op("Div", n.op("Cast", "x", to=TensorProto.FLOAT), n.const(255))
    y = n.op("Transpose", n.op("Reshape", y, n.ints(-1, 2, 2, 3, 2)), perm=[0, 1, 3, 2, 4])
    graph = n.load(tmp_path, n.linear(n.op("Reshape", y, n.ints(-1, 6, 4)), 4, 5))
    assert ops(graph) == ["PatchEmbed"]
    assert (graph.inputs[0].shape, graph.inputs[0].model_shape, graph.inputs[0].dtype) == (
        (1, 4, 6),
        (4, 6),
        "uint8",
    )


def test_a_map_is_an_output_in_another_order(tmp_path: Path) -> None:
    n = Net(1, 3, 4, 4)
    y = n.op("Conv", "x", n.random(5, 3, 2, 2), strides=[2, 2])
    y = n.op("Relu", n.op("Conv", n.op("Relu", y), n.random(4, 5, 1, 1), n.random(4)))
    fine = n.op("DepthToSpace", y, blocksize=2)
    graph = n.load(tmp_path, y, fine)
    assert ops(graph) == ["PatchEmbed", "Activation", "Linear", "Activation"]
    assert [o.model_shape for o in graph.outputs] == [(4, 2, 2), (1, 4, 4)]


@pytest.mark.parametrize("form", ["mean", "pool"])
def test_mean_over_tokens(tmp_path: Path, form: str) -> None:
    n = Net(1, 3, 4, 4)
    y = n.op("Conv", "x", n.random(5, 3, 2, 2), strides=[2, 2])
    if form == "pool":
        y = n.op("Flatten", n.op("GlobalAveragePool", y))
    else:
        y = n.op("ReduceMean", n.op("Reshape", y, n.ints(1, 5, -1)), n.ints(-1), keepdims=0)
    graph = n.load(tmp_path, n.linear(y, 5, 7))
    assert ops(graph) == ["PatchEmbed"] + ["Linear"] * 3 + ["Attention", "Rows", "Linear"]


# Shapes that are computed, branches, several outputs.


def test_shapes_are_computed_and_branches_taken(tmp_path: Path) -> None:
    n = Net("batch", 4, 8)
    batch = n.op("Gather", n.op("Shape", "x"), n.const(0, np.int64), axis=0)
    shape = n.op("Concat", n.op("Unsqueeze", batch, n.ints(0)), n.ints(2, 16), axis=0)
    y = n.op("Reshape", "x", shape)
    y = n.op("Reshape", y, n.op("Shape", "x"))
    is_batch_one = n.op("Equal", batch, n.const(1, np.int64))
    branches = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Sin")):
        node = helper.make_node(kind, ["y_in"], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [out])
    n.nodes.append(helper.make_node("Identity", [n.linear(y, 8, 8)], ["y_in"]))
    graph = n.load(tmp_path, n.linear(n.op("If", is_batch_one, **branches), 8, 3))
    assert ops(graph) == ["Linear", "Activation", "Linear"]


def test_several_outputs_and_unused_nodes(tmp_path: Path) -> None:
    n = Net(1, 4, 8)
    y = n.op("LayerNormalization", "x", n.random(8), axis=-1)
    n.op("Sin", y)
    n.op("NonZero", y)
    first = n.linear(n.op("Gather", y, n.const(0, np.int64), axis=1), 8, 3)
    second = n.linear(n.op("Slice", y, n.ints(1), n.ints(4), n.ints(1)), 8, 3)
    graph = n.load(tmp_path, first, second, y)
    assert [o.name for o in graph.outputs] == [first, second, y]
    assert [o.model_shape for o in graph.outputs] == [(3,), (3, 3), (4, 8)]
    assert graph.counts() == {"LayerNorm": 1, "Rows": 2, "Linear": 2}


def test_a_deep_model_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    n = Net(1, 2, 4)
    x = "x"
    for _ in range(150):
        y = n.op("LayerNormalization", x, n.random(4), axis=-1)
        x = n.op("Add", x, n.linear(n.op("Relu", n.linear(y, 4, 4)), 4, 4))
    assert n.load(tmp_path, n.linear(x, 4, 2)).counts()["Add"] == 150


# What is refused.


def masked(n: Net) -> str:
    q, k, v = (n.linear("x", 8, 6) for _ in range(3))
    s = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1]))
    s = n.op("Add", s, n.const(np.triu(np.full((5, 5), -1e9), 1)))
    return n.op("MatMul", n.op("Softmax", s, axis=-1), v)


REFUSED: list[tuple[Callable[[Net], str], Sequence[str], str]] = [
    (lambda n: n.op("Sin", "x"), ["Sin"], "no Sin"),
    (lambda n: n.op("Thing", "x", domain="other"), ["other.Thing"], "no other.Thing"),
    (lambda n: n.op("Softmax", n.linear("x", 8, 4), axis=-1), ["Softmax"], "outside attention"),
    (lambda n: n.op("Softmax", n.linear("x", 8, 4), axis=1), ["Softmax"], "not over the last axis"),
    (lambda n: n.op("Elu", n.linear("x", 8, 4)), ["Elu"], "elementwise function"),
    (lambda n: n.op("Mul", n.linear("x", 8, 4), n.linear("x", 8, 4)), ["Mul"], "two computed tensors"),
    (lambda n: n.op("MatMul", n.linear("x", 8, 5), n.linear("x", 8, 4)), ["MatMul"], "outside attention"),
    (masked, ["MatMul"], "mask"),
    (lambda n: n.op("ReduceMean", n.linear("x", 8, 4), n.ints(2)), ["ReduceMean"], "neither over all tokens"),
    (lambda n: n.op("ReduceSum", n.linear("x", 8, 4), n.ints(2)), ["ReduceSum"], "neither over all tokens"),
    (lambda n: n.op("Mul", n.op("Relu", n.linear("x", 8, 4)), n.random(4)), ["Relu"], "scaled by constants"),
    (lambda n: n.op("Mul", n.linear("x", 8, 4), n.random(5, 4)), [], "differ between tokens"),
    (lambda n: n.op("MatMul", "x", n.random(1, 8, 8)) and n.op("Abs", "x"), ["Abs"], "elementwise function"),
    (lambda n: n.op("Reshape", "x", n.op("Cast", n.op("Relu", "x"), to=7)), ["Reshape", "Cast"], "integers"),
    (lambda n: n.op("QuantizeLinear", n.linear("x", 8, 4), n.const(0.1)), ["QuantizeLinear"], "float model"),
    (
        lambda n: n.linear(n.op("Reshape", n.linear("x", 8, 4), n.ints(1, 4, 5)), 5, 3),
        ["MatMul"],
        "rearranged",
    ),
    (
        lambda n: n.linear(n.op("Gather", n.linear("x", 8, 4), n.ints(3, 1), axis=1), 4, 3),
        ["MatMul"],
        "another order",
    ),
    (
        lambda n: n.linear(n.op("Concat", n.op("Relu", n.linear("x", 8, 8)), "x", axis=1), 8, 3),
        ["MatMul"],
        "joined from 2",
    ),
]


@pytest.mark.parametrize(
    ("build", "kinds", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refused(tmp_path: Path, build: Callable[[Net], str], kinds: Sequence[str], message: str) -> None:
    n = Net(1, 5, 8, opset=20)
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        n.load(tmp_path, build(n))
    assert not kinds or [node.op for node in caught.value.nodes] == kinds
    for node in caught.value.nodes:
        assert node.name
        assert node.reason
        assert node.way_out
    assert "KeyError" not in str(caught.value)


def test_all_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    n = Net(1, 5, 8, opset=20)
    y = n.op("Sin", n.linear("x", 8, 8))
    y = n.linear(n.op("Elu", n.linear(y, 8, 8)), 8, 8)
    y = n.op("Add", y, n.op("Cos", n.linear("x", 8, 8)))
    z = n.op("NonZero", y)  # its shape depends on the data, so what follows is not looked at
    with pytest.raises(UnsupportedOpError) as caught:
        n.load(tmp_path, n.op("Tan", z), n.linear(n.op("Softmax", y, axis=-1), 8, 4))
    assert {node.op for node in caught.value.nodes} == {"Sin", "Elu", "Cos", "NonZero", "Softmax"}


CONVS = [
    ({"strides": [1, 1]}, "stride 1x1"),
    ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, "padded"),
    ({"strides": [2, 2], "dilations": [2, 2]}, "dilated"),
    ({"strides": [2, 2], "group": 3}, "3 groups"),
]


@pytest.mark.parametrize(("attributes", "message"), CONVS)
def test_convolutions_that_are_refused(tmp_path: Path, attributes: dict[str, object], message: str) -> None:
    n = Net(1, 3, 8, 8)
    weight = n.random(6, 1 if "group" in attributes else 3, 2, 2)
    with pytest.raises(UnsupportedOpError, match=message):
        n.load(tmp_path, n.op("Conv", "x", weight, **attributes))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Net(4, 5, 8), "batch of 4"),
        (Net("batch", "tokens", 8), "only the batch may be dynamic"),
        (Net(8), "first extent"),
        (Net(1, 5, 8, dtype=TensorProto.DOUBLE), "float64"),
        (Net(1, 5, 8, opset=9), "operator set 9"),
        (Net(1, 5, 8, opset=99), "operator set 99"),
    ],
)
def test_inputs_that_are_refused(tmp_path: Path, net: Net, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        net.load(tmp_path, net.op("Relu", "x"))
    assert caught.value.mend


def test_a_constant_output_is_refused(tmp_path: Path) -> None:
    n = Net(1, 5, 8)
    with pytest.raises(ModelError, match="is constant"):
        n.load(tmp_path, n.op("Relu", n.random(2, 2)))


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Range", "Pad"])
def test_a_hostile_model_does_not_exhaust_memory(tmp_path: Path, kind: str) -> None:
    n, huge = Net(1, 5, 8), 1 << 40
    y = {
        "ConstantOfShape": lambda: n.op("ConstantOfShape", n.ints(huge)),
        "Expand": lambda: n.op("Expand", n.random(1, 1), n.ints(huge, 8)),
        "Tile": lambda: n.op("Tile", n.random(1, 8), n.ints(huge, 1)),
        "Range": lambda: n.op("Range", n.const(0), n.const(1e12), n.const(1)),
        "Pad": lambda: n.op("Pad", n.random(1, 8), n.ints(huge, 0, 0, 0)),
    }[kind]()
    with pytest.raises(UnsupportedOpError, match="elements"):
        n.load(tmp_path, n.op("Add", "x", y))
