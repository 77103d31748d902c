"""`moevit report`: the page asks nobody for anything, and every number in it is in the JSON."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import partition_nets as nets
import pytest
from click.testing import CliRunner, Result
from report_figures import check_page, check_sources
from report_page import Page

import moevit
from moevit import container
from moevit.cli import cli
from moevit.cli.report import tables
from moevit.compiler.driver import compile_model
from moevit.config import CONFIGS
from moevit.sim.inputs import read_inputs

MODELS = Path(__file__).parents[1] / "models" / "m3vit"


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model for `tiny`."""
    path = tmp_path_factory.mktemp("report") / "m3vit.moevit"
    program = compile_model(
        {name: MODELS / f"{name}.onnx" for name in ("seg", "depth")}, CONFIGS["tiny"],
        lambda task, shapes: read_inputs(shapes, [MODELS / "calib_scenes.npz"]).floats(0, 16),
    ).program  # fmt: skip
    container.save(program, path)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(two_tasks: Path) -> Path:
    """A report by the timing model, with accuracy and the CPU's time of one task."""
    folder = two_tasks.parent / "out"
    done = run(two_tasks, "--backend", "cycle", "--inputs", MODELS / "test_scenes.npz", "--onnx",
               f"seg={MODELS / 'seg.onnx'}", "--accuracy-limit", "8", "--threads", "1", "-o", folder)  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def values(made: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((made / "report.json").read_text())
    return read


def all_tables(values: dict[str, Any]) -> list[tables.Table]:
    of_tasks = [table for task in values["tasks"].values() for table in tables.task_tables(task)]
    return [*tables.general_tables(values), *of_tasks]


def test_the_page_needs_no_network(made: Path):
    text = (made / "report.html").read_text()
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links), page.links
    assert not {"script", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_of_the_page_is_in_the_json(made: Path):
    assert check_page(made) > 1000
    check_sources(made)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bytes of weights", "and 5 bytes of weights"),
        (" MHz", "1 MHz"),
        ("<td class=n>100</td>", "<td class=n>101</td>"),
        ("<h2>Task seg</h2>", "<h2>Task seg</h2><p>99.9 %</p>"),
    ],
)
def test_a_figure_that_is_not_in_the_json_is_found(made: Path, tmp_path: Path, old: str, new: str):
    """The check itself: a page with one number changed fails it."""
    for path in made.iterdir():
        if path.suffix in (".json", ".svg", ".html"):
            text = path.read_text()
            (tmp_path / path.name).write_text(text.replace(old, new, 1) if path.suffix == ".html" else text)
    assert (tmp_path / "report.html").read_text() != (made / "report.html").read_text()
    with pytest.raises(AssertionError):
        check_page(tmp_path)


def test_downloads_hold_the_unrounded_numbers(made: Path, values: dict[str, Any]):
    links = [link for link in Page((made / "report.html").read_text()).links if link.startswith("data:text/csv")]
    texts = {base64.b64decode(link.partition("base64,")[2]).decode() for link in links}
    for table in all_tables(values):
        assert table.csv() in texts
    machines = list(csv.DictReader(io.StringIO((made / "latency.csv").read_text())))
    ours = next(row for row in machines if row["network"] == "seg")
    assert float(ours["ms a frame"]) == values["tasks"]["seg"]["simulation"]["latency_ms"]
    whole = next(link for link in Page((made / "report.html").read_text()).links if "application/json" in link)
    assert json.loads(base64.b64decode(whole.partition("base64,")[2])) == values


def test_what_a_task_says(values: dict[str, Any]):
    seg, depth = values["tasks"]["seg"], values["tasks"]["depth"]
    assert seg["cycles"] == sum(layer["cycles"] for layer in seg["layers"])
    assert sum(layer["macs"] for layer in seg["layers"]) == seg["simulation"]["macs"]
    assert seg["energy"]["method"] == "estimated"
    assert {run["precision"] for run in seg["cpu"]} == {"float32", "int8"}
    assert all(run["method"] == "measured" and run["latency_ms"] > 0 for run in seg["cpu"])
    assert seg["accuracy"]["images"] == 8
    assert depth["cpu"] == []
    assert depth["accuracy"] is None
    # A layer may add fewer cycles than it takes, where it overlaps; all together cannot.
    assert seg["simulation"]["macs"] / seg["cycles"] < 128
    assert seg["host"] == []
    for gate in seg["experts"]:
        assert sum(gate["tokens"]) == pytest.approx(128)


def test_every_plot_is_a_file_and_in_the_page(made: Path):
    text = (made / "report.html").read_text()
    plots = sorted(path.stem for path in made.glob("*.svg"))
    assert {"latency", "energy", "efficiency", "seg-roofline", "depth-experts", "seg-memory"} <= set(plots)
    assert text.count("<svg ") == len(plots)
    assert all((made / f"{name}.png").stat().st_size > 5000 for name in plots)


def test_json_is_the_file(two_tasks: Path, tmp_path: Path):
    done = run(two_tasks, "--backend", "cycle", "--task", "depth", "-o", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert list(answer["tasks"]) == ["depth"]
    read = json.loads((tmp_path / "report.json").read_text())
    assert {key: answer[key] for key in read} == read


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backend", "rtl"], "--inputs"),
        (["--backend", "cycle", "--onnx", f"seg={MODELS / 'seg.onnx'}"], "need inputs"),
        (["--backend", "cycle", "--task", "nothing"], "no task 'nothing'"),
        (["--backend", "cycle", "--inputs", MODELS / "test_scenes.npz", "--onnx", "seg=none.onnx"], "no such file"),
        (["--backend", "cycle", "--inputs", MODELS / "test_scenes.npz", "--onnx", f"x={MODELS / 'seg.onnx'}"],
         "no task 'x'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_leaves_nothing(
    two_tasks: Path, tmp_path: Path, arguments: list[Any], says: str
):
    done = run(two_tasks, *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rtl_has_a_timeline(two_tasks: Path, tmp_path: Path):
    done = run(two_tasks, "--inputs", MODELS / "test_scenes.npz", "--task", "depth", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    task = json.loads((tmp_path / "report.json").read_text())["tasks"]["depth"]
    assert {span["unit"] for span in task["timeline"]} == {"dma", "stream", "load", "mac", "post"}
    assert all(0 <= span["start"] < span["end"] <= task["cycles"] for span in task["timeline"])
    assert (tmp_path / "depth-timeline.svg").is_file()


@pytest.mark.parametrize("given", [True, False])
def test_parts_on_the_host(tmp_path: Path, given: bool):
    model = nets.middle("Sin", tmp_path / "sin.onnx")
    moevit.compile(model, "tiny", nets.inputs(8)).save(tmp_path / "sin.moevit")
    np.savez(tmp_path / "images.npz", **nets.inputs(2))
    more = ["--inputs", tmp_path / "images.npz", "--onnx", model] if given else []
    done = run(tmp_path / "sin.moevit", "--backend", "cycle", *more, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    main = json.loads(done.stdout)["tasks"]["main"]
    names = [layer["name"] for layer in main["layers"]]
    assert len(names) == len(set(names))
    assert main["cycles"] == pytest.approx(sum(layer["cycles"] for layer in main["layers"]))
    assert sum(layer["macs"] for layer in main["layers"]) == main["simulation"]["macs"]
    assert len(main["host"]) == given  # nothing runs where there are no images
    text = (tmp_path / "out" / "report.html").read_text()
    assert ("run on the host" in text) == given
