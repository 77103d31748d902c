"""The demo: its figures, its picture, and that it fails when something differs; the whole of it if slow."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from moevit.cli.demo import measure, picture
from moevit.cli.demo import run as demo
from moevit.compiler import driver
from moevit.config import get_config
from moevit.errors import MismatchError, ToolError
from moevit.models.scenes import load_scenes, m3vit_path
from moevit.registers import COUNTERS
from moevit.sim import inputs, result, simulate, verilate
from moevit.sim.dram import DramModel

PNG_WIDTH = 1430


@pytest.fixture(scope="module")
def compiled() -> driver.Compiled:
    """Both tasks, calibrated with a few scenes only."""
    calibration = [m3vit_path("calib_scenes.npz")]
    return driver.compile_model(
        {name: m3vit_path(f"{name}.onnx") for name in demo.TASKS},
        get_config("tiny"),
        lambda task, shapes: inputs.read_inputs(shapes, calibration).limited(32).floats(),
    )


def rtl_of(isa: result.Result, program: Any) -> result.Result:
    """What the rtl back-end might say, made of the isa's outputs and invented cycles."""
    task = program.task(isa.task)
    layers = tuple(result.LayerCycles(x.name, x.kind, x.macs, 1000.0 + x.macs / 128) for x in task.layers)
    layers += (result.LayerCycles("output", "output", 0, 50.0),)
    total = int(sum(x.cycles for x in layers))
    stages: dict[str, dict[str, float]] = {}
    for stage, cause, _ in COUNTERS:
        stages.setdefault(stage, {})[cause] = total / 16
    for causes in stages.values():
        causes["idle"] = total - sum(causes.values())
    return dataclasses.replace(
        isa, backend="rtl", cycles=(total,) * isa.images, mac_utilisation=0.5, stages=stages, layers=layers,
        bit_exact=True, checked_values=1234, dram=DramModel.default(program.config),
    )  # fmt: skip


@pytest.fixture
def simulators(monkeypatch: pytest.MonkeyPatch, compiled: driver.Compiled) -> dict[str, Any]:
    """The demo without a verilated machine: `rtl` in the answer may be replaced by what the test wants."""
    real = simulate.simulate
    state: dict[str, Any] = {"rtl": rtl_of, "turns": []}

    def fake(program: Any, values: Any, task: Any = None, *, backend: str, check: bool, **options: Any) -> Any:
        isa = real(program, values, task, backend="isa")
        if backend == "isa":
            return isa
        assert check
        state["turns"].append((task, len(values)))
        return state["rtl"](isa, program)

    monkeypatch.setattr(driver, "compile_model", lambda *arguments, **options: compiled)
    monkeypatch.setattr(simulate, "simulate", fake)
    monkeypatch.setattr(verilate, "build", lambda config, **options: Path("nowhere"))
    return state


def run(folder: Path, *arguments: str) -> Result:
    """Run it as `python -m moevit.cli.demo` does."""

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def start(rest: tuple[str, ...]) -> None:
        demo.main(rest)

    scenes = ["--scene", "1", "--scene", "4", "--scene", "30"]
    return CliRunner().invoke(start, ["--limit", "12", *scenes, "-o", str(folder), *arguments])


def test_it_shows_storage_accuracy_experts_and_cycles(simulators: dict[str, Any], tmp_path: Path) -> None:
    done = run(tmp_path / "demo")
    assert done.exit_code == 0, done.output
    for text in (
        "one container", "onnxruntime", "mean IoU", "RMSE", "Tokens of each expert", "2 of 8", "Bit-exact",
        "Cycles by block", "5  experts", "decoder", "mac_utilisation", "dependency", "report.png", "m3vit_tiny.moevit",
    ):  # fmt: skip
        assert text in done.stdout
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["m3vit_tiny.moevit", "report.png"]
    with Image.open(tmp_path / "demo" / "report.png") as image:
        assert image.size[0] == PNG_WIDTH
        assert np.asarray(image.convert("L")).std() > 10


