"""Mixtures of experts in the front end: the shipped model, torch's exports, and blocks written out by hand.

Every model that loads has also been compared with onnxruntime, by `load` itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from onnx_net import Net, ops

from moevit.compiler import ir
from moevit.compiler.calibrate import calibrate
from moevit.compiler.frontend import check, check_against_onnxruntime, load
from moevit.compiler.interpret import outputs, run
from moevit.compiler.verify import verify
from moevit.errors import ModelError, UnsupportedOpError
from moevit.models.scenes import load_scenes, m3vit_path

TOKENS, DIM, EXPERTS, HIDDEN = 5, 8, 4, 6


def experts_of(graph: ir.Graph) -> list[ir.MoE]:
    return [op for op in graph if isinstance(op, ir.MoE)]


# The shipped model.


@pytest.fixture(scope="module", params=["seg", "depth"])
def shipped(request: pytest.FixtureRequest) -> tuple[Path, ir.Graph, np.ndarray]:
    images = load_scenes(m3vit_path("calib_scenes.npz")).images[:16]
    path = Path(m3vit_path(f"{request.param}.onnx"))
    return path, load(path), images.astype(np.float32) / 255


def test_the_shipped_model_has_three_mixtures(shipped: tuple[Path, ir.Graph, np.ndarray]) -> None:
    _, graph, _ = shipped
    assert verify(graph).counts() == {
        "PatchEmbed": 1, "Assemble": 1, "LayerNorm": 13, "Linear": 6 * 4 + 3 * 2 + 1, "Attention": 6,
        "Activation": 3, "MoE": 3, "Add": 12,
    }  # fmt: skip
    for op in experts_of(graph):
        assert op.up_weight.shape == op.down_weight.shape == (8, 96, 96)
        assert op.gate_weight.shape == (8, 96)
        assert not op.gate_bias.any()
        assert op.up_bias.any()
        assert (op.order, op.top_k, op.threshold, op.activation) == ("softmax_topk", 2, 0.0, "gelu")
        assert isinstance(graph.producer(op.x), ir.LayerNorm)
        assert graph.tensors[op.output] == (64, 96)
        assert isinstance(graph.consumers(op.output)[0], ir.Add)
        assert len(op.source) == 12  # from the normalisation to the sum


def test_the_shipped_model_equals_onnxruntime(shipped: tuple[Path, ir.Graph, np.ndarray]) -> None:
    path, graph, images = shipped
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"image": images})
    (got,) = outputs(graph, run(graph, {"image": images})).values()
    error = np.abs(got - want).max(axis=(1, 2, 3)) / np.abs(want).max()
    # In one image rounding may send a token to another expert with almost the same score.
    assert np.sort(error)[-2] <= 1e-4


def test_the_shipped_model_is_calibrated_expert_by_expert(shipped: tuple[Path, ir.Graph, np.ndarray]) -> None:
    _, graph, images = shipped
    ranges = calibrate(graph, {"image": images})
    for op in experts_of(graph):
        assert ranges[f"{op.output}#logits"].peak > 0.1
        hidden = [ranges[f"{op.output}#hidden.{e}"] for e in range(8)]
        assert all(-0.18 < r.low < 0 < r.high for r in hidden)  # GELU is never below -0.17
        assert len({r.high for r in hidden}) == 8
    assert set(graph.tensors) | {f"{op.output}#logits" for op in experts_of(graph)} <= set(ranges)


# What torch exports.


@pytest.mark.torch
@pytest.mark.parametrize("form", ["stacked", "unrolled"])
@pytest.mark.parametrize("gate", ["task", "shared"])
@pytest.mark.parametrize(("order", "threshold"), [("softmax_topk", 0.3), ("topk_softmax", 0.0)])
def test_exports(tmp_path: Path, form: str, gate: str, order: str, threshold: float) -> None:
    check_export(tmp_path, form=form, opset=20, gate=gate, order=order, threshold=threshold)


@pytest.mark.torch
@pytest.mark.parametrize(("form", "opset"), [("stacked", 18), ("unrolled", 18), ("stacked", 21)])
def test_exports_at_other_opsets(tmp_path: Path, form: str, opset: int) -> None:
    check_export(tmp_path, form=form, opset=opset, gate="task", order="softmax_topk", threshold=0.0)


@pytest.mark.torch
@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_k": 5}, {"experts": 1, "top_k": 1}])
def test_exports_of_few_experts(tmp_path: Path, change: dict[str, int]) -> None:
    for form in ("stacked", "unrolled"):
        check_export(tmp_path, form=form, opset=20, gate="task", order="softmax_topk", threshold=0.0, **change)


def check_export(path: Path, *, form: str, opset: int, **fields: object) -> None:
    import torch

    from moevit.models.m3vit import M3ViT, M3ViTConfig
    from moevit.models.m3vit_export import export

    settings: dict[str, object] = {
        "image_height": 16, "image_width": 24, "channels": 3, "patch_size": 8, "dim": 16, "depth": 2, "heads": 2,
        "hidden": 24, "moe_layers": (0, 1), "experts": 5, "expert_hidden": 12, "top_k": 2, "tasks": (("seg", 4),),
    }  # fmt: skip
    config = M3ViTConfig(**(settings | fields))  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = M3ViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    (file,) = export(model.eval(), path, form=form, opset=opset)
    graph = load(file, check=False)
    assert check_against_onnxruntime(file, graph) < 1e-4
    assert len(experts_of(graph)) == 2
    for layer, op in enumerate(experts_of(graph)):
        assert (op.experts, op.top_k, op.order) == (config.experts, config.top_k, config.order)
        assert op.threshold == pytest.approx(config.threshold)
        assert bool(op.gate_bias.any()) == (config.gate == "shared")
        assert op.activation == "gelu"
        weights = model.blocks[layer].mlp
        np.testing.assert_array_equal(op.up_weight, weights.weight1.detach().numpy().swapaxes(1, 2))
        np.testing.assert_array_equal(op.down_bias, weights.bias2.detach().numpy()[:, 0])


# By hand: gates.


def linear_gate(n: Net, x: str) -> str:
    return n.op("MatMul", x, n.random(DIM, EXPERTS))


def scatter(n: Net, index: str, scores: str, lead: Sequence[int] = (1, TOKENS), **attributes: object) -> str:
    zeros = n.const(np.zeros((*lead, EXPERTS)))
    return n.op("ScatterElements", zeros, index, scores, **({"axis": -1} | attributes))


def chosen(n: Net, x: str, k: int = 2, **attributes: object) -> tuple[str, str]:
    """TopK's values and indices."""
    values = n.op("TopK", x, n.ints(k), outputs=2, **({"axis": -1} | attributes))
    return values, values[:-1] + "1"


