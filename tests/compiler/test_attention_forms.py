"""Attention whose queries and keys are not the same rows: masks, class tokens that ask, learnt queries."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_answers import cosine, normal_inputs, simulated
from onnx_net import Net, ops

from moevit.compiler import ir
from moevit.compiler.driver import compile_graphs
from moevit.config import CONFIGS
from moevit.errors import UnsupportedOpError
from moevit.isa import Attention

TOKENS, HEADS, SIZE = 9, 2, 12
WIDTH = HEADS * SIZE
INF = float("inf")


def heads(n: Net, x: str, tokens: int = TOKENS) -> str:
    """(1, tokens, width) to (1, heads, tokens, size)."""
    return n.op("Transpose", n.op("Reshape", x, n.ints(1, tokens, HEADS, SIZE)), perm=[0, 2, 1, 3])


def back(n: Net, y: str, tokens: int = TOKENS) -> str:
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(1, tokens, WIDTH))


def attend(n: Net, change: Callable[[Net, str], str], x: str = "x") -> str:
    """Attention of rows, whose scores `change` masks."""
    q, k, v = (heads(n, n.linear(x, WIDTH, WIDTH)) for _ in range(3))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = change(n, n.op("Mul", scores, n.const(SIZE**-0.5)))
    return n.linear(back(n, n.op("MatMul", n.op("Softmax", scores, axis=-1), v)), WIDTH, 7)


def node(n: Net, *mask: str, **attributes: object) -> str:
    q, k, v = (heads(n, n.linear("x", WIDTH, WIDTH)) for _ in range(3))
    return n.linear(back(n, n.op("Attention", q, k, v, *mask, **attributes)), WIDTH, 7)


def hide(*shape: int, value: float = -INF, last: int = 3) -> np.ndarray:
    """An additive mask that hides the last keys."""
    mask = np.zeros(shape)
    mask[..., TOKENS - last :] = value
    return mask


def masked(n: Net, visible: np.ndarray) -> str:
    return attend(n, lambda n, s: n.op("Add", s, n.const(np.where(visible, 0.0, -INF))))


LAST = np.arange(TOKENS) < TOKENS - 3
IDLE: dict[str, Callable[[Net], str]] = {
    "zeros": lambda n: attend(n, lambda n, s: n.op("Add", s, n.const(np.zeros((1, 1, TOKENS, TOKENS))))),
    "zeros first": lambda n: attend(n, lambda n, s: n.op("Add", n.const(np.zeros((TOKENS, TOKENS))), s)),
    "same for all keys": lambda n: attend(n, lambda n, s: n.op("Add", s, n.random(HEADS, TOKENS, 1))),
    "all true": lambda n: node(n, n.const(np.ones((1, 1, TOKENS, TOKENS)), np.bool_)),
    "node, zeros": lambda n: node(n, n.const(np.zeros((TOKENS, TOKENS)))),
    "where": lambda n: attend(
        n, lambda n, s: n.op("Where", n.const(np.zeros((1, 1, 1, TOKENS)), np.bool_), n.const(-INF), s)
    ),
}
PADDED: dict[str, Callable[[Net], str]] = {
    "added": lambda n: attend(n, lambda n, s: n.op("Add", s, n.const(hide(1, 1, 1, TOKENS)))),
    "added twice": lambda n: attend(
        n, lambda n, s: n.op("Add", n.op("Add", s, n.const(hide(1, 1, 1, TOKENS, last=1))), n.const(hide(TOKENS)))
    ),
    "added, full and finite": lambda n: attend(
        n, lambda n, s: n.op("Add", s, n.const(hide(1, HEADS, TOKENS, TOKENS, value=-3.4e38)))
    ),
    "where": lambda n: attend(
        n, lambda n, s: n.op("Where", n.const(LAST[None, None, None], np.bool_), s, n.const(-1e30))
    ),
    "node, boolean": lambda n: node(n, n.const(np.broadcast_to(LAST, (1, 1, TOKENS, TOKENS)), np.bool_)),
    "node, added": lambda n: node(n, n.const(hide(TOKENS, TOKENS))),
}


def attention_of(graph: ir.Graph) -> ir.Attention:
    return next(op for op in graph if isinstance(op, ir.Attention))


@pytest.mark.parametrize("form", IDLE)
def test_a_mask_that_hides_nothing_vanishes(tmp_path: Path, form: str) -> None:
    n = Net(1, TOKENS, WIDTH, opset=23)
    graph = n.load(tmp_path, IDLE[form](n))
    assert ops(graph) == ["Linear", "Linear", "Linear", "Attention", "Linear"]


@pytest.mark.parametrize("form", PADDED)
def test_keys_that_no_query_sees_are_not_read(tmp_path: Path, form: str) -> None:
    n = Net(1, TOKENS, WIDTH, opset=23)
    graph = n.load(tmp_path, PADDED[form](n))
    assert graph.tensors[attention_of(graph).k] == (TOKENS - 3, WIDTH)
    worst, compiled = cosine(graph)
    assert worst > 0.999
    (attention,) = [
        i for i in compiled.program.instructions(compiled.program.tasks[0]) if isinstance(i, Attention)
    ]
    assert (attention.n_rows, attention.n_keys) == (TOKENS, TOKENS - 3)


BIAS = np.linspace(0, 1, TOKENS)
REFUSED = {
    "causal": (lambda n: masked(n, np.tri(TOKENS) > 0), "differs"),
    "by head": (lambda n: masked(n, np.arange(HEADS * TOKENS).reshape(HEADS, 1, -1) > 2), "differs"),
    "position bias": (lambda n: attend(n, lambda n, s: n.op("Add", s, n.const(BIAS))), "bias is added"),
    "nothing seen": (lambda n: node(n, n.const(np.tri(TOKENS, k=-1), np.bool_)), "all keys"),
    "is_causal": (lambda n: node(n, is_causal=1), "is_causal"),
    "of the data": (lambda n: node(n, n.op("Slice", "x", n.ints(0), n.ints(TOKENS), n.ints(2))), "depends on the data"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_masks_are_refused(tmp_path: Path, form: str) -> None:
    n = Net(1, TOKENS, WIDTH, opset=23)
    build, message = REFUSED[form]
    with pytest.raises(UnsupportedOpError, match=message) as caught:
        n.load(tmp_path, build(n))
    assert len(caught.value.nodes) == 1 and caught.value.nodes[0].way_out


def class_token_asks(n: Net) -> str:
    """Only the first token is a query, as in the last blocks of some models."""
    x = n.op("LayerNormalization", "x", n.random(WIDTH), axis=-1)
    first = n.op("Slice", x, n.ints(0), n.ints(1), n.ints(1))
    q = heads(n, n.linear(first, WIDTH, WIDTH), 1)
    k, v = (heads(n, n.linear(x, WIDTH, WIDTH)) for _ in range(2))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    return n.linear(back(n, y, 1), WIDTH, 5)


def learnt_query(n: Net) -> str:
    """Attention pooling: one query that is a parameter."""
    k, v = (heads(n, n.linear("x", WIDTH, WIDTH)) for _ in range(2))
    scores = n.op("MatMul", n.random(1, HEADS, 1, SIZE), n.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    return n.linear(back(n, y, 1), WIDTH, 5)


def learnt_query_of_a_node(n: Net) -> str:
    k, v = (heads(n, n.linear("x", WIDTH, WIDTH)) for _ in range(2))
    return n.linear(back(n, n.op("Attention", n.random(1, HEADS, 1, SIZE), k, v), 1), WIDTH, 5)


@pytest.mark.parametrize("build", [class_token_asks, learnt_query, learnt_query_of_a_node])
def test_one_query(tmp_path: Path, build: Callable[[Net], str]) -> None:
    n = Net(1, TOKENS, WIDTH, opset=23)
    graph = n.load(tmp_path, build(n))
    attention = attention_of(graph)
    assert (graph.tensors[attention.q], graph.tensors[attention.k]) == ((1, WIDTH), (TOKENS, WIDTH))
    assert cosine(graph)[0] > 0.998


def test_channels_of_several_tensors_are_a_sum_of_products(tmp_path: Path) -> None:
    """The class token and the mean of the others, side by side."""
    n = Net(1, TOKENS, WIDTH)
    x = n.op("LayerNormalization", "x", n.random(WIDTH), axis=-1)
    first = n.op("Gather", x, n.const(0, np.int64), axis=1)
    rest = n.op("ReduceMean", n.op("Slice", x, n.ints(1), n.ints(TOKENS), n.ints(1)), n.ints(1), keepdims=0)
    graph = n.load(tmp_path, n.linear(n.op("Concat", first, rest, first, axis=1), 3 * WIDTH, 5))
    assert graph.counts()["Add"] == 1
    assert cosine(graph)[0] > 0.998


@pytest.mark.parametrize("keys", [1, 5, 8])
def test_the_rtl_reads_as_many_keys_as_are_seen(keys: int) -> None:
    """Beside them lie keys and values that must not matter, in the same words and tiles."""
    rng = np.random.default_rng(keys)

    def linear(name: str, x: str) -> ir.Linear:
        weight, bias = (rng.normal(size=s).astype(np.float32) / math.sqrt(WIDTH) for s in ((WIDTH, WIDTH), (WIDTH,)))
        return ir.Linear(name=name, x=x, output=f"{name}.out", weight=weight, bias=bias)

    places = {"r0": (2, 6), "r1": (0, keys)}
    rows = [ir.Rows(name=r, x="x", output=f"{r}.out", start=s, count=c) for r, (s, c) in places.items()]
    layers = [linear("q", "r0.out"), linear("k", "r1.out"), linear("v", "r1.out")]
    attention = ir.Attention(
        name="att", q="q.out", k="k.out", v="v.out", output="att.out", heads=HEADS, head_dim=SIZE, scale=0.3
    )
    graph = ir.Graph(
        name="keys", inputs=(ir.Input(name="x", shape=(TOKENS, WIDTH), model_shape=(TOKENS, WIDTH)),),
        ops=(*rows, *layers, attention, linear("head", "att.out")),
        outputs=(ir.Output(name="y", tensor="head.out", model_shape=(6, WIDTH)),),
    )  # fmt: skip
    data = normal_inputs(graph, 4)
    compiled = compile_graphs({"main": graph}, CONFIGS["tiny"], {"main": data})
    (instruction,) = [
        i for i in compiled.program.instructions(compiled.program.tasks[0]) if isinstance(i, Attention)
    ]
    assert (instruction.n_rows, instruction.n_keys) == (6, keys)
    assert simulated(compiled, graph, {"x": data["x"][:1]}, backend="rtl").bit_exact