def test_the_tasks_take_turns(simulators: dict[str, Any], tmp_path: Path) -> None:
    assert run(tmp_path).exit_code == 0
    assert simulators["turns"] == [("seg", 2), ("depth", 2), ("seg", 1), ("depth", 1)]


def test_json_holds_the_figures(simulators: dict[str, Any], tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    held = answer["storage"]
    assert 0 < held["expert"] < held["shared"] < held["image"] < held["container"]
    assert held["container"] == (tmp_path / "m3vit_tiny.moevit").stat().st_size
    assert [(r["scene"], r["task"]) for r in answer["runs"]] == [
        (1, "seg"), (4, "seg"), (1, "depth"), (4, "depth"), (30, "seg"), (30, "depth"),
    ]  # fmt: skip
    for name in demo.TASKS:
        task = answer["tasks"][name]
        assert task["accuracy"]["scenes"] == 12
        assert task["accuracy"]["loss"] < demo.MAX_LOSS[name]
        assert [use["block"] for use in task["experts"]] == [1, 3, 5]
        assert task["rtl"]["bit_exact"] is True
        assert task["isa"]["cycles"] is None
    assert Path(answer["picture"]).is_file()


def test_a_tensor_that_differs_is_status_1(simulators: dict[str, Any], tmp_path: Path) -> None:
    def differs(*arguments: Any) -> None:
        raise MismatchError(tensor="gelu_1", index=(3, 7), got=1, want=2, where="rtl, image 0")

    simulators["rtl"] = differs
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "tensor 'gelu_1'[3, 7]" in done.stderr
    assert not (tmp_path / "report.png").exists()


def test_an_output_that_differs_between_isa_and_rtl_is_status_1(simulators: dict[str, Any], tmp_path: Path) -> None:
    def differs(*arguments: Any) -> result.Result:
        rtl = rtl_of(*arguments)
        if rtl.task == "depth":
            rtl.outputs["depth"][1, 0, 7, 5] += 1
        return rtl

    simulators["rtl"] = differs
    done = run(tmp_path, "--scene", "2")
    assert done.exit_code == 1
    assert "tensor 'depth'[0, 7, 5]" in done.stderr
    assert "scene 4" in done.stderr


def test_accuracy_that_is_lost_is_status_1(
    simulators: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.MAX_LOSS, "depth", -1.0)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "check failed: depth" in done.stderr
    assert (tmp_path / "report.png").exists()


def test_without_a_compiler_it_says_what_to_install(
    simulators: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(config: Any, **options: Any) -> None:
        raise ToolError("no C++ compiler found", mend="install g++")

    monkeypatch.setattr(verilate, "build", missing)
    done = run(tmp_path)
    assert done.exit_code == 2
    assert "install g++" in done.stderr


def test_wrong_options_are_status_2(tmp_path: Path) -> None:
    assert run(tmp_path, "--config", "huge").exit_code == 2
    assert run(tmp_path, "--scene", "none").exit_code == 2
    done = run(tmp_path, "--scene", "256")
    assert done.exit_code == 2
    assert "0 to 255" in done.stderr


# -- what is measured ----------------------------------------------------------------------------------------


def test_parts_hold_every_layer_once_and_in_order(compiled: driver.Compiled) -> None:
    for task in compiled.program.tasks:
        found = measure.parts(compiled.program, task)
        dense, mixed = ["attention", "MLP"], ["attention", "gate", "experts"]
        assert [part.role for part in found] == ["input", *3 * (dense + mixed), "decoder", "output"]
        assert [part.block for part in found] == [-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, -1, -1]
        assert [name for part in found[:-1] for name in part.layers] == [layer.name for layer in task.layers]
        assert len({part.gate for part in found if part.role == "experts"}) == 3


def test_ideal_cycles_of_experts_follow_their_tokens(compiled: driver.Compiled) -> None:
    program = compiled.program
    task = program.tasks[0]
    data = load_scenes(m3vit_path("test_scenes.npz"))
    isa = simulate.simulate(program, inputs.from_arrays({x.name: x.shape for x in task.inputs},
                                                        {task.inputs[0].name: data.images[:2]}))  # fmt: skip
    rtl = rtl_of(isa, program)
    none = {name: [[0] * len(counts) for counts in lengths] for name, lengths in isa.experts.items()}
    twice = {name: [[2 * n for n in counts] for counts in lengths] for name, lengths in isa.experts.items()}
    ideal = {}
    for key, queues in (("none", none), ("once", isa.experts), ("twice", twice)):
        found = measure.part_cycles(program, task, rtl, queues)
        assert sum(p.cycles for p in found) == pytest.approx(sum(x.cycles for x in rtl.layers or ()))
        ideal[key] = sum(p.ideal for p in found if p.part.role == "experts")
    assert ideal["none"] == 0
    assert 0 < ideal["once"] < ideal["twice"] <= 2 * ideal["once"]
    for use in measure.usage(program, task, isa.experts):
        assert use.top_k == 2
        assert use.experts == 8
        assert sum(use.tokens) <= 2 * max(layer.rows for layer in task.layers)
        assert 2 <= use.used <= 8


def test_merged_results_average_by_scene(compiled: driver.Compiled) -> None:
    program = compiled.program
    shapes = {x.name: x.shape for x in program.tasks[0].inputs}
    images = load_scenes(m3vit_path("test_scenes.npz")).images
    all_of_them = inputs.from_arrays(shapes, {next(iter(shapes)): images[:3]})
    whole = rtl_of(simulate.simulate(program, all_of_them), program)
    first = rtl_of(simulate.simulate(program, all_of_them.limited(2)), program)
    last = rtl_of(
        simulate.simulate(program, inputs.from_arrays(shapes, {next(iter(shapes)): images[2:3]})), program
    )
    last = dataclasses.replace(
        last, cycles=tuple(2 * n for n in last.cycles or ()), mac_utilisation=0.25,
        layers=tuple(dataclasses.replace(x, cycles=2 * x.cycles) for x in last.layers or ()),
    )  # fmt: skip
    merged = measure.merge([first, last])
    assert merged.images == 3
    assert merged.experts == whole.experts
    np.testing.assert_array_equal(merged.outputs["seg"], whole.outputs["seg"])
    total = (whole.cycles or ())[0]
    assert merged.cycles == (total, total, 2 * total)
    assert merged.mac_utilisation == pytest.approx(0.375)
    cycles = [sum(x.cycles for x in r.layers or ()) for r in (merged, whole)]
    assert cycles[0] == pytest.approx(4 / 3 * cycles[1])
    assert merged.checked_values == 2 * 1234


def test_labels_stand_inside_of_what_they_name() -> None:
    inside = np.zeros((64, 64), bool)
    inside[10:20, 5:60] = inside[10:60, 5:12] = True  # an L, whose centre of mass is outside
    y, x = picture._middle(inside)
    assert inside[int(y), int(x)]


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """As `make demo` runs it, with the Verilog really simulated."""
    done = subprocess.run(
        [sys.executable, "-m", "moevit.cli.demo", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for name in demo.TASKS:
        task = answer["tasks"][name]
        assert task["rtl"]["bit_exact"] is True
        assert task["rtl"]["images"] == len(demo.DEFAULT_SCENES)
        assert task["isa"]["images"] == task["accuracy"]["scenes"] == 256
        assert task["accuracy"]["loss"] < demo.MAX_LOSS[name]
        assert task["rtl"]["mac_utilisation"] >= 0.55
        mean = sum(task["rtl"]["cycles"]) / len(task["rtl"]["cycles"])
        assert sum(part["cycles"] for part in task["parts"]) == pytest.approx(mean, rel=0.001)
        for stage in task["rtl"]["stages"].values():
            assert sum(stage.values()) == pytest.approx(mean, rel=0.01)
    assert (tmp_path / "build" / "demo" / "report.png").stat().st_size > 50_000
