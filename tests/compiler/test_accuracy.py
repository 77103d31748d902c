"""The compiler's check of its own result: it sees what the machine computes, and tells right from wrong."""

from pathlib import Path

import numpy as np
import partition_nets as nets
import pytest
from compile_helpers import ODD, SMALL, float_inputs, mixture_graph, pictures, wide_residual

import moevit
from moevit import api
from moevit.compiler import interpret, ir
from moevit.compiler.driver import compile_model, prepare
from moevit.compiler.frontend import load
from moevit.compiler.ptq.accuracy import INPUTS, Accuracy, accuracy, chosen, need_acceptable
from moevit.config import CONFIGS
from moevit.errors import AccuracyError
from moevit.sim import metrics

CONFIG = CONFIGS["tiny"]


@pytest.mark.parametrize("path", [ODD, SMALL])
@pytest.mark.parametrize("config", ["tiny", "square"])
def test_what_it_says_is_what_the_machine_computes(path: Path, config: str) -> None:
    data = float_inputs(path)
    made = compile_model({"main": path}, CONFIGS[config], lambda task, shapes: data)
    some = chosen(data)
    got = api._public(made.program).run(some).outputs["logits"]
    graph = load(path)
    want = interpret.outputs(graph, interpret.run(graph, some))["logits"]
    found = made.accuracy["main"]["logits"]
    assert found.relative_rms_err == pytest.approx(metrics.distance(got, want)["relative_rms_err"], rel=1e-4)
    assert 0.99 < found.cosine < 1


@pytest.mark.parametrize("form", ["plain", "bare", "narrow", "wide", "shared", "later", "two"])
def test_mixtures_of_experts_are_accurate(form: str) -> None:
    graph = mixture_graph(form=form)
    data = pictures(graph)
    prepared = prepare({"main": graph}, {"main": data})
    found = accuracy(graph, prepared.stages["main"], prepared.quantised("main", CONFIG), CONFIG, data)
    assert found.keys() == {o.name for o in graph.outputs}
    for a in found.values():
        assert a.cosine > 0.99, found


def test_an_expert_to_which_no_token_goes() -> None:
    graph = mixture_graph()
    (moe,) = [op for op in graph if isinstance(op, ir.MoE)]
    moe.gate_bias[1] -= 50
    data = pictures(graph)
    prepared = prepare({"main": graph}, {"main": data})
    (found,) = accuracy(graph, prepared.stages["main"], prepared.quantised("main", CONFIG), CONFIG, data).values()
    assert found.cosine > 0.99


def test_each_part_of_a_model_with_parts_on_the_host(tmp_path: Path) -> None:
    path = nets.middle("Sin", tmp_path / "sin.onnx")
    made = compile_model({"main": path}, CONFIG, lambda task, shapes: nets.inputs(8))
    assert list(made.accuracy) == [t.name for t in made.program.tasks] and len(made.accuracy) == 2
    assert all(a.cosine > 0.99 for outputs in made.accuracy.values() for a in outputs.values())


def test_a_residual_stream_that_needs_more_than_16_bits(tmp_path: Path) -> None:
    path, data = wide_residual(SMALL, tmp_path / "wide.onnx"), float_inputs(SMALL)
    with pytest.raises(AccuracyError, match=r"output 'logits' of task 'main' .*accept_accuracy=True") as e:
        moevit.compile(path, "tiny", data)
    assert e.value.exit_status == 2
    assert e.value.as_json()["calibration_accuracy"]["main"]["logits"]["cosine"] < 0.9
    program = moevit.compile(path, "tiny", data, accept_accuracy=True)
    assert program.run(data, check=True, limit=1).bit_exact


def test_all_wrong_outputs_are_named_and_no_other() -> None:
    good, bad = Accuracy(cosine=0.99, relative_rms_err=0.1), Accuracy(cosine=0.89, relative_rms_err=0.4)
    scaled = Accuracy(cosine=0.999, relative_rms_err=0.6)
    need_acceptable({"a": {"x": good}})
    with pytest.raises(AccuracyError) as e:
        need_acceptable({"a": {"x": good, "y": bad}, "b": {"z": scaled}})
    assert "'y' of task 'a'" in str(e.value) and "'z' of task 'b'" in str(e.value) and "'x'" not in str(e.value)


def test_figures() -> None:
    rng = np.random.default_rng(0)
    want = rng.normal(size=(4, 1000))
    assert Accuracy.of(want, want) == Accuracy(cosine=1.0, relative_rms_err=0.0)
    assert Accuracy.of(np.zeros(5), np.zeros(5)).acceptable
    assert not Accuracy.of(np.zeros(5), np.ones(5)).acceptable
    assert not Accuracy.of(np.ones(5), np.zeros(5)).acceptable
    half = Accuracy.of(0.4 * want, want)  # saturated: the direction is right
    assert half.cosine == pytest.approx(1) and half.relative_rms_err == pytest.approx(0.6) and not half.acceptable
    noisy = Accuracy.of(want + rng.normal(size=want.shape) * 0.5, want)  # where both limits meet
    assert noisy.cosine == pytest.approx(0.9, abs=0.02) and noisy.relative_rms_err == pytest.approx(0.5, abs=0.02)
    huge = Accuracy.of(np.full(9, 3e38, np.float32), np.full(9, -3e38, np.float32))
    assert huge.cosine == pytest.approx(-1)


@pytest.mark.parametrize(("there", "rows"), [(1, [0]), (3, [0, 1, 2]), (INPUTS, [0, 1, 2, 3]), (100, [0, 33, 66, 99])])
def test_inputs_are_taken_from_all_over(there: int, rows: list[int]) -> None:
    (values,) = chosen({"x": np.arange(there)}).values()
    assert values.tolist() == rows
