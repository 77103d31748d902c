"""What onnxruntime's optimisers fuse, read as what it was. `load` itself compares each model with onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import partition_nets as nets
import pytest
from onnx_net import Net, ops

from moevit.compiler import ir
from moevit.compiler.frontend import load
from moevit.errors import UnsupportedOpError

TOKENS, WIDTH, HEADS = 5, 8, 2


def fused(n: Net, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
    return n.op(op, *inputs, outputs=outputs, domain="com.microsoft", **attributes)


def net() -> Net:
    return Net(1, TOKENS, WIDTH)


@pytest.mark.parametrize(
    ("op", "bias", "kind"),
    [("Gelu", False, "gelu"), ("BiasGelu", True, "gelu"), ("FastGelu", False, "gelu_tanh"),
     ("FastGelu", True, "gelu_tanh"), ("QuickGelu", False, "silu")],
)  # fmt: skip
def test_activations(op: str, bias: bool, kind: str, tmp_path: Path) -> None:
    n = net()
    y = n.linear("x", WIDTH, 6, bias=False)
    graph = n.load(tmp_path, n.linear(fused(n, op, y, *[n.random(6)] * bias), 6, 4))
    (activation,) = [o for o in graph if isinstance(o, ir.Activation)]
    assert activation.kind == kind


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_product_with_a_constant(side: str, tmp_path: Path) -> None:
    n = net()
    if side == "B":
        y = fused(n, "FusedMatMul", "x", n.random(6, WIDTH), transB=1, alpha=0.5)
    else:
        y = fused(n, "FusedMatMul", n.op("Transpose", "x", perm=[0, 2, 1]), n.random(WIDTH, 6), transA=1, alpha=0.5)
    assert ops(n.load(tmp_path, y)) == ["Linear"]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_and_its_norm(centred: bool, bias: bool, tmp_path: Path) -> None:
    """The residual itself, the fourth output, goes on."""
    n = net()
    x = n.linear("x", WIDTH, WIDTH)
    y = n.linear(x, WIDTH, WIDTH, bias=False)
    extra = [n.random(WIDTH)] * bias
    op, constants = "SkipLayerNormalization", [n.random(WIDTH), n.random(WIDTH)]
    if not centred:
        op, constants = "SkipSimplifiedLayerNormalization", [n.random(WIDTH)]
    z = fused(n, op, y, x, *constants, *extra, outputs=4, epsilon=1e-6)
    n.nodes[-1].output[1:3] = ["", ""]
    z = n.op("Add", n.linear(z, WIDTH, WIDTH), z[:-1] + "3")
    graph = n.load(tmp_path, n.linear(z, WIDTH, 4))
    assert ops(graph).count("LayerNorm") == 1 and ops(graph).count("Add") == 2


def test_attention_with_its_matrix(tmp_path: Path) -> None:
    n = net()
    y = fused(n, "Attention", "x", n.random(WIDTH, 3 * WIDTH), n.random(3 * WIDTH), num_heads=HEADS)
    graph = n.load(tmp_path, n.linear(y, WIDTH, 4))
    assert ops(graph) == ["Linear", "Linear", "Linear", "Attention", "Linear"]


@pytest.mark.parametrize("bias", [True, False])
def test_attention_of_three(bias: bool, tmp_path: Path) -> None:
    n = net()
    q, k, v = (n.linear("x", WIDTH, WIDTH, bias=False) for _ in range(3))
    y = fused(n, "MultiHeadAttention", q, k, v, *[n.random(3 * WIDTH)] * bias, num_heads=HEADS, scale=0.4)
    assert "Attention" in ops(n.load(tmp_path, n.linear(y, WIDTH, 4)))


def masked(n: Net) -> str:
    mask = n.const(np.ones((1, TOKENS)), np.int32)
    return fused(n, "Attention", "x", n.random(WIDTH, 3 * WIDTH), n.random(3 * WIDTH), mask, num_heads=HEADS)


def causal(n: Net) -> str:
    weights = n.random(WIDTH, 3 * WIDTH), n.random(3 * WIDTH)
    return fused(n, "Attention", "x", *weights, num_heads=HEADS, unidirectional=1)


@pytest.mark.parametrize("build", [masked, causal])
def test_what_attention_has_more_is_refused(build: Callable[[Net], str], tmp_path: Path) -> None:
    n = net()
    with pytest.raises(UnsupportedOpError, match="attention with a mask, a cache or a bias"):
        n.load(tmp_path, n.linear(build(n), WIDTH, 4))


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_a_model_that_onnxruntime_has_optimised(level: str, tmp_path: Path) -> None:
    n = nets.Vit()
    path = n.save(tmp_path / "m.onnx", n.head(n.block(n.block(n.embed()))))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options)
    assert load(tmp_path / "optimised.onnx").macs() == load(path).macs()
