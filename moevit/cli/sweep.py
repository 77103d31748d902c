"""`moevit sweep`: one model on many machines."""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command
from moevit.errors import InputError

if TYPE_CHECKING:
    from moevit.sweep.measure import Row, Subject

RECORD, TABLE, RESULT, PLOT = "points.jsonl", "sweep.csv", "sweep.json", "sweep.png"

EXAMPLES = """
\b
Examples:
  moevit sweep vit.onnx -o build/sweep
  moevit sweep vit.onnx --config zcu104 --grid rows=4,8,16 --grid columns=16,32,64 --grid clock_mhz=200,300 \\
      --board zcu104 -o build/sweep
  moevit sweep --workload m3vit-tiny-depth --grid operand_words=8192,12288 --grid dram_gbps=6.4,12.8 -o build/sweep
  moevit sweep vit.onnx --dask tcp://scheduler:8786 -o build/sweep
"""


@json_command(name="sweep", epilog=EXAMPLES)
@click.argument("model", required=False, type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--workload", metavar="NAME", help="One of `moevit bench`, instead of a file.")
@click.option(
    "--config", "config_name", default="zcu104", show_default=True, metavar="NAME|FILE.json",
    help="The machine that the axes change.",
)
@click.option(
    "--grid", "axes", multiple=True, metavar="NAME=VALUE,...",
    help="An axis: a field of the configuration (see `moevit configs --json`), dram_gbps, or precision, of which there "
    "is int8. All combinations are looked at. Without any: rows, columns and depth.",
)
@click.option("--board", metavar="NAME", help="Name the best machine that fits this board's device.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes; one per CPU without it.")
@click.option("--dask", "cluster", metavar="ADDRESS", help="A dask scheduler to use instead of processes here.")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where tables and plot go. Points that an earlier run left there are not computed again.",
)  # fmt: skip
def command(
    output: Output,
    model: Path | None,
    workload: str | None,
    config_name: str,
    axes: tuple[str, ...],
    board: str | None,
    jobs: int | None,
    cluster: str | None,
    folder: Path,
) -> dict[str, Any]:
    """Look at many machines for one model: latency against DSPs, energy and bandwidth.

    Cycles are those of the timing model, within a few percent of the Verilog; resources are scaled from one synthesis,
    energy is estimated; experts have equally many tokens each. All machines compute with 8 bits.
    Interrupt it when you like: the same command goes on where it was.
    """
    started = time.perf_counter()
    from moevit.boards.devices import get_board
    from moevit.config import get_config
    from moevit.sweep.grid import DEFAULT, parse_axes, points
    from moevit.sweep.measure import pareto
    from moevit.sweep.plot import AXES, draw
    from moevit.sweep.run import run

    chosen = parse_axes(axes or DEFAULT)
    base = get_config(config_name)
    if board is not None:
        get_board(board)
    output.note("reading the model …")
    subject, title = _subject(model, workload)
    machines = list(points(base, chosen))
    folder.mkdir(parents=True, exist_ok=True)
    with output.progress(f"{len(machines)} machines", len(machines)) as advance:
        rows = run(
            subject, machines, folder / RECORD, jobs=jobs or os.cpu_count() or 1, cluster=cluster, progress=advance
        )
    fitting = [row for row in rows if row["status"] == "ok" and (board is None or board in row["fits"])]
    fronts = {cost: [row["key"] for row in pareto(fitting, cost)] for cost in AXES}
    best = min(fitting, key=lambda row: (row["latency_ms"], row["resources"]["dsp"]), default=None)
    draw(folder / PLOT, rows, title, board)
    result = {
        "model": title, "task": subject.task, "config": base.name, "axes": {k: list(v) for k, v in chosen.items()},
        "board": board, "points": rows, "pareto": fronts, "best": best,
    }  # fmt: skip
    _write(folder / RESULT, json.dumps(result, indent=1) + "\n")
    _write(folder / TABLE, table(rows, list(chosen)))
    _say(output, rows, fronts, best, board)
    seconds = round(time.perf_counter() - started, 3)
    output.say(f"Plot: {folder / PLOT}    Table: {folder / TABLE}    ({seconds:.0f} s)")
    return result | {"files": {"plot": folder / PLOT, "table": folder / TABLE}, "wall_s": seconds}


def _subject(model: Path | None, workload: str | None) -> tuple["Subject", str]:
    """What runs, and its name. Values matter to nothing here, so images are random ones."""
    from moevit.compiler.driver import prepare, random_calibration
    from moevit.sweep.measure import Subject

    if (model is None) == (workload is None):
        raise InputError("give either MODEL.onnx or --workload", where="moevit sweep")
    if model is not None:
        from moevit.compiler.frontend.load import load

        if not model.is_file():
            raise InputError("no such file", where=str(model))
        graph = load(model)
        data = random_calibration(images=1)("main", {i.name: i.model_shape for i in graph.inputs})
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        return Subject(prepare({"main": graph}, {"main": data}), "main", digest), model.stem
    from moevit.bench.workloads import choose

    (only,) = choose(workload)[:1]
    made = only.model()
    graphs = {only.task: made.graphs[only.task]}
    prepared = prepare(graphs, {only.task: {name: x[:1] for name, x in made.calibration.items()}})
    return Subject(prepared, only.task, f"workload {only.name}"), only.name


def table(rows: Sequence["Row"], axes: Sequence[str]) -> str:
    """A line for each point, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    results = ("status", "reason", "cycles", "latency_ms", "mac_utilisation", "macs_per_cycle", "dram_bytes",
               "dram_gbps")  # fmt: skip
    resources = ("lut", "ff", "dsp", "bram36", "uram")
    writer.writerow([*axes, *results, "millijoules", "millijoules_low", "millijoules_high", *resources, "fits"])
    for row in rows:
        joules = row.get("millijoules", {})
        writer.writerow(
            [*(row["changes"][axis] for axis in axes), *(row.get(name, "") for name in results),
             *(joules.get(name, "") for name in ("typical", "low", "high")),
             *(row.get("resources", {}).get(name, "") for name in resources), " ".join(row.get("fits", []))]
        )  # fmt: skip
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _say(
    output: Output, rows: Sequence["Row"], fronts: Mapping[str, Sequence[str]], best: "Row | None", board: str | None
) -> None:
    for status in ("ok", "too small", "no machine"):
        count = sum(row["status"] == status for row in rows)
        if count:
            output.say(f"{count:5} {status}")
    output.say("Machines that none with as few DSPs beats:")
    by_key = {row["key"]: row for row in rows}
    for key in fronts["resources.dsp"]:
        output.say(f"  {_line(by_key[key])}")
    if best is not None:
        output.say(f"Fastest{f' that fits {board}' if board else ''}: {_line(best)}")
    elif board:
        output.say(f"None fits {board}.")


def _line(row: "Row") -> str:
    changes = " ".join(f"{name}={value}" for name, value in row["changes"].items())
    return (
        f"{changes}: {row['latency_ms']:.3f} ms, {row['cycles']:,} cycles, {100 * row['mac_utilisation']:.1f} % use, "
        f"{row['resources']['dsp']:,} DSP, {row['millijoules']['typical']:.2f} mJ, {row['dram_gbps']:.2f} GB/s"
    )
