"""Parts of a split model that do not fit the machine go to the host; a model that is not split is an error."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import partition_nets as nets
import pytest

import moevit
from moevit.cli.evaluate import run_onnx
from moevit.compiler.driver import Compiled, compile_model
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.errors import AllocationError, UnsupportedOpError
from moevit.pipeline import HOST, MACHINE
from moevit.sim import metrics
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate


def small(**changes: int) -> AcceleratorConfig:
    return dataclasses.replace(CONFIGS["tiny"], name="small", **changes)


def compiled(path: Path, config: AcceleratorConfig, *, strict: bool = False) -> Compiled:
    return compile_model({"main": path}, config, lambda task, shapes: nets.inputs(16), strict=strict)


def steps(made: Compiled) -> list[str]:
    return [step.kind for step in made.program.pipeline("main").steps]


def need_as_onnxruntime(made: Compiled, path: Path) -> None:
    """Every output of images that were not calibrated with, on the machine's integers."""
    pipeline = made.program.pipeline("main")
    values = from_arrays({x.name: x.shape for x in pipeline.inputs}, nets.inputs(3, seed=1))
    got = simulate(made.program, values, check=True)
    assert got.bit_exact
    for name, want in run_onnx(path, pipeline, values, lambda n: None).items():
        assert metrics.distance(got.outputs[name], want)["relative_rms_err"] < 0.06


def test_a_part_whose_input_does_not_fit(tmp_path: Path) -> None:
    """16 rows of 512 channels are 1,024 words."""
    path = nets.wide(tmp_path / "m.onnx")
    fits, made = compiled(path, CONFIGS["tiny"]), compiled(path, small(activation_words=512))
    assert steps(fits) == [MACHINE, HOST] * 3 + [MACHINE]
    assert steps(made) == [MACHINE, HOST] * 2 + [MACHINE]
    unfit = [n for n in made.host_nodes["main"] if "does not fit" in n.reason]
    assert [n.op for n in unfit] == ["MatMul", "Add"]
    for node in unfit:
        assert "needs 1024 words of activation memory; 0 of 512 are in use" in node.reason
        assert "larger activation_words (1024 or more), or fewer tokens" in node.way_out
    assert made.host_macs == nets.TOKENS * 512 * nets.WIDTH
    assert made.host_macs + made.accelerated_macs == fits.host_macs + fits.accelerated_macs
    need_as_onnxruntime(made, path)


def test_only_the_layers_that_do_not_fit(tmp_path: Path) -> None:
    """What the same part has before and behind them stays the machine's."""
    path = nets.large(tmp_path / "m.onnx")
    fits, made = compiled(path, CONFIGS["tiny"]), compiled(path, small(activation_words=1024))
    assert steps(fits) == [MACHINE, HOST, MACHINE]
    assert steps(made) == [MACHINE, HOST, MACHINE, HOST, MACHINE]
    attentions = [[task.name for layer in task.layers if layer.kind == "attention"] for task in made.program.tasks]
    assert [len(names) for names in attentions] == [1, 1, 2]  # the last one with the mean over all tokens
    assert {"MatMul", "Relu"} <= {n.op for n in made.host_nodes["main"] if "activation memory" in n.reason}
    need_as_onnxruntime(made, path)


@pytest.mark.parametrize("build", [nets.wide, nets.large])
def test_strict_refuses_all_the_same(build: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match="Sin"):
        compiled(build(tmp_path / "m.onnx"), small(activation_words=512), strict=True)


def test_the_only_part_is_told_that_it_does_not_fit(tmp_path: Path) -> None:
    path = nets.after(tmp_path / "m.onnx")
    assert steps(compiled(path, CONFIGS["tiny"])) == [MACHINE, HOST]
    with pytest.raises(AllocationError, match=r"task 'main', node '.*use .* larger activation_words"):
        compiled(path, small(activation_words=128))


@pytest.mark.parametrize("change", [{"activation_words": 16}, {"tile_depth": 8}])
def test_nothing_that_fits_is_an_error(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(AllocationError, match=f"task 'main.*larger {next(iter(change))}"):
        compiled(nets.wide(tmp_path / "m.onnx"), small(**change))


def test_of_two_tasks_only_the_one_that_does_not_fit_changes(tmp_path: Path) -> None:
    """Programs have new numbers then; calibration inputs must follow."""
    paths = {"a": nets.wide(tmp_path / "a.onnx"), "b": nets.middle("Sin", tmp_path / "b.onnx")}
    both = moevit.compile(paths, small(activation_words=512), {t: nets.inputs(8) for t in paths})
    assert [t.name for t in both.tasks] == ["a#1", "a#2", "a#3", "b#1", "b#2"]
    for name, path in paths.items():
        pipeline = both.pipeline(name)
        values = from_arrays({x.name: x.shape for x in pipeline.inputs}, nets.inputs(2, seed=1))
        for output, want in run_onnx(path, pipeline, values, lambda n: None).items():
            got = both.run(nets.inputs(2, seed=1), name, check=True).outputs[output]
            assert metrics.distance(got, want)["relative_rms_err"] < 0.06
