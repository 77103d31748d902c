"""Operations where no stage could take them, and the linear layers that are put in so that one can."""

from collections.abc import Callable

import numpy as np
import pytest
from graph_answers import cosine

from moevit.compiler import ir
from moevit.compiler.interpret import outputs, run
from moevit.compiler.legalise import legalise
from moevit.compiler.verify import verify

TOKENS, WIDTH = 11, 24


class Made:
    """A graph being written; each call returns the tensor's name."""

    def __init__(self) -> None:
        self.ops: list[ir.Op] = []
        self.rng = np.random.default_rng(0)

    def add(self, kind: type[ir.Op], /, **fields: object) -> str:
        name = f"{kind.__name__.lower()}{len(self.ops)}"
        self.ops.append(kind(name=name, output=f"{name}.out", **fields))
        return f"{name}.out"

    def linear(self, x: str, d_out: int = WIDTH) -> str:
        weight, bias = (self.rng.normal(size=s).astype(np.float32) * 0.25 for s in ((d_out, WIDTH), (d_out,)))
        return self.add(ir.Linear, x=x, weight=weight, bias=bias)

    def norm(self, x: str) -> str:
        gamma, beta = (self.rng.normal(size=WIDTH).astype(np.float32) * 0.2 + c for c in (1, 0))
        return self.add(ir.LayerNorm, x=x, gamma=gamma, beta=beta, eps=1e-6)

    def attention(self, x: str) -> str:
        q, k, v = (self.linear(x) for _ in range(3))
        return self.add(ir.Attention, q=q, k=k, v=v, heads=2, head_dim=12, scale=0.3)

    def sum(self, a: str, b: str) -> str:
        return self.add(ir.Add, a=a, b=b)

    def rows(self, x: str, start: int, count: int) -> str:
        return self.add(ir.Rows, x=x, start=start, count=count)

    def graph(self, tensor: str, order: np.ndarray | None = None) -> ir.Graph:
        entry = ir.Input(name="x", shape=(TOKENS, WIDTH), model_shape=(TOKENS, WIDTH))
        graph = ir.Graph(name="made", inputs=(entry,), outputs=(), ops=tuple(self.ops))
        shape = graph.tensors[tensor] if order is None else order.shape
        out = ir.Output(name="y", tensor=tensor, model_shape=shape, order=order)
        return ir.Graph(name="made", inputs=(entry,), outputs=(out,), ops=tuple(self.ops))


def post_norm(m: Made, x: str) -> str:
    """x = norm(x + f(x)), as in the first transformers."""
    for f in (m.attention, lambda y: m.add(ir.Activation, x=m.linear(y), kind="gelu")):
        x = m.norm(m.sum(x, m.linear(f(x))))
    return x


def norm_in_the_branch(m: Made, x: str) -> str:
    """x = x + norm(f(x)), as in Swin V2."""
    return m.sum(x, m.norm(m.linear(x)))


def skip(m: Made, x: str) -> str:
    """Two sums added, as a U-shaped model does."""
    first = m.sum(x, m.linear(m.norm(x)))
    second = m.sum(first, m.linear(m.norm(first)))
    return m.sum(second, first)


def parallel(m: Made, x: str) -> str:
    y = m.norm(x)
    return m.sum(x, m.sum(m.linear(y), m.linear(m.attention(y))))


FORMS: dict[str, tuple[Callable[[Made, str], str], int]] = {
    "post-norm": (post_norm, 0),
    "norm in the branch": (norm_in_the_branch, 1),
    "skip": (skip, 1),
    "parallel": (parallel, 1),
    "norm of an attention": (lambda m, x: m.linear(m.norm(m.attention(x))), 1),
    "norm of rows of an attention": (lambda m, x: m.linear(m.norm(m.rows(m.attention(x), 2, 3))), 1),
    "attention added as it is": (lambda m, x: m.sum(x, m.attention(m.norm(x))), 1),
    "attention given out": (lambda m, x: m.attention(x), 1),
    "attention as a residual": (lambda m, x: m.sum(a := m.attention(x), m.linear(a)), 1),
    "activation of a norm": (lambda m, x: m.linear(m.add(ir.Activation, x=m.norm(x), kind="relu")), 1),
    "activation of a sum": (lambda m, x: m.add(ir.Activation, x=m.sum(x, m.linear(x)), kind="silu"), 1),
    "activation added": (lambda m, x: m.sum(m.add(ir.Activation, x=m.linear(x), kind="gelu"), x), 1),
    "doubled": (lambda m, x: m.sum(y := m.linear(x), y), 1),
    "some rows as a residual": (lambda m, x: m.sum(m.rows(x, 2, 3), m.linear(m.rows(m.norm(x), 0, 3))), 1),
    "some rows given out": (lambda m, x: m.rows(m.rows(m.sum(x, m.linear(x)), 2, 5), 1, 3), 0),
    "plain": (lambda m, x: m.linear(m.sum(x, m.linear(m.norm(x)))), 0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_no_stage_takes_goes_through_a_linear_layer(form: str) -> None:
    made = Made()
    build, added = FORMS[form]
    graph = verify(made.graph(build(made, "x")))
    legal = verify(legalise(graph), "legalise")
    assert sum(isinstance(op, ir.Identity) for op in legal) == added
    assert legal.macs() == graph.macs()
    x = {"x": np.random.default_rng(1).normal(size=(2, TOKENS, WIDTH)).astype(np.float32)}
    before, after = (outputs(g, run(g, x))["y"] for g in (graph, legal))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    worst, compiled = cosine(graph)
    assert worst > 0.998
    assert compiled.accelerated_macs == graph.macs()


def test_rows_given_out_in_another_order() -> None:
    made = Made()
    order = np.array([3, 0, 30])
    graph = verify(made.graph(made.rows(made.linear("x"), 4, 2), order))
    legal = verify(legalise(graph), "legalise")
    assert [type(op).__name__ for op in legal] == ["Linear"]
    np.testing.assert_array_equal(legal.outputs[0].order, order + 4 * WIDTH)