def softmax_topk(n: Net, x: str, k: int = 2, logits: str = "") -> str:
    values, index = chosen(n, n.op("Softmax", logits or linear_gate(n, x), axis=-1), k)
    return scatter(n, index, values)


def topk_softmax(n: Net, x: str, k: int = 2) -> str:
    values, index = chosen(n, linear_gate(n, x), k)
    return scatter(n, index, n.op("Softmax", values, axis=-1))


def renormalised(n: Net, x: str, epsilon: float = 0.0, k: int = 2, keepdims: int = 1) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, x), axis=-1), k)
    total = n.op("ReduceSum", values, n.ints(-1), keepdims=keepdims)
    total = total if keepdims else n.op("Unsqueeze", total, n.ints(2))
    total = n.op("Add", total, n.const(epsilon)) if epsilon else total
    return scatter(n, index, n.op("Div", values, total))


def gathered(n: Net, x: str, what: str) -> str:
    logits = linear_gate(n, x)
    softmax = n.op("Softmax", logits, axis=-1)
    _, index = chosen(n, logits if what == "scores" else softmax)
    taken = n.op("GatherElements", softmax if what == "scores" else logits, index, axis=2)
    return scatter(n, index, taken if what == "scores" else n.op("Softmax", taken, axis=-1))


def odd_types(n: Net, x: str) -> str:
    values, index = chosen(n, n.op("Add", linear_gate(n, x), n.random(EXPERTS)))
    index = n.op("Cast", n.op("Cast", index, to=TensorProto.INT32), to=TensorProto.INT64)
    scores = n.op("Cast", n.op("Softmax", values, axis=2), to=TensorProto.FLOAT)
    return scatter(n, index, scores, axis=2, reduction="add")


def flat_tokens(n: Net, x: str) -> str:
    logits = n.op("Gemm", n.op("Reshape", x, n.ints(TOKENS, DIM)), n.random(DIM, EXPERTS), n.random(EXPERTS))
    values, index = chosen(n, n.op("Softmax", logits, axis=-1))
    return n.op("Unsqueeze", scatter(n, index, values, lead=(TOKENS,)), n.ints(0))


