"""A report in headless Chromium: on a desk, on a phone and in print, it is silent, asks nobody and shows all figures.

With ``MOEVIT_PICTURES=DIR`` the pages are written there as pictures, for a person to look at.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from report_figures import check_page, check_sources

from browser.chromium import NAMES, BrowserError, Chromium, find
from moevit import container
from moevit.bench.onnx_file import to_onnx
from moevit.bench.workloads import m3vit_tiny
from moevit.cli import cli
from moevit.compiler.driver import compile_graphs
from moevit.config import CONFIGS

pytestmark = pytest.mark.browser

SHIPPED = Path(__file__).parents[2] / "models" / "m3vit"
WIDTHS = {"desk": 1280, "phone": 390}


def run(*arguments: str | Path) -> None:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def report_of_shipped(folder: Path) -> Path:
    """The shipped two-task model, simulated by the Verilog."""
    model = folder / "m3vit.moevit"
    tasks = [f"{task}={SHIPPED / task}.onnx" for task in ("seg", "depth")]
    run("compile", *tasks, "--config", "tiny", "--calib", SHIPPED / "calib_scenes.npz", "-o", model)
    onnx = [word for task in tasks for word in ("--onnx", task)]
    run("report", model, "--inputs", SHIPPED / "test_scenes.npz", *onnx, "--accuracy-limit", "16", "-o", folder / "out")
    return folder / "out"


def report_of_cityscapes(folder: Path) -> Path:
    """M³ViT tiny for Cityscapes on zcu104, by the timing model: what `moevit workload`, compile and report do."""
    made = m3vit_tiny()
    calibration = {task: dict(made.calibration) for task in made.graphs}
    program = compile_graphs(made.graphs, CONFIGS["zcu104"], calibration).program
    container.save(program, folder / "cityscapes.moevit")
    np.savez(folder / "inputs.npz", **made.inputs)
    onnx: list[str | Path] = []
    for task, graph in made.graphs.items():
        (folder / f"{task}.onnx").write_bytes(to_onnx(graph).SerializeToString())
        onnx += ["--onnx", f"{task}={folder / task}.onnx"]
    run("report", folder / "cityscapes.moevit", "--inputs", folder / "inputs.npz", *onnx, "--backend", "cycle",
        "-o", folder / "out")  # fmt: skip
    return folder / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module", params=["shipped", "cityscapes"])
def report(request: pytest.FixtureRequest, browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report. The browser comes first: where there is none, that is said at once."""
    make = {"shipped": report_of_shipped, "cityscapes": report_of_cityscapes}[request.param]
    return make(tmp_path_factory.mktemp(request.param))


def keep(browser: Chromium, report: Path, name: str) -> None:
    """A picture for a person, where one is asked for."""
    folder = os.environ.get("MOEVIT_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.picture(Path(folder) / f"{report.parent.name}-{name}.png")


def check_silent(browser: Chromium, page: Path, seen: Any) -> None:
    """Nothing was logged, and nothing was asked for but the page itself; pictures inside of it are in it."""
    assert seen.logged == []
    asked = [url for _, url in seen.requests if not url.startswith("data:")]
    assert asked == [page.absolute().as_uri()]


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Boxes that stick out of the window, but for what is inside of a box that scrolls.
STICKS_OUT = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('svg svg, svg *')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('figure svg text')]
  .map(e => e.getBoundingClientRect().height).filter(h => h > 0))"""


@pytest.mark.parametrize("where", WIDTHS)
def test_on_a_screen(browser: Chromium, report: Path, where: str) -> None:
    page = report / "report.html"
    seen = browser.open(page, WIDTHS[where], phone=where == "phone")
    keep(browser, report, where)
    check_silent(browser, page, seen)
    assert browser.evaluate("innerWidth") == WIDTHS[where]  # not laid out wider and shrunk
    assert browser.evaluate(OVERFLOW) <= 0
    assert browser.evaluate(STICKS_OUT) == []
    plots = len(list(report.glob("*.svg")))
    widths = browser.evaluate("[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)")
    assert len(widths) == plots
    assert min(widths) > 300
    # Tables scroll inside of their boxes once they are opened, and the page still does not.
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate(OVERFLOW) <= 0
    assert browser.evaluate("[...document.querySelectorAll('table')].every(e => e.getBoundingClientRect().height > 20)")
    keep(browser, report, f"{where}-open")
    assert browser.evaluate(SMALLEST_TEXT) > 6  # pixels, the smallest label of a layer


def test_in_print(browser: Chromium, report: Path) -> None:
    page = report / "report.html"
    seen = browser.open(page, 700, media="print")
    keep(browser, report, "print")
    check_silent(browser, page, seen)
    assert browser.evaluate(OVERFLOW) <= 0
    assert browser.evaluate(STICKS_OUT) == []
    # Tables are printed without having been opened, but for those of many rows; links to download are not.
    shown = browser.evaluate(
        "[...document.querySelectorAll('details')].map(e => [e.className, e.open,"
        " e.querySelector('table').checkVisibility({contentVisibilityAuto: true})])"
    )
    assert all(visible == (kind != "long") for kind, _, visible in shown), shown
    assert any(not opened for kind, opened, _ in shown if kind != "long")
    assert browser.evaluate("[...document.querySelectorAll('a[download]')].every(e => !e.checkVisibility())")
    pages = browser.pdf()
    assert pages.startswith(b"%PDF-")
    assert 4 < len(re.findall(rb"/Type\s*/Page\b", pages)) < 60


def test_every_figure_equals_the_json(report: Path) -> None:
    assert check_page(report) > 1000
    check_sources(report)


def test_downloads_work_without_a_network(browser: Chromium, report: Path) -> None:
    """What a browser finds behind the links is what lies beside the page."""
    browser.open(report / "report.html", WIDTHS["desk"])
    browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    try:
        got = browser.evaluate(
            "Promise.all([...document.querySelectorAll('a[download]')].map(async e =>"
            " [e.download, await (await fetch(e.href)).text()]))"
        )
    finally:
        browser.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
    texts = dict(got)
    assert len(texts) == len(got)
    files = {path.name for path in report.iterdir() if path.suffix == ".csv"}
    assert files | {"report.json"} == set(texts)
    assert all(texts[name] == (report / name).read_text() for name in files)
    assert json.loads(texts["report.json"]) == json.loads((report / "report.json").read_text())


def test_what_a_bad_page_does_is_seen(browser: Chromium, tmp_path: Path) -> None:
    """The checks themselves: a page that logs, fetches, or is too wide is noticed."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>"
        "<img src='picture.png'><script>console.warn('careful'); missing()</script><p style='width:2000px'>wide</p>"
    )
    seen = browser.open(page, 390, phone=True)
    levels = [level for level, _ in seen.logged]
    assert "warning" in levels and levels.count("error") >= 2  # the missing function, the missing picture
    assert [url.rpartition("/")[2] for _, url in seen.requests] == ["bad.html", "picture.png"]
    assert browser.evaluate(OVERFLOW) > 1000


def test_a_missing_browser_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(BrowserError, match=r"no Chromium was found.*apt-get install chromium"):
        find()
    monkeypatch.setenv("CHROMIUM", "/no/such/program")
    with pytest.raises(BrowserError, match="no Chromium was found"):
        find()
    assert NAMES[0] == "chromium"
