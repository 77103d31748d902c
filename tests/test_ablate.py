"""`moevit ablate`: what its answer holds, that both ways really ran, and what must be so of any model."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from moevit.cli import ablate, cli
from moevit.cli.ablate import TECHNIQUES

MODELS = Path(__file__).parents[1] / "models"
DENSE = MODELS / "fashion_vit"
EXPERTS = MODELS / "m3vit"
HOW = {"rtl", "isa", "reference", "float", "computed"}


def run(folder: Path, *arguments: str) -> Result:
    """The command on the dense shipped model."""
    return CliRunner().invoke(
        cli,
        ["ablate", str(DENSE / "fashion_vit.onnx"), "--config", "tiny", "--calib", str(DENSE / "calib_images.npz"),
         "--inputs", str(DENSE / "test_images.npz"), "-o", str(folder), *arguments],
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All techniques on the dense model, a few images."""
    folder = tmp_path_factory.mktemp("ablation")
    done = run(folder, "--limit", "8", "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    assert json.loads((folder / "ablation.json").read_text()) == answer
    return answer


def values(answer: dict[str, Any], technique: str, figure: str) -> dict[str, float]:
    """A figure of each way that has it."""
    ways = answer["techniques"][technique]["ways"]
    return {way["key"]: way["figures"][figure]["value"] for way in ways if figure in way["figures"]}


def origins(answer: dict[str, Any], technique: str, figure: str) -> set[str]:
    ways = answer["techniques"][technique]["ways"]
    return {way["figures"][figure]["how"] for way in ways if figure in way["figures"]}


def check_shape(answer: dict[str, Any]) -> None:
    """What holds for every answer: each figure says what it is, one way is the machine's, no check failed."""
    for name, technique in answer["techniques"].items():
        if not technique["applicable"]:
            assert technique["reason"]
            assert technique["ways"] == []
            continue
        assert len(technique["ways"]) > 1, name
        assert [way["key"] for way in technique["ways"] if way["ours"]] == ["ours"]
        assert technique["notes"]
        assert all(technique["checks"].values())
        for way in technique["ways"]:
            assert way["label"]
            for figure in way["figures"].values():
                assert set(figure) == {"value", "unit", "how"}
                assert figure["how"] in HOW
                assert np.isfinite(figure["value"])
                assert figure["value"] >= 0


def check_attention(answer: dict[str, Any]) -> None:
    """ATTENTION moves nothing and is no slower; what streams more often moves more."""
    moved = values(answer, "attention", "dram_bytes")
    cycles = values(answer, "attention", "cycles")
    assert origins(answer, "attention", "dram_bytes") == origins(answer, "attention", "cycles") == {"rtl"}
    assert moved["ours"] == 0
    assert values(answer, "attention", "instructions")["ours"] == 1
    assert 0 < moved["scores_out_8"] < moved["scores_out_16"]
    assert 0 < moved["stream_tiles"] < moved["stream_rows"]
    assert all(n > 0 for n in cycles.values())
    assert min(cycles, key=lambda way: cycles[way]) == "ours"


def test_every_figure_says_what_it_is(dense: dict[str, Any]) -> None:
    assert list(dense["techniques"]) == list(TECHNIQUES)
    assert dense["images"] == 8
    assert dense["config"] == "tiny"
    assert dense["dram"]["bytes_per_cycle"] == 32
    check_shape(dense)


def test_attention_runs_all_ways_on_the_rtl(dense: dict[str, Any]) -> None:
    check_attention(dense)
    checks = dense["techniques"]["attention"]["checks"]
    assert sum("same bytes" in what for what in checks) == 5
    # K and V of a head and all its queries, counted by hand: 2 heads of 32, 50 tokens in tiles of 8 keys
    key, value = 7 * 8 * 32, 4 * 8 * 52
    data = values(dense, "attention", "data_bytes")
    assert data["stream_tiles"] == 2 * 13 * (key + value)
    assert data["stream_rows"] == 2 * 50 * (key + value)
    assert data["scores_out_8"] == 2 * (key + value + 2 * 50 * 56)
    assert data["scores_out_16"] == 2 * (key + value + 2 * 50 * 112)


def test_scores_that_do_not_fit_are_written_out_in_parts(
    tmp_path: Path, dense: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 600 words of activation memory free for scores, and with 40."""
    room = [600]
    free = "moevit.ablate.attention._Bench._free"
    monkeypatch.setattr(free, lambda self: self.subject.config.activation_words - room[0])
    done = run(tmp_path, "--only", "attention", "--limit", "1", "--json")
    assert done.exit_code == 0, done.output
    parts = json.loads(done.stdout)
    check_shape(parts)
    check_attention(parts)
    assert parts["techniques"]["attention"]["ways"][3]["label"].endswith("8 bits, by 40")
    whole = values(dense, "attention", "data_bytes")
    data = values(parts, "attention", "data_bytes")
    assert data["ours"] == whole["ours"] == 0
    assert data["stream_tiles"] == whole["stream_tiles"]
    assert data["scores_out_8"] == whole["scores_out_8"] + 2 * (7 * 8 * 32 + 4 * 8 * 52)  # K and V twice
    room[0] = 40
    done = run(tmp_path, "--only", "attention", "--limit", "1", "--json")
    assert done.exit_code == 0, done.output
    technique = json.loads(done.stdout)["techniques"]["attention"]
    assert [way["key"] for way in technique["ways"]] == ["ours", "stream_rows"]
    assert sum(note.startswith("Left out") for note in technique["notes"]) == 3


def test_softmax_errors_are_those_of_the_models_scores(dense: dict[str, Any]) -> None:
    error = values(dense, "softmax", "context_error")
    assert error["float"] < error["two_pass"] < error["ours"] < 0.02
    assert origins(dense, "softmax", "context_error") == {"reference"}
    assert values(dense, "softmax", "passes") == {"ours": 1, "two_pass": 2, "three_pass": 3}
    written = values(dense, "softmax", "output_error")
    assert all(written[way] > error[way] for way in written)


def test_the_delta_table_is_smaller_than_any_as_good(dense: dict[str, Any]) -> None:
    error, bits = (values(dense, "activation", figure) for figure in ("max_error", "table_bits"))
    assert error["same_size"] > 1.5 * error["ours"]
    assert max(error["same_error"], error["lookup"]) <= 1.01 * error["ours"]
    assert bits["ours"] == 128 * 24
    assert bits["ours"] < bits["same_size"] < bits["same_error"] < bits["lookup"]


def test_relu_really_ran_in_the_place_of_gelu(dense: dict[str, Any]) -> None:
    assert origins(dense, "activation", "model_error") == {"isa"}
    error = values(dense, "activation", "model_error")
    assert set(error) == {"ours", "relu"}
    assert error["relu"] > 2 * error["ours"]
    assert set(values(dense, "activation", "top1")) == {"ours", "relu"}
    assert dense["techniques"]["activation"]["details"]["float_top1"]["how"] == "float"
    assert dense["techniques"]["activation"]["subject"].startswith("4 LINEARs with GELU")


def test_separate_units_idle_or_take_longer(dense: dict[str, Any]) -> None:
    cycles, idle, multipliers = (values(dense, "unified", figure) for figure in ("cycles", "idle", "multipliers"))
    assert cycles["ours"] == cycles["each_as_large"] < cycles["shared_out"]
    assert idle["ours"] < idle["shared_out"] < idle["each_as_large"] < 1
    assert multipliers["ours"] == multipliers["shared_out"] == 128
    parts = dense["techniques"]["unified"]["details"]
    assert set(parts) == {"patch embedding", "projections", "attention", "MLP", "heads", "data in and out"}
    assert sum(part["value"] for part in parts.values()) == pytest.approx(cycles["ours"])


def test_a_model_without_experts_says_so(dense: dict[str, Any]) -> None:
    assert dense["techniques"]["experts"]["reason"] == "the model has no experts"


def test_it_prints_tables_and_draws(tmp_path: Path) -> None:
    done = run(tmp_path / "new" / "folder", "--only", "activation, softmax", "--limit", "2")
    assert done.exit_code == 0, done.output
    assert done.stdout.index("Single-pass softmax") < done.stdout.index("Activation by delta")
    assert "Reordered attention" not in done.stdout
    assert "counted on the RTL" in done.stdout
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["ablation.json", "ablation.png", "ablation.svg"]
    with Image.open(folder / "ablation.png") as picture:
        assert picture.width == 1350
        assert np.asarray(picture.convert("L")).std() > 10
    assert "passes over the scores" in (folder / "ablation.svg").read_text()


def test_nothing_applicable_is_an_answer_too(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "experts", "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "Expert by expert: not applicable, the model has no experts" in done.stdout
    assert (tmp_path / "ablation.png").exists()


def test_a_way_that_differs_is_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moevit.ablate.result import Figure, How, Technique, Way

    ways = tuple(Way(key, key, {"passes": Figure(1, "passes", How.COMPUTED)}, key == "ours") for key in ("ours", "b"))
    wrong = Technique("softmax", "Softmax", "nothing", ways, notes=("none",), checks={"it is equal": False})
    monkeypatch.setattr("moevit.cli.ablate._run", lambda name, subject: wrong)
    done = run(tmp_path, "--only", "softmax", "--limit", "1")
    assert done.exit_code == 1
    assert "softmax, it is equal" in done.stderr
    assert (tmp_path / "ablation.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "sofmax"], "no technique 'sofmax'"),
        (["--only", ","], "names no technique"),
        (["--config", "huge"], "huge"),
        (["--limit", "0"], "--limit"),
        (["--inputs", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_wrong_options_are_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_help_has_examples() -> None:
    assert isinstance(ablate.command, click.Command)
    done = CliRunner().invoke(cli, ["ablate", "--help"])
    assert done.exit_code == 0
    assert "moevit ablate seg.onnx" in done.stdout


@pytest.mark.slow
def test_experts_are_read_once_or_once_per_token(tmp_path: Path) -> None:
    """The shipped model with experts, all techniques."""
    done = CliRunner().invoke(
        cli,
        ["ablate", str(EXPERTS / "seg.onnx"), "--config", "tiny", "--calib", str(EXPERTS / "calib_scenes.npz"),
         "--inputs", str(EXPERTS / "test_scenes.npz"), "-o", str(tmp_path), "--limit", "8", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    check_shape(answer)
    check_attention(answer)
    read, cycles = values(answer, "experts", "expert_bytes"), values(answer, "experts", "cycles")
    assert origins(answer, "experts", "expert_bytes") == origins(answer, "experts", "cycles") == {"rtl"}
    assert 0 < read["ours"] < read["middle"] < read["token_by_token"]
    assert cycles["ours"] < cycles["token_by_token"]
    assert "all ways give the same output bytes" in answer["techniques"]["experts"]["checks"]
    assert set(values(answer, "activation", "miou")) == {"ours", "relu"}
    assert {"experts", "gates"} <= set(answer["techniques"]["unified"]["details"])