def thresholded(n: Net, x: str, how: str) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, x), axis=-1))
    bound, zero = n.const(0.35), n.const(0)
    if how == "not less":
        scores = n.op("Where", n.op("Not", n.op("Less", values, bound)), values, zero)
    elif how == "less":
        scores = n.op("Where", n.op("Less", values, bound), zero, values)
    elif how == "constant first":
        scores = n.op("Where", n.op("LessOrEqual", bound, values), values, zero)
    elif how == "above":
        scores = n.op("Where", n.op("Greater", values, bound), values, zero)
    elif how == "times":
        scores = n.op("Mul", n.op("Cast", n.op("GreaterOrEqual", values, bound), to=TensorProto.FLOAT), values)
    else:  # of the whole gate
        gate = scatter(n, index, values)
        return n.op("Where", n.op("GreaterOrEqual", gate, bound), gate, zero)
    return scatter(n, index, scores)


THRESHOLDS = ["not less", "less", "constant first", "above", "times", "after"]
GATES: list[tuple[str, Callable[[Net, str], str]]] = [
    ("softmax_topk", softmax_topk),
    ("topk_softmax", topk_softmax),
    ("topk_softmax", renormalised),
    ("topk_softmax", partial(renormalised, epsilon=1e-9)),
    ("topk_softmax", partial(renormalised, keepdims=0)),
    ("topk_softmax", partial(renormalised, k=1)),
    ("softmax_topk", partial(gathered, what="scores")),
    ("topk_softmax", partial(gathered, what="logits")),
    ("topk_softmax", odd_types),
    ("softmax_topk", flat_tokens),
    *(("softmax_topk", partial(thresholded, how=how)) for how in THRESHOLDS),
]


@pytest.mark.parametrize(("order", "gate"), GATES)
def test_gates(tmp_path: Path, order: str, gate: Callable[[Net, str], str]) -> None:
    n = Net(1, TOKENS, DIM, opset=20)
    graph = n.load(tmp_path, unrolled(n, "x", gate(n, "x")))
    (op,) = experts_of(graph)
    assert ops(graph) == ["MoE"]
    assert op.order == order
    assert op.threshold == pytest.approx(0.35 if "how" in getattr(gate, "keywords", {}) else 0)
    assert op.top_k == getattr(gate, "keywords", {}).get("k", 2)


def test_the_scale_of_a_gate_goes_to_its_layers(tmp_path: Path) -> None:
    n = Net(1, TOKENS, DIM)
    values, index = chosen(n, n.op("Softmax", n.op("Div", linear_gate(n, "x"), n.const(0.5)), axis=-1))
    gate = scatter(n, index, n.op("Mul", values, n.const(2.5)))
    assert ops(n.load(tmp_path, unrolled(n, "x", n.op("Mul", gate, n.const(3))))) == ["MoE"]


# By hand: experts.


def expert(n: Net, x: str, activation: str = "Relu", hidden: int = HIDDEN, bias: bool = True) -> str:
    return n.linear(n.op(activation, n.linear(x, DIM, hidden, bias)), hidden, DIM, bias)


def score(n: Net, gate: str, e: int) -> str:
    return n.op("Slice", gate, n.ints(e), n.ints(e + 1), n.ints(-1))


def weighted(n: Net, x: str, gate: str, e: int) -> str:
    return n.op("Mul", expert(n, x), score(n, gate, e))


def chain(n: Net, *terms: str) -> str:
    total, *others = terms
    for term in others:
        total = n.op("Add", total, term)
    return total


def unrolled(n: Net, x: str, gate: str) -> str:
    return chain(n, *(weighted(n, x, gate, e) for e in range(EXPERTS)))


def out_of_order(n: Net, x: str, gate: str) -> str:
    a, b, c, d = (weighted(n, x, gate, e) for e in (2, 0, 3, 1))
    return n.op("Add", n.op("Add", a, b), n.op("Add", d, c))


def one_sum(n: Net, x: str, gate: str) -> str:
    return n.op("Sum", *(weighted(n, x, gate, e) for e in range(EXPERTS)))


def subtracted(n: Net, x: str, gate: str) -> str:
    a, b, c, d = (weighted(n, x, gate, e) for e in range(EXPERTS))
    return n.op("Sub", chain(n, a, b, c), n.op("Neg", d))


