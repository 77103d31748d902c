"""`moevit sweep`: axes, results, what an interruption leaves, and the same answer from processes and from dask."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from compile_helpers import SMALL, float_inputs

from moevit.cli import cli
from moevit.compiler.driver import prepare
from moevit.compiler.frontend.load import load
from moevit.config import CONFIGS
from moevit.errors import InputError, ToolError
from moevit.sweep import run as sweep_run
from moevit.sweep.grid import parse_axes, points
from moevit.sweep.measure import Subject, lookup, measure, pareto
from moevit.sweep.run import read_record, run

TINY = CONFIGS["tiny"]
AXES = {"rows": (2, 4), "depth": (4, 8), "activation_words": (64, 16384)}


@pytest.fixture(scope="module")
def subject() -> Subject:
    graph = load(SMALL)
    return Subject(prepare({"main": graph}, {"main": float_inputs(SMALL)}), "main", "small")


def cli_run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["sweep", *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "says"),
    [("rows", "is no axis"), ("rows=", "is no axis"), ("nothing=1", "no axis 'nothing'"), ("rows=x", "'x' is no int"),
     ("clock_mhz=fast", "no float"), ("packed_macs=maybe", "no bool"), ("dram_gbps=0", "positive"),
     ("name=x", "no axis 'name'"), ("precision=int4", "no machine of precision 'int4'.*int8 is what the generator has"),
     ("precision=8,16", "no machine of precision '16'")],
)  # fmt: skip
def test_axes_that_are_none(text: str, says: str):
    with pytest.raises(InputError, match=says):
        parse_axes([text])


def test_axes_are_typed_and_given_once():
    axes = parse_axes(["rows=4,8,4", "packed_macs=true,false", "dram_gbps=6.4"])
    assert axes == {"rows": (4, 8), "packed_macs": (True, False), "dram_gbps": (6.4,)}
    with pytest.raises(InputError, match="twice"):
        parse_axes(["rows=4", "rows=8"])


def test_precision_is_what_the_generator_has():
    axes = parse_axes(["precision=8,int8", "packed_macs=true,false"])
    assert axes["precision"] == ("int8",)
    assert [(p.changes["precision"], p.config and p.config.packed_macs) for p in points(TINY, axes)] == [
        ("int8", True), ("int8", False),
    ]  # fmt: skip


def test_a_rate_in_seconds_is_more_bytes_a_cycle_to_a_slow_machine():
    made = list(points(CONFIGS["zcu104"], parse_axes(["clock_mhz=150,300", "dram_gbps=6.0,60"])))
    assert [point.dram and point.dram.bytes_per_cycle for point in made] == [40, 80, 20, 80]  # five ports carry 80


def test_each_point_says_what_it_is(subject: Subject):
    made = list(points(TINY, {"rows": (4, 3), "activation_words": (64, 16384)}))
    rows = [measure(subject, point) for point in made]
    assert [row["status"] for row in rows] == ["too small", "ok", "no machine", "no machine"]
    assert "activation memory" in rows[0]["reason"]
    assert "power of two" in rows[2]["reason"]
    assert len({row["key"] for row in rows}) == 4
    good = rows[1]
    assert good["latency_ms"] == pytest.approx(good["cycles"] / 100_000)
    assert good["millijoules"]["low"] < good["millijoules"]["typical"] < good["millijoules"]["high"]
    assert good["dram_gbps"] == pytest.approx(good["dram_bytes"] / good["latency_ms"] / 1e6)


def test_the_front_is_what_nothing_beats():
    def row(ms: float, dsp: int, status: str = "ok") -> dict[str, Any]:
        return {"latency_ms": ms, "resources": {"dsp": dsp}, "status": status}

    rows = [row(1, 100), row(2, 50), row(2, 60), row(3, 50), row(4, 10), row(0.5, 5, "too small"), row(1, 90)]
    assert [(r["latency_ms"], lookup(r, "resources.dsp")) for r in pareto(rows, "resources.dsp")] == [
        (1, 90), (2, 50), (4, 10),
    ]  # fmt: skip


def test_an_interrupted_sweep_goes_on(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    machines = list(points(TINY, AXES))
    whole = run(subject, machines, tmp_path / "whole", jobs=1)
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    assert len(lines) == 8
    half = tmp_path / "half"
    half.write_text("".join(lines[:3]) + lines[3][:20])  # cut off in the middle of a line

    measured: list[Any] = []

    def counted(of: Subject, point: Any) -> Any:
        measured.append(point)
        return measure(of, point)

    monkeypatch.setattr(sweep_run, "measure", counted)
    told: list[int] = []
    assert run(subject, machines, half, jobs=1, progress=told.append) == whole
    assert len(measured) == 5
    assert sum(told) == 8
    assert read_record(half) == {row["key"]: row for row in whole}


def test_an_error_keeps_what_was_done(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails_at_last(of: Subject, point: Any) -> Any:
        if point.changes["rows"] == 4:
            raise KeyboardInterrupt
        return measure(of, point)

    monkeypatch.setattr(sweep_run, "measure", fails_at_last)
    with pytest.raises(KeyboardInterrupt):
        run(subject, list(points(TINY, AXES)), tmp_path / "record", jobs=1)
    assert len(read_record(tmp_path / "record")) == 4


def test_a_record_that_is_not_ours_is_left_alone(subject: Subject, tmp_path: Path):
    record = tmp_path / "record"
    record.write_text('{"something": "else"}\n')
    with pytest.raises(InputError, match="no rows of a sweep"):
        run(subject, list(points(TINY, AXES)), record, jobs=1)
    assert record.read_text() == '{"something": "else"}\n'


def test_processes_and_a_dask_cluster_say_the_same(subject: Subject, tmp_path: Path):
    from distributed import LocalCluster

    machines = list(points(TINY, AXES))
    alone = run(subject, machines, tmp_path / "alone", jobs=1)
    assert run(subject, machines, tmp_path / "processes", jobs=2) == alone
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        there = run(subject, machines, tmp_path / "dask", jobs=1, cluster=cluster.scheduler_address)
    assert there == alone


def test_a_scheduler_that_is_not_there(subject: Subject, tmp_path: Path):
    with pytest.raises(ToolError, match="no dask scheduler"):
        run(subject, list(points(TINY, AXES)), tmp_path / "record", jobs=1, cluster="nonsense://nowhere")
    assert not (tmp_path / "record").exists()


def test_the_command(tmp_path: Path):
    arguments = (SMALL, "--config", "tiny", "--grid", "rows=2,4", "--grid", "depth=4,8", "--board", "zcu104",
                 "--jobs", "1", "-o", tmp_path, "--json")  # fmt: skip
    done = cli_run(*arguments)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [row["changes"] for row in answer["points"]] == [
        {"rows": r, "depth": d} for r in (2, 4) for d in (4, 8)
    ]  # fmt: skip
    assert answer["best"]["latency_ms"] == min(row["latency_ms"] for row in answer["points"])
    assert "zcu104" in answer["best"]["fits"]
    assert set(answer["pareto"]) == {"resources.dsp", "millijoules.typical", "dram_gbps"}
    table = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(table) == 5
    assert table[0].startswith("rows,depth,status,reason,cycles")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    again = json.loads(cli_run(*arguments).stdout)
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in answer.items() if k != "wall_s"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "either MODEL.onnx or --workload"), (["none.onnx"], "no such file"),
     (["x.onnx", "--workload", "deit-s"], "either"), (["x.onnx", "--board", "nothing"], "no board"),
     (["x.onnx", "--grid", "rows"], "no axis"),
     (["--workload", "nothing"], "no workload")],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_leaves_nothing(tmp_path: Path, arguments: list[str], says: str):
    done = cli_run(*arguments, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "out").exists()
