"""The demo: its figures, its plot, and that it fails when something differs; the whole of it if slow."""

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

from moevit.cli import demo
from moevit.errors import MismatchError, ToolError
from moevit.registers import COUNTERS
from moevit.sim import result, simulate, verilate
from moevit.sim.dram import DramModel

PNG_SIZE = (1430, 1056)


def rtl_of(isa: result.Result, program: Any, task: Any, images: int) -> result.Result:
    """What the rtl back-end might say, made of the isa's outputs and invented cycles."""
    layers = tuple(result.LayerCycles(x.name, x.kind, x.macs, 1000.0 + x.macs / 128) for x in task.layers)
    total = int(sum(x.cycles for x in layers))
    stages: dict[str, dict[str, float]] = {}
    for stage, cause, _ in COUNTERS:
        stages.setdefault(stage, {})[cause] = total / 8
    for causes in stages.values():
        causes["idle"] = total - sum(causes.values())
    return dataclasses.replace(
        isa, backend="rtl", outputs={name: y[:images] for name, y in isa.outputs.items()},
        cycles=(total,) * images, mac_utilisation=0.5, stages=stages, layers=layers, bit_exact=True,
        checked_values=1234, dram=DramModel.default(program.config),
    )  # fmt: skip


@pytest.fixture
def simulators(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The demo without a verilated machine: `rtl` in the answer may be replaced by what the test wants."""
    real = simulate.simulate
    state: dict[str, Any] = {"rtl": rtl_of}

    def fake(program: Any, inputs: Any, task: Any = None, *, backend: str, limit: int, **options: Any) -> Any:
        if backend == "isa":
            state["isa"] = real(program, inputs, task, backend="isa", limit=limit)
            return state["isa"]
        assert options["check"]
        return state["rtl"](state["isa"], program, program.task(task), limit)

    monkeypatch.setattr(simulate, "simulate", fake)
    monkeypatch.setattr(verilate, "build", lambda config, **options: Path("nowhere"))
    return state


def run(folder: Path, *arguments: str) -> Result:
    """Run it as `python -m moevit.cli.demo` does."""

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def start(rest: tuple[str, ...]) -> None:
        demo.main(rest)

    return CliRunner().invoke(start, ["--limit", "20", "--images", "3", "-o", str(folder), *arguments])


def test_it_shows_predictions_layers_and_stages(simulators: dict[str, Any], tmp_path: Path) -> None:
    done = run(tmp_path / "demo")
    assert done.exit_code == 0, done.output
    for text in (
        "onnxruntime", "Bit-exact", "Cycles by layer", "mac_utilisation", "attention", "norm + q, k, v",
        "busy", "dependency", "float", "report.png", "fashion_tiny.moevit",
    ):  # fmt: skip
        assert text in done.stdout
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["fashion_tiny.moevit", "report.png"]
    with Image.open(tmp_path / "demo" / "report.png") as picture:
        assert picture.size == PNG_SIZE
        assert np.asarray(picture.convert("L")).std() > 10


def test_json_holds_the_figures(simulators: dict[str, Any], tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["accuracy"]["images"] == 20
    assert answer["accuracy"]["top1_int8"] > 0.5
    assert len(answer["predictions"]) == 3
    assert answer["rtl"]["bit_exact"] is True
    assert answer["isa"]["cycles"] is None
    assert Path(answer["plot"]).is_file()


def test_a_tensor_that_differs_is_status_1(simulators: dict[str, Any], tmp_path: Path) -> None:
    def differs(*arguments: Any) -> None:
        raise MismatchError(tensor="gelu_1", index=(3, 7), got=1, want=2, where="rtl, image 0")

    simulators["rtl"] = differs
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "tensor 'gelu_1'[3, 7]" in done.stderr
    assert not (tmp_path / "report.png").exists()


def test_an_output_that_differs_between_isa_and_rtl_is_status_1(
    simulators: dict[str, Any], tmp_path: Path
) -> None:
    def differs(*arguments: Any) -> result.Result:
        rtl = rtl_of(*arguments)
        outputs = {name: y.copy() for name, y in rtl.outputs.items()}
        outputs["logits"][2, 5] += 1
        return dataclasses.replace(rtl, outputs=outputs)

    simulators["rtl"] = differs
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "tensor 'logits'[5]" in done.stderr
    assert "image 2" in done.stderr


def test_accuracy_that_is_lost_is_status_1(
    simulators: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MAX_LOSS", -1.0)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "check failed" in done.stderr
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
    assert run(tmp_path, "--images", "none").exit_code == 2


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """As `make demo` runs it, with the Verilog really simulated."""
    done = subprocess.run(
        [sys.executable, "-m", "moevit.cli.demo", "--json", "--images", "4"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["rtl"]["bit_exact"] is True
    assert answer["rtl"]["images"] == 4
    assert answer["isa"]["images"] == answer["accuracy"]["images"] == 500
    assert answer["rtl"]["mac_utilisation"] >= 0.55
    assert abs(answer["accuracy"]["top1_int8"] - answer["accuracy"]["top1_float"]) < demo.MAX_LOSS
    for stage in answer["rtl"]["stages"].values():
        assert sum(stage.values()) == pytest.approx(answer["rtl"]["cycles"][0], rel=0.01)
    assert (tmp_path / "build" / "demo" / "report.png").stat().st_size > 20_000