def split_scores(n: Net, x: str, gate: str) -> str:
    scores = n.split(gate, 2, EXPERTS)
    return chain(n, *(n.op("Mul", s, expert(n, x, bias=False)) for s in scores))


def gathered_scores(n: Net, x: str, gate: str) -> str:
    scores = [
        n.op("Unsqueeze", n.op("Gather", gate, n.const(e, np.int64), axis=2), n.ints(2)) for e in range(EXPERTS)
    ]
    return chain(n, *(n.op("Mul", s, expert(n, x)) for s in scores))


def spelt_gelu(n: Net, x: str) -> str:
    e = n.op("Erf", n.op("Div", x, n.const(np.sqrt(2))))
    return n.op("Mul", n.op("Mul", x, n.op("Add", e, n.const(1))), n.const(0.5))


def added_to_a_bias(n: Net, y: str, width: int, bias: bool) -> str:
    return n.op("Add", y, n.random(EXPERTS, 1, width)) if bias else y


def stacked_outputs(n: Net, x: str, bias: bool = True, weight: Callable[[int, int], str] | None = None) -> str:
    """All experts at once, `(1, E, N, D)`."""
    weight = weight or (lambda i, o: n.random(EXPERTS, i, o))
    y = n.op("MatMul", n.op("Unsqueeze", x, n.ints(1)), weight(DIM, HIDDEN))
    y = n.op("MatMul", spelt_gelu(n, added_to_a_bias(n, y, HIDDEN, bias)), weight(HIDDEN, DIM))
    return added_to_a_bias(n, y, DIM, bias)


def column_scores(n: Net, gate: str) -> str:
    return n.op("Unsqueeze", n.op("Transpose", gate, perm=[0, 2, 1]), n.ints(-1))


def stacked(n: Net, x: str, gate: str, **form: object) -> str:
    y = n.op("Mul", stacked_outputs(n, x, **form), column_scores(n, gate))  # type: ignore[arg-type]
    return n.op("ReduceSum", y, n.ints(1), keepdims=0)


def stacked_of_transposed_weights(n: Net, x: str, gate: str) -> str:
    return stacked(
        n, x, gate, weight=lambda i, o: n.op("Transpose", n.random(EXPERTS, o, i), perm=[0, 2, 1])
    )


def stacked_of_one_initialiser(n: Net, x: str, gate: str) -> str:
    merged = n.random(EXPERTS, 2 * DIM * HIDDEN)

    def weight(i: int, o: int) -> str:
        first = 0 if i == DIM else DIM * HIDDEN
        part = n.op("Slice", merged, n.ints(first), n.ints(first + DIM * HIDDEN), n.ints(1))
        return n.op("Reshape", part, n.ints(EXPERTS, i, o))

    return stacked(n, x, gate, weight=weight, bias=False)


def keeping_dims(n: Net, x: str, gate: str) -> str:
    y = n.op("Mul", column_scores(n, gate), stacked_outputs(n, x))
    return n.op("Squeeze", n.op("ReduceSum", y, n.ints(-3), keepdims=1), n.ints(1))


def experts_last(n: Net, x: str, gate: str) -> str:
    """`(1, N, E, D)` times `(1, N, E, 1)`."""
    y = n.op("Transpose", stacked_outputs(n, x), perm=[0, 2, 1, 3])
    return n.op("ReduceSum", n.op("Mul", y, n.op("Unsqueeze", gate, n.ints(3))), n.ints(2), keepdims=0)


def stack_of_products(n: Net, x: str, gate: str) -> str:
    parts = [n.op("Unsqueeze", weighted(n, x, gate, e), n.ints(0)) for e in range(EXPERTS)]
    return n.op("ReduceSum", n.op("Concat", *parts, axis=0), n.ints(0), keepdims=0)


def stack_of_outputs(n: Net, x: str, gate: str) -> str:
    parts = [n.op("Unsqueeze", expert(n, x), n.ints(1)) for _ in range(EXPERTS)]
    y = n.op("Mul", n.op("Concat", *parts, axis=1), column_scores(n, gate))
    return n.op("ReduceSum", y, n.ints(1), keepdims=0)


def product_with_scores(n: Net, x: str, gate: str) -> str:
    """`(1, N, 1, E) @ (1, N, E, D)`."""
    y = n.op("Transpose", stacked_outputs(n, x), perm=[0, 2, 1, 3])
    return n.op("Squeeze", n.op("MatMul", n.op("Unsqueeze", gate, n.ints(2)), y), n.ints(2))


