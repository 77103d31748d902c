"""The graph's rules, and its interpreter against plain NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from moevit.compiler import ir
from moevit.compiler.calibrate import calibrate
from moevit.compiler.interpret import ACTIVATIONS, erf, outputs, route, run
from moevit.compiler.verify import GraphError, run_passes, verify
from moevit.errors import InputError

RNG = np.random.default_rng(1)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def linear(x: str, output: str, inputs: int, count: int) -> ir.Linear:
    return ir.Linear(name=output, output=output, x=x, weight=f32(count, inputs), bias=f32(count))


def graph(*ops: ir.Op, tokens: int = 5, channels: int = 6, output: str | None = None) -> ir.Graph:
    tensor = output or (ops[-1].output if ops else "x")
    entry = ir.Input(name="x", shape=(tokens, channels), model_shape=(tokens, channels))
    shape = ir.Graph(name="g", inputs=(entry,), outputs=(), ops=ops).tensors.get(tensor, (1,))
    return ir.Graph(
        name="g", inputs=(entry,), outputs=(ir.Output(name="y", tensor=tensor, model_shape=shape),), ops=ops
    )


def test_a_correct_graph_passes() -> None:
    g = graph(linear("x", "a", 6, 4), ir.Activation(name="b", output="b", x="a", kind="relu"))
    assert verify(g) is g
    assert g.counts() == {"Linear": 1, "Activation": 1}
    assert g.macs() == 5 * 6 * 4
    assert g.tensors == {"x": (5, 6), "a": (5, 4), "b": (5, 4)}
    assert g.producer("a") is g.ops[0]
    assert g.producer("x") is None
    assert g.consumers("a") == (g.ops[1],)


def moe(**fields: object) -> ir.MoE:
    """Four experts of hidden width 3 on six channels, five wide at the output."""
    arrays = {
        "gate_weight": f32(4, 6), "gate_bias": f32(4), "up_weight": f32(4, 3, 6), "up_bias": f32(4, 3),
        "down_weight": f32(4, 5, 3), "down_bias": f32(4, 5),
    }  # fmt: skip
    rest = {"order": "softmax_topk", "top_k": 2, "threshold": 0.0, "activation": "gelu"}
    return ir.MoE(name="m", output="m", x="x", **(arrays | rest | fields))  # type: ignore[arg-type]


NAN = linear("x", "a", 6, 4)
NAN.weight[0, 0] = np.nan


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ((linear("nothing", "a", 6, 4),), "reads 'nothing'"),
        ((linear("b", "a", 6, 4), linear("x", "b", 6, 6)), "reads 'b'"),
        (
            (linear("x", "a", 6, 4), replace(linear("x", "a", 6, 4), name="other")),
            "defines 'a' a second time",
        ),
        ((linear("x", "a", 6, 4), replace(linear("x", "b", 6, 4), name="a")), "has its name"),
        ((linear("x", "a", 7, 4),), r"weight \(4, 7\), x \(5, 6\)"),
        ((linear("x", "a", 6, 4), linear("x", "b", 6, 4)), "nothing uses its output 'a'"),
        ((NAN,), "'weight' is not finite"),
        ((replace(linear("x", "a", 6, 4), weight=np.zeros((4, 6))),), "float64, not float32"),
        ((ir.Rows(name="r", output="r", x="x", start=3, count=3),), "rows of"),
        ((ir.Activation(name="r", output="r", x="x", kind="tanh"),), "unknown activation"),
        (
            (ir.Attention(name="r", output="r", q="x", k="x", v="x", heads=4, head_dim=2, scale=1.0),),
            "4 heads",
        ),
        ((linear("x", "a", 6, 4), ir.Add(name="r", output="r", a="a", b="x")), "a "),
        ((moe(top_k=5),), "top_k is 5 of 4 experts"),
        ((moe(top_k=0),), "top_k is 0"),
        ((moe(order="none"),), "unknown order 'none'"),
        ((moe(activation="tanh"),), "unknown activation 'tanh'"),
        ((moe(threshold=-1.0),), "threshold is -1"),
        ((moe(gate_weight=f32(4, 5)),), r"gate_weight \(4, 5\), x \(5, 6\)"),
        ((moe(gate_bias=f32(5)),), "gate_bias"),
        ((moe(up_weight=f32(4, 3, 5)),), "up_weight"),
        ((moe(up_bias=f32(4, 5)),), "up_bias"),
        ((moe(down_weight=f32(3, 5, 3)),), "down_weight"),
        ((moe(down_bias=f32(4, 6)),), "down_bias"),
        ((moe(up_bias=np.full((4, 3), np.nan, np.float32)),), "'up_bias' is not finite"),
        ((ir.LayerNorm(name="r", output="r", x="x", gamma=f32(5), beta=f32(5), eps=0.0),), "gamma"),
        ((ir.Assemble(name="r", output="r", x="x", prefix=f32(1, 6), pos=f32(4, 6)),), "pos"),
        (
            (ir.PatchEmbed(name="r", output="r", x="x", weight=f32(2, 4), bias=f32(2), patch=(2, 2)),),
            "the image must be",
        ),
    ],
)
def test_a_broken_graph_is_refused(ops: tuple[ir.Op, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        verify(graph(*ops), "breaking it")
    assert "after breaking it" in str(caught.value)


def test_the_pass_that_broke_the_graph_is_named() -> None:
    good = graph(linear("x", "a", 6, 4))
    with pytest.raises(GraphError, match="after cut at Linear 'a': reads 'z'"):
        run_passes(good, {"nothing": lambda g: g, "cut": lambda g: g.replaced([replace(g.ops[0], x="z")])})


@pytest.mark.parametrize(
    "output",
    [
        ir.Output(name="y", tensor="z", model_shape=(5, 6)),
        ir.Output(name="y", tensor="x", model_shape=(5, 7)),
        ir.Output(name="y", tensor="x", model_shape=(2,), order=np.array([0, 30])),
    ],
)
def test_an_output_that_does_not_fit_is_refused(output: ir.Output) -> None:
    with pytest.raises(GraphError, match="output 'y'"):
        verify(replace(graph(), outputs=(output,)))
    with pytest.raises(GraphError, match="no output"):
        verify(replace(graph(), outputs=()))


def test_erf_and_activations() -> None:
    x = np.linspace(-6, 6, 999).astype(np.float32)
    want = np.array([math.erf(v) for v in x])
    assert np.max(np.abs(erf(x) - want)) < 5e-7
    gelu = 0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    assert np.max(np.abs(ACTIVATIONS["gelu"](x) - gelu)) < 2e-6
    assert np.max(np.abs(ACTIVATIONS["gelu_tanh"](x) - gelu)) < 1e-3
    assert np.max(np.abs(ACTIVATIONS["silu"](x) - x / (1 + np.exp(-x.astype(float))))) < 2e-6
    assert all(kind in ACTIVATIONS for kind in ir.ACTIVATION_KINDS)


def test_every_operation_against_plain_numpy() -> None:
    image = f32(2, 3, 4, 7)
    embed = ir.PatchEmbed(name="e", output="e", x="i", weight=f32(4, 12), bias=f32(4), patch=(2, 2))
    tokens = ir.Assemble(name="t", output="t", x="e", prefix=f32(2, 4), pos=f32(6, 4))
    norm = ir.LayerNorm(name="n", output="n", x="t", gamma=f32(4), beta=f32(4), eps=1e-3)
    attend = ir.Attention(name="a", output="a", q="n", k="n", v="t", heads=2, head_dim=2, scale=0.7)
    rows = ir.Rows(name="r", output="r", x="a", start=1, count=3)
    total = ir.Add(name="s", output="s", a="r", b="r")
    g = verify(
        ir.Graph(
            name="g",
            inputs=(ir.Input(name="i", shape=(3, 4, 7), model_shape=(3, 4, 7)),),
            outputs=(ir.Output(name="y", tensor="s", model_shape=(2, 2), order=np.array([3, 2, 1, 0])),),
            ops=(embed, tokens, norm, attend, rows, total),
        )
    )
    t = run(g, {"i": image})
    for b in range(2):
        for p in range(6):
            y, x = 2 * (p // 3), 2 * (p % 3)
            want = embed.weight @ image[b, :, y : y + 2, x : x + 2].reshape(-1) + embed.bias
            np.testing.assert_allclose(t["e"][b, p], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(t["t"][b, :2], tokens.prefix)
        np.testing.assert_array_equal(t["t"][b, 2:], t["e"][b] + tokens.pos)
        x = t["t"][b].astype(float)
        centred = x - x.mean(1, keepdims=True)
        want = centred / np.sqrt(x.var(1, keepdims=True) + 1e-3) * norm.gamma + norm.beta
        np.testing.assert_allclose(t["n"][b], want, rtol=1e-4, atol=1e-5)
        for h in range(2):
            q, v = t["n"][b, :, 2 * h : 2 * h + 2], t["t"][b, :, 2 * h : 2 * h + 2]
            p = np.exp(q @ q.T * 0.7)
            want = p / p.sum(1, keepdims=True) @ v
            np.testing.assert_allclose(t["a"][b, :, 2 * h : 2 * h + 2], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(t["s"][b], 2 * t["a"][b, 1:4])
    np.testing.assert_array_equal(outputs(g, t)["y"], t["s"].reshape(2, -1)[:, :4][:, ::-1].reshape(2, 2, 2))


def moe_of_token(op: ir.MoE, x: np.ndarray) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """One token through a mixture, plainly; and the hidden values of each expert that it goes to."""
    logits = op.gate_weight @ x + op.gate_bias
    softmax = np.exp(logits) / np.exp(logits).sum()
    best = sorted(range(op.experts), key=lambda e: (-logits[e], e))[: op.top_k]
    scale = 1.0 if op.order == "softmax_topk" else softmax[best].sum()
    out, hidden = np.zeros(op.down_bias.shape[1]), {}
    for e in best:
        if softmax[e] / scale >= op.threshold:
            hidden[e] = np.maximum(op.up_weight[e] @ x + op.up_bias[e], 0)
            out += softmax[e] / scale * (op.down_weight[e] @ hidden[e] + op.down_bias[e])
    return out, hidden


@pytest.mark.parametrize("order", ir.MOE_ORDERS)
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_mixture_against_plain_numpy(order: str, top_k: int, threshold: float) -> None:
    op = moe(order=order, top_k=top_k, threshold=threshold, activation="relu")
    g = verify(graph(op))
    assert g.tensors["m"] == (5, 5)
    assert g.macs() == 5 * (6 * 4 + top_k * 3 * (6 + 5))
    x = f32(7, 5, 6)
    got = run(g, {"x": x})["m"]
    want = np.stack([[moe_of_token(op, t)[0] for t in image] for image in x])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ir.MOE_ORDERS)
def test_of_equal_scores_the_lower_expert_is_taken(order: str) -> None:
    zeros = {"gate_weight": np.zeros((4, 6), np.float32), "gate_bias": np.float32([0, 1, 1, 1])}
    chosen, scores = route(moe(order=order, **zeros), np.float32([[0, 1, 1, 1]]))
    assert chosen.tolist() == [[1, 2]]
    assert scores[0, 0] == scores[0, 1]


def test_calibration_looks_into_a_mixture() -> None:
    """Each expert's range is that of its own tokens; of all tokens where it has none."""
    op = moe(gate_bias=np.float32([0, -1e3, 0, 0]), activation="relu", top_k=1)
    x = f32(70, 5, 6)  # three batches
    tokens = x.reshape(-1, 6)
    ranges = calibrate(graph(op), {"x": x})
    logits = tokens @ op.gate_weight.T + op.gate_bias
    assert set(ranges) == {"x", "m", "m#logits", *(f"m#hidden.{e}" for e in range(4))}
    assert ranges["m#logits"].low == pytest.approx(logits.min(), rel=1e-5)
    assert ranges["m#logits"].high == pytest.approx(logits.max(), rel=1e-5)
    for e in range(4):
        mine = tokens if e == 1 else tokens[logits.argmax(1) == e]
        hidden = np.maximum(mine @ op.up_weight[e].T + op.up_bias[e], 0)
        assert len(mine)
        assert ranges[f"m#hidden.{e}"].high == pytest.approx(hidden.max(), rel=1e-5)
        assert ranges[f"m#hidden.{e}"].low == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": f32(2, 5, 7)}, "shape"),
        ({"x": np.array(1.0)}, "shape"),
        ({"x": np.full((2, 5, 6), "a")}, "must be float32"),
    ],
)
def test_bad_inputs(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(graph(linear("x", "a", 6, 4)), inputs)
