"""`moevit report --power`: whose watts are shown, that the page says so, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from compile_helpers import SMALL, float_inputs
from report_figures import check_page

from moevit import container
from moevit.cli import cli
from moevit.compiler.driver import compile_graphs
from moevit.compiler.frontend.load import load
from moevit.config import CONFIGS
from moevit.energy.power import read_power
from moevit.errors import InputError
from moevit.program import Program

# What of a report of Vivado 2023.2 is read: its head and its summary, with the lines between as it writes them.
VIVADO = """\
Copyright 1986-2022 Xilinx, Inc. All Rights Reserved. Copyright 2022-2023 Advanced Micro Devices, Inc.
---------------------------------------------------------------------------------------------------------
| Tool Version     : Vivado v.2023.2 (lin64) Build 4029153 Fri Oct 13 20:13:54 MDT 2023
| Date             : Mon Nov  3 10:00:00 2025
| Command          : report_power -file reports/power.txt
| Design           : moevit_wrapper
| Device           : xczu7ev-ffvc1156-2-e
| Design State     : routed
---------------------------------------------------------------------------------------------------------

Power Report

1. Summary
----------

+--------------------------+--------------+
| Total On-Chip Power (W)  | 4.250        |
| Design Power Budget (W)  | Unspecified* |
| Power Budget Margin (W)  | NA           |
| Dynamic (W)              | 3.600        |
| Device Static (W)        | 0.650        |
| Confidence Level         | Medium       |
+--------------------------+--------------+
"""


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graphs({"main": load(SMALL)}, CONFIGS["zcu104"], {"main": float_inputs(SMALL)}).program


@pytest.fixture(scope="module")
def saved(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("power") / "small.moevit"
    container.save(program, path)
    return path


def run_result(program: Program, **changes: Any) -> str:
    """What `moevit run --json` prints, as far as it is read."""
    values = {"device": "pynq", "task": "main", "config_digest": f"{program.config.digest:016x}", "latency_ms": 2.0,
              "power_w": 11.5}  # fmt: skip
    return json.dumps(values | changes)


def report(saved: Path, folder: Path, *files: Path) -> Result:
    powers = [word for file in files for word in ("--power", str(file))]
    return CliRunner().invoke(cli, ["report", str(saved), "--backend", "cycle", *powers, "-o", str(folder), "--json"])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_vivados_report_replaces_the_estimate_of_the_chip(saved: Path, tmp_path: Path) -> None:
    done = report(saved, tmp_path / "out", write(tmp_path / "power.txt", VIVADO))
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    main = answer["tasks"]["main"]
    seconds = main["simulation"]["latency_ms"] / 1000
    estimated = {part["name"]: part["joules"] for part in main["energy_estimate"]["parts"]}
    energy, dram = main["energy"], estimated["DRAM"]
    assert energy["method"] == "vivado"
    assert [part["name"] for part in energy["parts"]] == ["chip, by Vivado", "DRAM"]
    for which in ("low", "typical", "high"):
        assert energy["total_joules"][which] == pytest.approx(4.25 * seconds + dram[which])
    assert main["energy_estimate"]["method"] == "estimated"
    power = main["power"]
    assert (power["watts"], power["dynamic_watts"], power["static_watts"]) == (4.25, 3.6, 0.65)
    assert power["confidence"] == "Medium"
    (row,) = (row for row in answer["machines"] if row["source"] == "this report")
    assert row["energy_method"] == "vivado"
    assert row["mj"][1] == pytest.approx(1000 * energy["total_joules"]["typical"])
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Vivado&#x27;s estimate (power.txt, Vivado v.2023.2)" in text
    assert "4.25 W, from power.txt, Vivado v.2023.2, confidence Medium. Our model, which it replaces" in text
    assert check_page(tmp_path / "out") > 100


def test_a_boards_sensor_replaces_it_all(program: Program, saved: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / "power.txt", VIVADO), write(tmp_path / "run.json", run_result(program))]
    done = report(saved, tmp_path / "out", *files)
    assert done.exit_code == 0, done.output
    main = json.loads(done.stdout)["tasks"]["main"]
    assert main["energy"]["method"] == "measured"
    assert main["energy"]["total_joules"] == pytest.approx({"low": 0.023, "typical": 0.023, "high": 0.023})
    assert main["power"]["source"] == "run.json, sensors of pynq"
    assert "measured (run.json, sensors of pynq)" in (tmp_path / "out" / "report.html").read_text()
    assert check_page(tmp_path / "out") > 100


def test_without_one_the_page_says_that_it_is_an_estimate(saved: Path, tmp_path: Path) -> None:
    assert report(saved, tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Estimated by the model below; no power report and no sensor&#x27;s reading was given" in text.replace(
        "'", "&#x27;"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "states no Total On-Chip Power"),
        (VIVADO.replace("4.250", "NA   "), "states no Total On-Chip Power"),
        (VIVADO.replace("4.250", "-1.0 "), "states no Total On-Chip Power"),
        (VIVADO.replace("xczu7ev", "xczu9eg"), "is of xczu9eg"),
        ("{}", "no result of `moevit run"),
        ("{", "no result of `moevit run"),
        ({"power_w": None}, "pynq has no sensor"),
        ({"power_w": "much"}, "states 'much' W"),
        ({"power_w": float("nan")}, "states nan W"),
        ({"latency_ms": 0}, "0.0 ms"),
        ({"task": "other"}, "is of task 'other'"),
        ({"config_digest": "0" * 16}, "is of configuration 0000"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_leaves_nothing(
    program: Program, saved: Path, tmp_path: Path, text: str | dict[str, Any], says: str
) -> None:
    content = text if isinstance(text, str) else run_result(program, **text)
    done = report(saved, tmp_path / "out", write(tmp_path / "power", content))
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "out").exists()


def test_two_of_a_kind_and_files_that_are_none(program: Program, saved: Path, tmp_path: Path) -> None:
    vivado, run = write(tmp_path / "power.txt", VIVADO), write(tmp_path / "run.json", run_result(program))
    for files, says in (([vivado, vivado], "a second report of Vivado"), ([run, run], "a second run of task 'main'"),
                        ([tmp_path / "none"], "No such file")):  # fmt: skip
        done = report(saved, tmp_path / "out", *files)
        assert done.exit_code == 2
        assert says in done.output
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        read_power(tmp_path / "bytes")