def product_with_column(n: Net, x: str, gate: str) -> str:
    """`(1, N, D, E) @ (1, N, E, 1)`."""
    y = n.op("Transpose", stacked_outputs(n, x), perm=[0, 2, 3, 1])
    return n.op("Squeeze", n.op("MatMul", y, n.op("Unsqueeze", gate, n.ints(3))), n.ints(3))


def einsum(n: Net, x: str, gate: str) -> str:
    h = n.op("Relu", n.op("Einsum", x, n.random(EXPERTS, DIM, HIDDEN), equation="bnd,edh->bneh"))
    y = n.op("Einsum", h, n.random(EXPERTS, HIDDEN, DIM), equation="bneh,ehd->bned")
    return n.op("Einsum", gate, y, equation="bne,bned->bnd")


def flat_gemm(n: Net, x: str, gate: str) -> str:
    x, gate = n.op("Reshape", x, n.ints(TOKENS, DIM)), n.op("Reshape", gate, n.ints(TOKENS, EXPERTS))
    total = ""
    for e in range(EXPERTS):
        y = n.op("Relu", n.op("Gemm", x, n.random(HIDDEN, DIM), n.random(HIDDEN), transB=1))
        y = n.op("Mul", n.op("Gemm", y, n.random(HIDDEN, DIM), n.random(DIM)), score(n, gate, e))
        total = n.op("Add", total, y) if total else y
    return n.op("Unsqueeze", total, n.ints(0))


SPELLINGS = [
    unrolled, out_of_order, one_sum, subtracted, split_scores, gathered_scores, stacked, partial(stacked, bias=False),
    stacked_of_transposed_weights, stacked_of_one_initialiser, keeping_dims, experts_last, stack_of_products,
    stack_of_outputs, product_with_scores, product_with_column, einsum, flat_gemm,
]  # fmt: skip


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("norm", [True, False])
def test_experts(tmp_path: Path, spell: Callable[[Net, str, str], str], norm: bool) -> None:
    n = Net(1, TOKENS, DIM, opset=18)
    x = n.op("LayerNormalization", "x", n.random(DIM), n.random(DIM), axis=-1) if norm else "x"
    graph = n.load(tmp_path, n.op("Add", "x", spell(n, x, softmax_topk(n, x))))
    assert ops(graph) == ["LayerNorm"] * norm + ["MoE", "Add"]
    (op,) = experts_of(graph)
    assert op.gate_weight.shape == (EXPERTS, DIM)
    assert op.up_weight.shape == (EXPERTS, HIDDEN, DIM)
    assert op.down_weight.shape == (EXPERTS, DIM, HIDDEN)


def test_the_residual_may_come_first(tmp_path: Path) -> None:
    n = Net(1, TOKENS, DIM)
    gate = softmax_topk(n, "x")
    y = n.linear("x", DIM, DIM)
    parts = [weighted(n, "x", gate, e) for e in range(EXPERTS)]
    total = chain(n, y, *parts[:2], "x", *parts[2:])
    graph = n.load(tmp_path, n.linear(total, DIM, 3))
    assert sorted(ops(graph)) == ["Add", "Add", "Linear", "Linear", "MoE"]


def test_constants_fold_into_the_experts(tmp_path: Path) -> None:
    n = Net(1, TOKENS, DIM)
    x = n.op("Add", n.op("Mul", "x", n.random(DIM)), n.random(DIM))
    parts = []
    gate = topk_softmax(n, x)
    for e in range(EXPERTS):
        h = n.op("Mul", n.op("Relu", n.op("Mul", n.linear(x, DIM, HIDDEN), n.random(HIDDEN))), n.random(HIDDEN))
        y = n.op("Mul", n.linear(n.op("Add", h, n.random(HIDDEN)), HIDDEN, 3), n.random(3))
        parts.append(n.op("Mul", y, score(n, gate, e)))
    total = n.op("Add", n.op("Mul", chain(n, *parts), n.random(3)), n.random(3))
    graph = n.load(tmp_path, n.op("Relu", total))
    assert ops(graph) == ["MoE", "Activation"]
    assert graph.tensors[graph.ops[0].output] == (TOKENS, 3)


