"""`moevit compare`: what changed between two containers, or between one and a saved report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from moevit.cli.output import Output, json_command, to_json
from moevit.errors import InputError

FIGURES = ("cycles", "latency_ms", "mac_utilisation", "weight_bytes", "dram_bytes", "millijoules")
SHOWN_LAYERS = 12

EXAMPLES = """
\b
Examples:
  moevit compare old.moevit new.moevit
  moevit compare build/report/report.json new.moevit --inputs images.npz --layers 30
"""


@json_command(name="compare", epilog=EXAMPLES)
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--inputs", multiple=True, type=click.Path(path_type=Path), metavar="FILE.npz|IMAGE|DIR",
    help="Images that say how many tokens each expert gets; without any they get equally many.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=1, show_default=True, help="Images that are used, of each task."
)
@click.option(
    "--layers", "most", type=click.IntRange(min=0), default=SHOWN_LAYERS, show_default=True,
    help="Layers that are printed: those that changed most. The JSON has all.",
)  # fmt: skip
def command(
    output: Output, before: Path, after: Path, inputs: tuple[Path, ...], limit: int, most: int
) -> dict[str, Any]:
    """Show what changed from A to B in cycles, bytes, energy and accuracy, in all and by layer.

    A and B are containers, which the timing model runs, or report.json files of `moevit report`. Tasks and layers are
    matched by their names; accuracy is compared where both are reports that have it.
    """
    sides = [_side(path, inputs, limit) for path in (before, after)]
    common = [name for name in sides[0]["tasks"] if name in sides[1]["tasks"]]
    if not common:
        there = " and ".join(", ".join(side["tasks"]) for side in sides)
        raise InputError(f"have no task in common: {there}", where=f"{before}, {after}")
    result = {
        "before": sides[0]["about"], "after": sides[1]["about"],
        "tasks": {name: compare(sides[0]["tasks"][name], sides[1]["tasks"][name]) for name in common},
        "only_before": [name for name in sides[0]["tasks"] if name not in common],
        "only_after": [name for name in sides[1]["tasks"] if name not in common],
    }  # fmt: skip
    _say(output, result, most)
    return result


def _side(path: Path, inputs: Sequence[Path], limit: int) -> dict[str, Any]:
    """What a file says: of each task its figures, layers and accuracy."""
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    report = _saved(path) if path.suffix == ".json" else _measured(path, inputs, limit)
    tasks = {name: _task(task) for name, task in report["tasks"].items()}
    about = {"file": path.name, "config": report["config"]["name"], "config_digest": report["config_digest"]}
    methods = {task["simulation"]["backend"] for task in report["tasks"].values()}
    return {"about": about | {"backend": "/".join(sorted(methods))}, "tasks": tasks}


def _saved(path: Path) -> dict[str, Any]:
    """A report that was written before. Raises InputError for anything else."""
    from moevit.cli.report.collect import SCHEMA

    mend = "give the report.json of `moevit report`, or a container"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError("is not JSON", where=str(path), mend=mend) from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA or "tasks" not in values:
        raise InputError("is no report of this version", where=str(path), mend=mend)
    return values


def _measured(path: Path, inputs: Sequence[Path], limit: int) -> dict[str, Any]:
    """A container's report by the timing model."""
    from moevit.cli.report.collect import Subject, collect
    from moevit.container import load
    from moevit.sim.inputs import read_inputs
    from moevit.sim.simulate import simulate

    program = load(path)
    results = {}
    for name in program.names:
        shapes = {x.name: x.shape for x in program.pipeline(name).inputs}
        values = read_inputs(shapes, inputs) if inputs else None
        results[name] = simulate(
            program, values, name, backend="cycle", limit=None if values is None else limit
        )
    subject = Subject(path, program, {}, {}, results)
    report: dict[str, Any] = to_json(collect(subject, accuracy_images=1, threads=1, announce=lambda text: None))
    return report


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    simulation = task["simulation"]
    moved = simulation["dram_bytes"]
    figures = {
        "cycles": task["cycles"], "latency_ms": simulation["latency_ms"],
        "mac_utilisation": simulation["mac_utilisation"], "weight_bytes": moved["weights"],
        "dram_bytes": sum(moved[what] for what in ("weights", "instructions", "activations")),
        "millijoules": 1000 * task["energy"]["total_joules"]["typical"],
    }  # fmt: skip
    accuracy = (task["accuracy"] or {"outputs": {}})["outputs"]
    return {
        "figures": figures,
        "layers": {
            layer["name"]: {key: layer.get(key) or 0 for key in ("cycles", "dram_bytes", "macs")}
            for layer in task["layers"]
        },
        "accuracy": {f"{name} {figure}": value for name, of in accuracy.items() for figure, value in of.items()},
    }


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Two tasks: each figure before, after, and the difference; layers of both, and those that only one has."""
    names = list(dict.fromkeys([*before["layers"], *after["layers"]]))
    layers = []
    for name in names:
        a, b = before["layers"].get(name), after["layers"].get(name)
        row: dict[str, Any] = {"name": name, "in": "both" if a and b else "before" if a else "after"}
        for key in ("cycles", "dram_bytes"):
            row[key] = _change(a[key] if a else None, b[key] if b else None)
        layers.append(row)
    return {
        "figures": {name: _change(before["figures"][name], after["figures"][name]) for name in FIGURES},
        "accuracy": {
            name: _change(value, after["accuracy"][name])
            for name, value in before["accuracy"].items()
            if name in after["accuracy"]
        },
        "layers": layers,
    }


def _change(before: float | None, after: float | None) -> dict[str, float | None]:
    """``difference`` is of what is there; ``ratio`` is after over before, None where that means nothing."""
    return {
        "before": before,
        "after": after,
        "difference": (after or 0) - (before or 0),
        "ratio": after / before if before and after is not None else None,
    }


def _say(output: Output, result: Mapping[str, Any], most: int) -> None:
    for label, side in (("A", result["before"]), ("B", result["after"])):
        output.say(f"{label}: {side['file']} on {side['config']}, {side['backend']}")
    for name, task in result["tasks"].items():
        output.say(f"Task {name}")
        for figure, change in (task["figures"] | task["accuracy"]).items():
            output.say(f"  {figure:32} {_line(change)}")
        changed = [layer for layer in task["layers"] if layer["cycles"]["difference"] or layer["in"] != "both"]
        changed.sort(key=lambda layer: -abs(layer["cycles"]["difference"]))
        if not changed:
            output.say("  no layer changed its cycles")
        for layer in changed[:most]:
            only = "" if layer["in"] == "both" else f"  ({'only in A' if layer['in'] == 'before' else 'only in B'})"
            output.say(f"    {layer['name']:40} {_line(layer['cycles'])}{only}")
        if len(changed) > most:
            output.say(f"    … and {len(changed) - most} layers more")
    for label, key in (("A", "only_before"), ("B", "only_after")):
        if result[key]:
            output.say(f"Only {label} has: {', '.join(result[key])}")


def _line(change: Mapping[str, float | None]) -> str:
    def text(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"

    percent = "" if change["ratio"] is None else f"  {100 * (change['ratio'] - 1):+.2f} %"
    return f"{text(change['before']):>14} → {text(change['after']):>14}{percent}"
