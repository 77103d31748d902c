"""A mixture of experts in integers: what its constants mean."""

import dataclasses
import math

import numpy as np
import pytest
from compile_helpers import mixture_graph, pictures

from moevit.compiler import interpret, ir
from moevit.compiler.calibrate import Range, calibrate
from moevit.compiler.fuse import fuse
from moevit.compiler.quantise import QuantisedLinear, QuantisedMoe, quantise
from moevit.config import CONFIGS
from moevit.errors import UnsupportedOpError
from moevit.numerics.activation import FRACTION
from moevit.numerics.route import LOGIT_FRACTION, RouteOrder

CONFIG = CONFIGS["tiny"]


def quantised(graph: ir.Graph, ranges: dict[str, Range] | None = None) -> QuantisedMoe:
    stages = fuse(graph)
    out = quantise(stages, ranges or calibrate(graph, pictures(graph)), CONFIG)
    return next(s for s in out.stages if isinstance(s, QuantisedMoe))


def real(q: QuantisedLinear, scale: float, zero_point: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias that the integers stand for, for an input (q - zero_point) * scale and mid in ``step``."""
    factor = q.mult * 2.0**-q.shift * step
    weight = q.weight * (factor / scale)[:, None]
    return weight, (q.bias + zero_point * q.weight.astype(np.int64).sum(axis=1)) * factor


@pytest.mark.parametrize("form", ["plain", "narrow", "wide", "shared"])
def test_integers_stand_for_the_weights(form: str) -> None:
    graph = mixture_graph(form=form)
    q = quantised(graph)
    op, rows = q.stage.moe, q.rows
    near = {"rtol": 0.01, "atol": 0.01}

    def same(part: QuantisedLinear, scale: float, zero: int, step: float, weight: np.ndarray, bias: np.ndarray) -> None:
        got_weight, got_bias = real(part, scale, zero, step)
        np.testing.assert_allclose(got_weight, weight, atol=np.abs(weight).max() / 200)
        np.testing.assert_allclose(got_bias, bias, **near)

    same(q.gate, rows.scale, rows.zero_point, math.log(2) * 2.0**-LOGIT_FRACTION, op.gate_weight, op.gate_bias)
    for e, (up, down) in enumerate(q.experts):
        same(up, rows.scale, rows.zero_point, 2.0**-FRACTION, op.up_weight[e], op.up_bias[e])
        hidden = up.output
        same(down, hidden.scale, hidden.zero_point, q.output.scale, op.down_weight[e], op.down_bias[e])


def test_only_the_gate_normalises_and_each_expert_has_its_own_scale() -> None:
    q = quantised(mixture_graph())
    assert q.gate.norm is not None and q.rows.dtype == "int8"
    assert all(part.norm is None for pair in q.experts for part in pair)
    assert len({up.output.scale for up, _ in q.experts}) == len(q.experts)
    assert all(up.output.dtype == "uint8" and up.output.zero_point > 0 for up, _ in q.experts)
    assert q.output.dtype == "int16" and all(down.output == q.output for _, down in q.experts)


@pytest.mark.parametrize(("threshold", "integer"), [(0.0, 0), (0.25, 1 << 14), (0.3, 19661), (1.0, 65535)])
def test_threshold_and_order(threshold: float, integer: int) -> None:
    q = quantised(mixture_graph(threshold=threshold, order="topk_softmax"))
    assert (q.threshold, q.order) == (integer, RouteOrder.TOPK_SOFTMAX)


def test_logits_beyond_the_machines_are_refused() -> None:
    graph = mixture_graph()
    op = next(op for op in graph if isinstance(op, ir.MoE))
    large = dataclasses.replace(op, gate_weight=op.gate_weight * 100)
    with pytest.raises(UnsupportedOpError, match=r"logits reach .*; the machine holds 354.9"):
        quantised(graph.replaced(large if x is op else x for x in graph))


def test_weights_do_not_depend_on_ranges() -> None:
    """Tasks that are calibrated apart still share the weights."""
    graph = mixture_graph()
    ranges = calibrate(graph, pictures(graph))
    wider = {name: Range(2 * r.low, 3 * r.high) for name, r in ranges.items()}
    for (up, down), (wide_up, wide_down) in zip(
        quantised(graph, ranges).experts, quantised(graph, wider).experts, strict=True
    ):
        np.testing.assert_array_equal(up.weight, wide_up.weight)
        np.testing.assert_array_equal(down.weight, wide_down.weight)
        assert not np.array_equal(down.bias, wide_down.bias)


def test_the_graphs_of_these_tests_use_all_experts() -> None:
    graph = mixture_graph()
    scores = interpret.run(graph, pictures(graph))["norm0.out"]
    op = next(op for op in graph if isinstance(op, ir.MoE))
    chosen, _ = interpret.route(op, interpret.gate_logits(op, scores.reshape(-1, 24)))
    assert set(chosen.ravel()) == set(range(5))
