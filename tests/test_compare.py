"""`moevit compare`: the differences of two containers, by hand where that can be, and of saved reports."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from compile_helpers import ODD, SMALL, compiled

from moevit import container
from moevit.cli import cli
from moevit.cli.compare import compare


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compare")
    out = {}
    for name, model, config in (("small", SMALL, "tiny"), ("wide", SMALL, "wide"), ("odd", ODD, "tiny")):
        out[name] = folder / f"{name}.moevit"
        container.save(compiled(model, config).program, out[name])
    return out


def task(cycles: dict[str, float], accuracy: dict[str, float] | None = None) -> dict[str, Any]:
    figures = dict.fromkeys(("latency_ms", "mac_utilisation", "weight_bytes", "dram_bytes", "millijoules"), 1.0)
    return {
        "figures": figures | {"cycles": sum(cycles.values())},
        "layers": {name: {"cycles": n, "dram_bytes": 2 * n, "macs": 0} for name, n in cycles.items()},
        "accuracy": accuracy or {},
    }


def test_differences_by_hand():
    got = compare(task({"a": 10, "b": 20}, {"y cosine": 0.99}), task({"a": 15, "c": 5}, {"y cosine": 0.98, "z": 1}))
    assert got["figures"]["cycles"] == {"before": 30, "after": 20, "difference": -10, "ratio": pytest.approx(2 / 3)}
    assert [(layer["name"], layer["in"], layer["cycles"]["difference"]) for layer in got["layers"]] == [
        ("a", "both", 5), ("b", "before", -20), ("c", "after", 5),
    ]  # fmt: skip
    assert got["layers"][1]["cycles"]["ratio"] is None
    assert list(got["accuracy"]) == ["y cosine"]
    assert got["accuracy"]["y cosine"]["difference"] == pytest.approx(-0.01)


def test_a_container_is_like_itself(files: dict[str, Path]):
    done = run(files["small"], files["small"], "--json")
    assert done.exit_code == 0, done.output
    main = json.loads(done.stdout)["tasks"]["main"]
    assert all(change["difference"] == 0 and change["ratio"] == 1 for change in main["figures"].values())
    assert all(layer["cycles"]["difference"] == 0 for layer in main["layers"])
    assert "no layer changed" in run(files["small"], files["small"]).stdout


def test_two_machines(files: dict[str, Path]):
    answer = json.loads(run(files["small"], files["wide"], "--json").stdout)
    assert (answer["before"]["config"], answer["after"]["config"]) == ("tiny", "wide")
    main = answer["tasks"]["main"]
    assert main["figures"]["cycles"]["difference"] != 0
    total = sum(layer["cycles"]["difference"] for layer in main["layers"])
    assert total == pytest.approx(main["figures"]["cycles"]["difference"])


def test_a_saved_report(files: dict[str, Path], tmp_path: Path):
    made = CliRunner().invoke(cli, ["report", str(files["small"]), "--backend", "cycle", "-o", str(tmp_path)])
    assert made.exit_code == 0, made.output
    answer = json.loads(run(tmp_path / "report.json", files["small"], "--json").stdout)
    assert answer["tasks"]["main"]["figures"]["cycles"]["difference"] == 0
    other = run(tmp_path / "report.json", files["odd"])
    assert other.exit_code == 0
    assert "only in B" in other.stdout


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("[]", "no report of this version"), ('{"tasks": {}}', "no report")]
)
def test_what_is_no_report(files: dict[str, Path], tmp_path: Path, text: str, says: str):
    (tmp_path / "x.json").write_text(text)
    done = run(tmp_path / "x.json", files["small"])
    assert done.exit_code == 2
    assert says in done.output
    assert run(files["small"], tmp_path / "nothing.moevit").exit_code == 2
