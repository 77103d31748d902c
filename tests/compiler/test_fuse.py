"""Which stages a mixture of experts becomes, wherever it stands in the graph."""

import dataclasses

import numpy as np
import pytest
from compile_helpers import mixture_graph

from moevit.compiler import ir
from moevit.compiler.fuse import fuse
from moevit.compiler.stages import LinearStage, MoeStage, Stage
from moevit.errors import UnsupportedOpError


def moe_stages(form: str) -> tuple[list[Stage], MoeStage]:
    stages = list(fuse(mixture_graph(form=form)).stages)
    return stages, next(s for s in stages if isinstance(s, MoeStage))


def test_norm_mixture_and_residual_are_one_stage() -> None:
    stages, moe = moe_stages("plain")
    assert [type(s).__name__ for s in stages] == ["EmbedStage", "MoeStage", "LinearStage"]
    assert (moe.x, moe.residual, moe.output) == ("embed.out", "embed.out", "add0.out")
    assert moe.norm is not None and moe.norm_output == "norm0.out"
    assert moe.macs == 25 * (24 * 5 + 2 * 20 * (24 + 24))


def test_a_norm_that_others_read_is_kept_in_memory() -> None:
    stages, moe = moe_stages("shared")
    assert (moe.x, moe.norm) == ("norm0.out", None)
    kept = next(s for s in stages if s.output == "norm0.out")
    assert isinstance(kept, LinearStage) and kept.norm is not None


@pytest.mark.parametrize("form", ["narrow", "wide"])
def test_rows_without_a_norm_are_taken_as_they_are(form: str) -> None:
    _, moe = moe_stages(form)
    assert moe.x == {"narrow": "narrow.out", "wide": "embed.out"}[form]
    assert moe.norm is None and moe.residual == "embed.out"


@pytest.mark.parametrize(("form", "residual"), [("bare", None), ("later", "embed.out")])
def test_what_nothing_may_overwrite_is_copied_first(form: str, residual: str | None) -> None:
    """No residual at all, or one that a later stage still needs."""
    stages, moe = moe_stages(form)
    start = stages[stages.index(moe) - 1]
    assert isinstance(start, LinearStage) and not start.weight.any() and not start.bias.any()
    assert (start.residual, moe.residual) == (residual, start.output)


def changed(**fields: object) -> ir.Graph:
    graph = mixture_graph()
    return graph.replaced(
        dataclasses.replace(op, **fields) if isinstance(op, ir.MoE) else op for op in graph  # type: ignore[arg-type]
    )


def test_what_the_gate_cannot_do_is_refused_with_a_way_out() -> None:
    for graph, said in (
        (mixture_graph(experts=65, hidden=4), "64 queues"),
        (mixture_graph(top_k=5), "selects 4"),
        (changed(threshold=1.5), "no score reaches"),
    ):
        with pytest.raises(UnsupportedOpError, match=said) as caught:
            fuse(graph)
        node = caught.value.nodes[0]
        assert (node.name, node.op) == ("/moe0/MatMul", "MoE")
        assert node.way_out


def test_a_mixture_of_some_tokens_is_refused() -> None:
    graph = mixture_graph(form="wide")
    embed, moe, *_ = graph.ops
    assert isinstance(moe, ir.MoE)
    rows = ir.Rows(name="rows", x=embed.output, output="rows.out", start=1, count=4)
    output = ir.Output(name="y", tensor=moe.output, model_shape=(4, 24))
    part = dataclasses.replace(graph, ops=(embed, rows, dataclasses.replace(moe, x="rows.out")), outputs=(output,))
    with pytest.raises(UnsupportedOpError, match="some of a tensor's tokens"):
        fuse(part)


@pytest.mark.parametrize(
    ("queries", "keys", "reads", "said"),
    [
        ((0, 4), (1, 5), "xxx", "its queries begin before its keys"),
        ((0, 4), (0, 4), "xxy", "not linear layers of one tensor"),
        ((0, 4), (0, 4), "xx-", "not linear layers that nothing else reads"),
    ],
)
def test_what_cannot_be_computed_together_is_refused(
    queries: tuple[int, int], keys: tuple[int, int], reads: str, said: str
) -> None:
    """`reads`: which input each of q, k and v is a linear layer of; one that is none is `-`."""
    ops: list[ir.Op] = []
    names = []
    for name, x, (start, count) in zip("qkv", reads, (queries, keys, keys), strict=True):
        rows = ir.Rows(name=f"{name}.rows", x=x.replace("-", "x"), output=f"{name}.rows", start=start, count=count)
        layer = ir.Linear(name=name, x=rows.output, output=f"{name}.out", weight=np.eye(8, dtype=np.float32),
                          bias=np.zeros(8, np.float32))  # fmt: skip
        ops += [rows] if x == "-" else [rows, layer]
        names.append(rows.output if x == "-" else layer.output)
    q, k, v = names
    shape = {"heads": 1, "head_dim": 8, "scale": 1.0}
    ops.append(ir.Attention(name="att", source=("/att",), q=q, k=k, v=v, output="att.out", **shape))  # type: ignore[arg-type]
    inputs = tuple(ir.Input(name=n, shape=(6, 8), model_shape=(6, 8)) for n in "xy")
    output = ir.Output(name="y0", tensor="att.out", model_shape=(queries[1], 8))
    with pytest.raises(UnsupportedOpError, match=said) as caught:
        fuse(ir.Graph(name="g", inputs=inputs, outputs=(output,), ops=tuple(ops)))
    assert [n.name for n in caught.value.nodes] == ["/att"]
