"""A sweep of two hundred machines for M³ViT tiny, as a person runs it: interrupted, taken up again, on a cluster."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

pytestmark = pytest.mark.slow

GRID = ("rows=4,8,16", "columns=16,32,64", "depth=4,8", "weight_ports=2,4", "clock_mhz=200,250,300",
        "dram_gbps=8.5,17")  # fmt: skip
POINTS = 3 * 3 * 2 * 2 * 3 * 2
SECONDS = 300  #: of one core, for the whole sweep with its interruption; so two cores take less, whoever else works
WAIT = 1800
INTERRUPTED = 130


def command(folder: Path, *more: str) -> list[str]:
    grid = [word for axis in GRID for word in ("--grid", axis)]
    return [sys.executable, "-m", "moevit.cli", "sweep", "--workload", "m3vit-tiny-depth", *grid, "--board", "zcu104",
            "-o", str(folder), "--json", *more]  # fmt: skip


def lines(record: Path) -> int:
    return record.read_text().count("\n") if record.exists() else 0


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended, their own ones included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def result(answer: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(answer)
    return {key: value for key, value in values.items() if key not in ("wall_s", "files")}


def test_two_hundred_machines(tmp_path: Path) -> None:
    record = tmp_path / "out" / "points.jsonl"
    begun, before = time.monotonic(), cpu_seconds()
    start = command(tmp_path / "out", "--jobs", "2")
    first = subprocess.Popen(start, start_new_session=True, stdout=subprocess.DEVNULL)
    while lines(record) < POINTS // 4:
        assert first.poll() is None, "it ended before it was interrupted"
        assert time.monotonic() - begun < WAIT
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGINT)  # what a terminal does to all of them at Ctrl-C
    assert first.wait(120) == INTERRUPTED
    done = lines(record)
    assert POINTS // 4 <= done < POINTS

    second = subprocess.run(start, stdout=subprocess.PIPE, text=True, check=True)
    took = cpu_seconds() - before
    assert took < SECONDS, f"{took:.0f} s of the CPU, {time.monotonic() - begun:.0f} s in all"
    assert lines(record) == POINTS  # none was computed twice
    whole = result(second.stdout)
    assert len(whole["points"]) == POINTS >= 200
    assert {row["status"] for row in whole["points"]} == {"ok"}
    assert whole["best"]["fits"]

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        start = command(tmp_path / "dask", "--dask", cluster.scheduler_address)
        there = subprocess.run(start, stdout=subprocess.PIPE, text=True, check=True)
    assert result(there.stdout) == whole
