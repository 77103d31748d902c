"""The front end on the committed fixtures: exporters' models, broken files, models with foreign operators."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from moevit.compiler import ir
from moevit.compiler.frontend import check_against_onnxruntime, load
from moevit.compiler.interpret import outputs, run
from moevit.compiler.verify import verify
from moevit.errors import ModelError, UnsupportedOpError

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOOD = sorted(p for p in FIXTURES.glob("*.onnx") if not p.name.startswith("bad_"))
MODEL = Path(__file__).parents[2] / "models" / "fashion_vit" / "fashion_vit.onnx"


def test_there_are_fixtures() -> None:
    assert len(GOOD) >= 20


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_equals_onnxruntime(path: Path) -> None:
    graph = verify(load(path))
    data = dict(np.load(path.with_suffix(".npz")))
    feeds = {entry.name: data[entry.name] for entry in graph.inputs}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    images = len(next(iter(feeds.values())))
    rows = [session.run(None, {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(images)]
    got = outputs(graph, run(graph, feeds))
    assert list(got) == names
    for i, name in enumerate(names):
        want = np.concatenate([r[i] for r in rows])
        assert got[name].shape == want.shape
        assert np.max(np.abs(got[name] - want)) <= 1e-4 * np.max(np.abs(want))


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_has_the_structure_of_a_vision_transformer(path: Path) -> None:
    graph = load(path, check=False)
    counts = graph.counts()
    blocks = counts["Activation"]
    pooled = int("mean_pool" in path.stem)  # a mean over tokens is an attention of its own
    (assemble,) = [op for op in graph if isinstance(op, ir.Assemble)]
    heads = len(assemble.prefix)  # DeiT has a head for each of its two prefix tokens
    assert counts["PatchEmbed"] == counts["Assemble"] == 1
    assert counts["Attention"] == blocks + pooled
    assert counts["LayerNorm"] == 2 * blocks + heads
    assert counts["Linear"] == 6 * blocks + heads + 3 * pooled
    assert counts["Add"] == 2 * blocks + heads - 1
    kinds = {op.kind for op in graph if isinstance(op, ir.Activation)}
    assert kinds == {"gelu_tanh" if "tanh" in path.stem else "gelu"}
    for op in graph:
        assert op.source
        assert op.name == op.output
        if isinstance(op, ir.Attention) and op.head_dim != 64:
            assert op.scale == pytest.approx(1.0 if op.source[0] == "/ReduceMean" else op.head_dim**-0.5)


def test_only_the_class_token_reaches_the_head() -> None:
    graph = load(FIXTURES / "script17_unbind_sdpa.onnx", check=False)
    rows = next(op for op in graph if isinstance(op, ir.Rows))
    assert (rows.start, rows.count) == (0, 1)
    assert isinstance(graph.producer(rows.x), ir.Add)
    norm = next(op for op in graph.consumers(rows.output))
    assert isinstance(norm, ir.LayerNorm)
    assert graph.tensors[norm.output][0] == 1


def test_q_k_and_v_are_linear_layers_of_one_tensor() -> None:
    graph = load(FIXTURES / "dynamo20_odd37.onnx", check=False)
    for op in graph:
        if isinstance(op, ir.Attention):
            assert (op.heads, op.head_dim) == (3, 24)
            producers = [graph.producer(t) for t in op.inputs]
            assert all(isinstance(p, ir.Linear) and p.weight.shape == (72, 72) for p in producers)
            assert len({p.inputs for p in producers if p is not None}) == 1


def test_every_exporter_gives_the_same_graph() -> None:
    """The odd shape apart, models of the same structure have the same operations in the same order."""
    stems = (
        "dynamo20_hf",
        "dynamo19_slice",
        "dynamo18_norm_mul_hand",
        "script18_gather_before",
        "script20_hf",
    )
    kinds = [[type(op).__name__ for op in load(FIXTURES / f"{s}.onnx", check=False)] for s in stems]
    assert all(k == kinds[0] for k in kinds[1:])


@pytest.mark.skipif(not MODEL.is_file(), reason="the shipped model is not trained yet")
def test_the_shipped_model() -> None:
    assert check_against_onnxruntime(MODEL, load(MODEL)) < 1e-4


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("bad_truncated", "truncated"),
        ("bad_empty", "truncated"),
        ("bad_text", "not ONNX"),
        ("bad_cycle", "not valid ONNX"),
        ("bad_dangling", "nowhere"),
        ("bad_external", "external data"),
        ("bad_nan", "'head.weight' holds NaN"),
        ("bad_weight_shape", "16 channels and a matrix for 15"),
    ],
)
def test_a_broken_file_is_a_model_error(stem: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(FIXTURES / f"{stem}.onnx")
    assert str(caught.value).startswith(str(FIXTURES / stem))
    assert caught.value.mend
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(("stem", "op"), [("bad_lstm", "LSTM"), ("bad_conv3x3", "Conv")])
def test_a_foreign_operator_is_named(stem: str, op: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        load(FIXTURES / f"{stem}.onnx")
    (node,) = [n for n in caught.value.nodes if n.op == op]
    assert node.name
    assert node.reason
    assert node.way_out


@pytest.mark.parametrize("size", [1, 100, 1000, 5000, 20000])
def test_no_truncation_escapes(tmp_path: Path, size: int) -> None:
    whole = (FIXTURES / "script17_unbind_sdpa.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:size])
    with pytest.raises(ModelError):
        load(tmp_path / "cut.onnx")


def test_the_check_finds_a_wrong_graph() -> None:
    path = FIXTURES / "dynamo20_hf.onnx"
    graph = load(path, check=False)
    assert check_against_onnxruntime(path, graph) < 1e-4
    wrong = next(op for op in graph if isinstance(op, ir.Attention))
    swapped = graph.replaced(op.renamed({wrong.q: wrong.k}) if op is wrong else op for op in graph)
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        check_against_onnxruntime(path, swapped)