def test_two_mixtures_one_after_another(tmp_path: Path) -> None:
    n = Net(1, TOKENS, DIM)
    x = n.op("Add", "x", stacked(n, "x", softmax_topk(n, "x")))
    y = n.op("Add", x, unrolled(n, x, topk_softmax(n, x, k=3)))
    graph = n.load(tmp_path, y, x)
    assert ops(graph) == ["MoE", "Add", "MoE", "Add"]
    assert [op.top_k for op in experts_of(graph)] == [2, 3]


def test_a_near_tie_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check tries other inputs where rounding may have decided; a graph that is wrong fails nevertheless."""
    n = Net(1, TOKENS, DIM)
    path = n.save(tmp_path / "net.onnx", stacked(n, "x", softmax_topk(n, "x")))
    graph = load(path)
    (op,) = experts_of(graph)
    wrong = graph.replaced([replace(op, top_k=1)])
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        check_against_onnxruntime(path, wrong)
    graphs = [wrong, wrong, graph]
    monkeypatch.setattr(check, "run", lambda _, feeds: run(graphs.pop(0), feeds))
    assert check_against_onnxruntime(path, graph) < 1e-5
    assert not graphs


# onnxruntime's operator.


def contrib(n: Net, x: str, shapes: Sequence[Sequence[int]] = (), bias: bool = True, **attributes: object) -> str:
    up, down = shapes or ((EXPERTS, HIDDEN, DIM), (EXPERTS, DIM, HIDDEN))
    router = n.op("Reshape", n.linear(x, DIM, EXPERTS), n.ints(TOKENS, EXPERTS))
    b1, b2 = (n.random(EXPERTS, HIDDEN), n.random(EXPERTS, DIM)) if bias else ("", "")
    inputs = [x, router, n.random(*up), b1, n.random(*down), b2]
    return n.op("MoE", *inputs, domain="com.microsoft", **attributes)


@pytest.mark.parametrize("normalised", [0, 1])
@pytest.mark.parametrize(("activation", "kind"), [("relu", "relu"), ("gelu", "gelu_tanh"), ("silu", "silu")])
@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_of_onnxruntime(
    tmp_path: Path, normalised: int, activation: str, kind: str, bias: bool
) -> None:
    n = Net(1, TOKENS, DIM)
    y = contrib(n, "x", bias=bias, k=2, activation_type=activation, normalize_routing_weights=normalised)
    graph = n.load(tmp_path, n.op("Add", "x", y))
    (op,) = experts_of(graph)
    assert ops(graph) == ["MoE", "Add"]
    assert op.order == ("topk_softmax" if normalised else "softmax_topk")
    assert (op.activation, op.top_k, op.threshold) == (kind, 2, 0)
    assert op.up_weight.shape == (EXPERTS, HIDDEN, DIM)
    assert check_against_onnxruntime(tmp_path / "net.onnx", graph, n=20) < 1e-5


def test_the_operators_defaults(tmp_path: Path) -> None:
    n = Net(1, TOKENS, DIM)
    (op,) = experts_of(n.load(tmp_path, contrib(n, "x")))
    assert (op.order, op.top_k, op.activation) == ("softmax_topk", 1, "relu")


def with_third_layer(n: Net) -> str:
    y = contrib(n, "x", activation_type="silu")
    n.nodes[-1].input.append(n.random(EXPERTS, HIDDEN, DIM))
    return y


CONTRIB_REFUSED: list[tuple[Callable[[Net], str], str]] = [
    (lambda n: contrib(n, "x", activation_type="identity"), "activation is identity"),
    (lambda n: contrib(n, "x", activation_type="swiglu", swiglu_fusion=1), "activation is swiglu"),
    (lambda n: contrib(n, "x", use_sparse_mixer=1), "use_sparse_mixer"),
    (with_third_layer, "third layer"),
    (
        lambda n: contrib(n, "x", shapes=((EXPERTS, DIM, HIDDEN), (EXPERTS, HIDDEN, DIM))),
        "as older releases of onnxruntime had them",
    ),
    (lambda n: contrib(n, "x", k=5), "k 5"),
]


@pytest.mark.parametrize(("build", "message"), CONTRIB_REFUSED)
def test_the_operator_refused(tmp_path: Path, build: Callable[[Net], str], message: str) -> None:
    n = Net(1, TOKENS, DIM)
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        n.load(tmp_path, build(n))
    (node,) = caught.value.nodes
    assert node.op == "com.microsoft.MoE"
    assert node.way_out


# What is refused.


def smallest(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1), largest=0)
    return unrolled(n, "x", scatter(n, index, values))


def over_tokens(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1), axis=1)
    return unrolled(n, "x", n.op("ScatterElements", n.const(np.zeros((1, TOKENS, EXPERTS))), index, values, axis=1))


def of_sigmoids(n: Net) -> str:
    values, index = chosen(n, linear_gate(n, "x"))
    return unrolled(n, "x", scatter(n, index, n.op("Sigmoid", values)))


def of_logits(n: Net) -> str:
    values, index = chosen(n, linear_gate(n, "x"))
    return unrolled(n, "x", scatter(n, index, values))


def of_two_gates(n: Net) -> str:
    values, _ = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    _, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    return unrolled(n, "x", scatter(n, index, values))


def twice_normalised(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    return unrolled(n, "x", scatter(n, index, n.op("Softmax", values, axis=-1)))


def normalised_after_threshold(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    values = n.op("Where", n.op("Less", values, n.const(0.2)), n.const(0), values)
    values = n.op("Div", values, n.op("ReduceSum", values, n.ints(-1)))
    return unrolled(n, "x", scatter(n, index, values))


def normalised_by_too_much(n: Net) -> str:
    return unrolled(n, "x", renormalised(n, "x", epsilon=0.1))


def into_ones(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    ones = n.const(np.ones((1, TOKENS, EXPERTS)))
    return unrolled(n, "x", n.op("ScatterElements", ones, index, values, axis=-1))


def with_reduction(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    return unrolled(n, "x", scatter(n, index, values, reduction="max"))


def nonlinear_gate(n: Net) -> str:
    return unrolled(n, "x", softmax_topk(n, "x", logits=n.op("Relu", linear_gate(n, "x"))))


def gate_of_another(n: Net) -> str:
    return unrolled(n, n.op("LayerNormalization", "x", n.random(DIM), axis=-1), softmax_topk(n, "x"))


def raised_gate(n: Net) -> str:
    return unrolled(n, "x", n.op("Add", softmax_topk(n, "x"), n.const(0.1)))


def where_otherwise(n: Net) -> str:
    values, index = chosen(n, n.op("Softmax", linear_gate(n, "x"), axis=-1))
    values = n.op("Where", n.op("Less", values, n.const(0.2)), n.const(0.5), values)
    return unrolled(n, "x", scatter(n, index, values))


def reduced(n: Net, kind: str) -> str:
    y = n.op("Mul", stacked_outputs(n, "x"), column_scores(n, softmax_topk(n, "x")))
    return n.op(kind, y, n.ints(1), keepdims=0)


def over_channels(n: Net) -> str:
    y = n.op("Mul", stacked_outputs(n, "x"), column_scores(n, softmax_topk(n, "x")))
    return n.op("ReduceSum", y, n.ints(3), keepdims=0)


def incomplete(n: Net, *which: int) -> str:
    gate = softmax_topk(n, "x")
    return n.op("Add", "x", chain(n, *(weighted(n, "x", gate, e) for e in which)))


def of_experts(n: Net, *parts: Callable[[Net, str], str]) -> str:
    gate = softmax_topk(n, "x")
    return chain(n, *(n.op("Mul", p(n, "x"), score(n, gate, e)) for e, p in enumerate(parts)))


def scored_before(n: Net) -> str:
    gate = softmax_topk(n, "x")
    parts = []
    for e in range(EXPERTS):
        h = n.op("Mul", n.op("Relu", n.linear("x", DIM, HIDDEN)), score(n, gate, e))
        parts.append(n.linear(h, HIDDEN, DIM, bias=False))
    return chain(n, *parts)


def other_tokens(n: Net) -> str:
    gate = n.op("Gather", softmax_topk(n, "x"), n.ints(1, 0, 2, 3, 4), axis=1)
    return unrolled(n, "x", gate)


def crossed(n: Net) -> str:
    first, second = softmax_topk(n, "x"), softmax_topk(n, "x")
    parts = [weighted(n, "x", g, e) for e in range(EXPERTS) for g in (first, second)]
    return chain(n, *parts)


SQUARE = (lambda n, x: n.linear(x, DIM, DIM),) * EXPERTS
REFUSED: list[tuple[Callable[[Net], str], str, str]] = [
    (smallest, "TopK", "smallest"),
    (over_tokens, "TopK", "not over the last axis"),
    (of_sigmoids, "ScatterElements", "not made of the values of the TopK"),
    (of_logits, "ScatterElements", "no softmax"),
    (of_two_gates, "ScatterElements", "not made of the values of the TopK"),
    (twice_normalised, "ScatterElements", "not made of the values of the TopK"),
    (normalised_after_threshold, "ReduceSum", "no ReduceSum but over the experts"),
    (normalised_by_too_much, "Div", "Div of two computed tensors"),
    (into_ones, "ScatterElements", "into zeros"),
    (with_reduction, "ScatterElements", "reduction 'max'"),
    (nonlinear_gate, "Add", "its gate reads .* no linear layer"),
    (gate_of_another, "Add", "gate and the experts read different"),
    (raised_gate, "Mul", "a constant is added to the scores"),
    (where_otherwise, "Where", "something else than to replace"),
    (partial(reduced, kind="ReduceMean"), "ReduceMean", "averages experts"),
    (partial(reduced, kind="ReduceMax"), "ReduceMax", "no ReduceMax"),
    (over_channels, "ReduceSum", "something else than the experts"),
    (lambda n: incomplete(n, 0, 1, 3), "Add", "experts 0, 1, 3 of 4"),
    (lambda n: incomplete(n, 2), "Add", "expert 2 of 4"),
    (lambda n: incomplete(n, 0, 1, 1, 2, 3), "Add", "expert 1 a second time"),
    (lambda n: of_experts(n, expert, expert, expert, partial(expert, activation="Gelu")), "Add", "activations of"),
    (lambda n: of_experts(n, expert, expert, partial(expert, hidden=3), expert), "Add", "hidden widths"),
    (lambda n: of_experts(n, *SQUARE), "Add", "reads no activation"),
    (lambda n: of_experts(n, *[lambda n, x: n.op("Relu", x)] * EXPERTS), "Add", "no linear layer's"),
    (
        lambda n: of_experts(n, expert, expert, expert, lambda n, x: expert(n, n.op("Relu", x))),
        "Add",
        "read different tensors",
    ),
    (scored_before, "Mul", "expert 0 of 4 is used otherwise"),
    (other_tokens, "Mul", "do not multiply the outputs of that token"),
    (crossed, "Add", "different gates"),
    (lambda n: n.op("Add", stacked(n, "x", softmax_topk(n, "x")), n.random(DIM)), "ReduceSum", "a constant is added"),
    # Outside a mixture.
    (lambda n: chosen(n, n.linear("x", DIM, 4))[0], "TopK", "no mixture of experts"),
    (lambda n: n.op("Not", n.op("Less", "x", n.const(0.0))), "Less", "no Less but"),
    (lambda n: softmax_topk(n, "x"), "ScatterElements", "a gate's scores is no mixture"),
    (lambda n: n.op("Relu", softmax_topk(n, "x")), "ScatterElements", "a gate's scores is no mixture"),
    (lambda n: n.op("Cos", chosen(n, n.linear("x", DIM, 4))[0]), "Cos", "no Cos"),
]


@pytest.mark.parametrize(("build", "kind", "message"), REFUSED)
def test_refused(tmp_path: Path, build: Callable[[Net], str], kind: str, message: str) -> None:
    n = Net(1, TOKENS, DIM, opset=20)
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        n.load(tmp_path, build(n))
    named = [node for node in caught.value.nodes if node.op == kind]
    assert named, caught.value.nodes
    for node in caught.value.nodes:
        assert node.reason
        assert node.way_out
    assert any("mixture of experts" in n.way_out or "expert" in str(n) for n in caught.value.nodes)
    assert "Error" not in str(caught.value)


def test_all_that_is_wrong_around_a_mixture_is_named(tmp_path: Path) -> None:
    """Experts and gate are looked at too, and what comes before and after them."""
    n = Net(1, TOKENS, DIM, opset=20)
    x = n.op("Sin", "x")
    parts = [lambda n, x: expert(n, x, "Relu"), *[lambda n, x: expert(n, x, "Elu")] * 3]
    gate = softmax_topk(n, x)
    y = chain(n, *(n.op("Mul", p(n, x), score(n, gate, e)) for e, p in enumerate(parts)))
    with pytest.raises(UnsupportedOpError) as caught:
        n.load(tmp_path, n.op("Cos", y))
    assert {node.op for node in caught.value.nodes} >= {"Sin", "Elu", "Cos"}
