"""The report as one HTML file that asks nobody for anything: style, plots and numbers are inside.

Every figure of it is a value of the report's JSON, rounded by :func:`moevit.cli.report.tables.shown`, or a thousand
times one (millijoules), or a hundred times one (percent).
"""

import base64
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from moevit.cli.report import tables
from moevit.cli.report.machines import METHOD_NAMES
from moevit.cli.report.tables import Table, shown

Values = Mapping[str, Any]


def page(values: Values, plots: Mapping[str, str]) -> str:
    """The whole page.

    Parameters
    ----------
    values : the report
    plots : SVG text by name, as :func:`moevit.cli.report.plots.draw_all` returns it
    """
    title = f"moevit report: {values['container']} on {values['config']['name']}"
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    body = [_head(values), _beside(values, plots)]
    body += [_task(values, name, plots) for name in values["tasks"]]
    body += [_method(values)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>\n{style}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(values: Values) -> str:
    config = values["config"]
    array = f"{config['rows']}×{config['columns']}×{config['depth']}"
    device = "" if config["device"] == "none" else f", sized for {config['device']}"
    lists = []
    for name, task in values["tasks"].items():
        simulation = task["simulation"]
        cards = [
            (f"{shown(simulation['latency_ms'])} ms",
             f"{name}: latency of a frame, {METHOD_NAMES[simulation['backend']]}"),
            (f"{_millijoules(task, 'typical')} mJ", f"{name}: energy of a frame, {_whose(task)}"),
            (f"{shown(100 * simulation['mac_utilisation'])} %",
             f"{name}: useful work of the multipliers in these cycles"),
        ]  # fmt: skip
        listed = "".join(f"<li><b>{html.escape(a)}</b>{html.escape(b)}</li>" for a, b in cards)
        lists.append(f"<ul class=cards>{listed}</ul>")
    sources = ", ".join(f"{s['task']} from {s['file']}" for s in values["sources"]) or ", ".join(values["tasks"])
    machine = values["machine"]
    return (
        f"<h1>{html.escape(values['container'])} on {html.escape(config['name'])}</h1>"
        f"<p>Configuration {html.escape(config['name'])}: {array} array, {shown(values['macs_per_cycle'])} "
        f"multiply-accumulates a cycle, {shown(config['clock_mhz'])} MHz{html.escape(device)}; digest "
        f"{values['config_digest']}. Tasks: {html.escape(sources)}.</p>"
        f"{''.join(lists)}"
        f"<p class=soft>Made {values['made']} on {html.escape(machine['processor'])} ({machine['cpus']} CPUs). "
        f"{_download('report.json', 'application/json', json.dumps(values), 'All numbers as JSON')}</p>"
    )


def _images(of: Values) -> str:
    return "one image" if of["images"] == 1 else f"{shown(of['images'])} images"


def _millijoules(task: Values, which: str) -> str:
    return shown(1000 * task["energy"]["total_joules"][which])


def _whose(task: Values) -> str:
    """Where the energy that is shown comes from."""
    text = METHOD_NAMES[task["energy"]["method"]]
    if task["power"] is not None:
        text = f"{text} ({task['power']['source']})"
    low, high = _millijoules(task, "low"), _millijoules(task, "high")
    return text if low == high else f"{text}, {low} … {high}"


def _beside(values: Values, plots: Mapping[str, str]) -> str:
    missing = "".join(
        f"<p>{html.escape(name)}: no int8 on the CPU: {html.escape(task['cpu_missing'])}.</p>"
        for name, task in values["tasks"].items()
        if task["cpu_missing"]
    )
    return (
        "<h2>Beside other ways to run it</h2>"
        "<p>Networks differ: compare machines on the same one, or by the last plot. Published figures are those of "
        "their authors, who differ in what they count; their MACs are ours for the network that they name. Our "
        "latency is a simulation with a DRAM model, from start to interrupt, without copying an image to the board. "
        "onnxruntime runs the ONNX file as it is; in a mixture of experts that is every expert for every token, and "
        "its MACs here are those of the routed model.</p>"
        f"<h3>Latency</h3>{_figure(plots['latency'], 'Milliseconds a frame of each machine')}"
        "<h3>Energy</h3>"
        + _figure(plots["energy"], "Millijoules a frame of each machine, the processor system included")
        + _figure(plots["efficiency"], "The same for equal work: millijoules for 10⁹ multiply-accumulates")
        + missing
        + _table(tables.latency_table(values), "Latency: the numbers, with sources")
        + _table(tables.joules_table(values), "Energy: the numbers, with sources")
    )


def _task(values: Values, name: str, plots: Mapping[str, str]) -> str:
    task = values["tasks"][name]
    simulation = task["simulation"]
    dram = simulation["dram"]
    moved = simulation["dram_bytes"]
    parts = [
        f"<h2>Task {html.escape(name)}</h2>",
        f"<p>{shown(task['cycles'])} cycles a frame on {html.escape(values['config']['name'])} at "
        f"{shown(values['config']['clock_mhz'])} MHz, {METHOD_NAMES[simulation['backend']]}, mean of "
        f"{_images(simulation)}; {shown(simulation['macs'])} multiply-accumulates. DRAM model: "
        f"{shown(dram['bytes_per_cycle'])} bytes a cycle, first word after {shown(dram['latency_cycles'])} cycles. "
        f"A frame moves {shown(moved['weights'])} bytes of weights, {shown(moved['instructions'])} of instructions, "
        f"{shown(moved['activations'])} of images and results.</p>",
    ]
    if task["host"]:
        listed = ", ".join(f"{html.escape(s['name'])} {shown(s['host_ms'])} ms" for s in task["host"])
        parts.append(
            f"<p>Parts of the model run on the host and are in none of the figures above: {listed}, measured on this "
            "CPU.</p>"
        )
    for plot, (title, caption, table) in _TASK_PLOTS.items():
        if f"{name}-{plot}" in plots:
            parts.append(f"<h3>{title}</h3>{_figure(plots[f'{name}-{plot}'], caption)}")
            if plot == "breakdown":
                parts.append(_energy(task))
            if table is not None:
                parts.append(_table(table(task), f"{title}: the numbers", f"{name}-"))
    if task["accuracy"]:
        parts.append(
            f"<h3>Accuracy</h3><p>int8 beside the float model on the same {_images(task['accuracy'])}.</p>"
            + _table(tables.accuracy_table(task), "Accuracy: the numbers", f"{name}-", open_=True)
        )
    return "".join(parts)


#: by plot: title, caption, and the table below it
_TASK_PLOTS: Mapping[str, tuple[str, str, Any]] = {
    "roofline": ("Roofline", "Filled: against DRAM bytes; open: against bytes of the operand memory. Speed is by "
                 "the cycles that a layer adds, so one that overlaps with others can lie above a line", None),
    "layers": ("Cycles by layer", "Layers overlap: this is what each adds. The table has the roofline's points too",
               tables.layer_table),
    "stages": ("What each stage does", "Share of all cycles, by cause", tables.stage_table),
    "timeline": ("Timeline", "When each unit works on which kind of layer, first image", tables.timeline_table),
    "breakdown": ("Energy by part", "Lines are the range of the constants", tables.energy_table),
    "experts": ("Use of the experts", "Tokens of a frame that go to each expert", tables.expert_table),
    "memory": ("Memory over the program", "Where tensors lie, by instruction", tables.memory_table),
}  # fmt: skip


def _energy(task: Values) -> str:
    """Which figure is shown, and what the model says where it is replaced."""
    power = task["power"]
    if power is None:
        return "<p>Estimated by the model below; no power report and no sensor's reading was given.</p>"
    modelled = task["energy_estimate"]["total_joules"]
    low, typical, high = (shown(1000 * modelled[key]) for key in ("low", "typical", "high"))
    confidence = f", confidence {html.escape(power['confidence'])}" if power["confidence"] else ""
    return (
        f"<p>{html.escape(METHOD_NAMES[power['method']])}: {shown(power['watts'])} W, from "
        f"{html.escape(power['source'])}{confidence}. Our model, which it replaces, says {typical} mJ a frame "
        f"({low} … {high}).</p>"
    )


def _method(values: Values) -> str:
    listed = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in values["methods"].items())
    return (
        f"<h2>How these figures came about</h2><ul>{listed}</ul>"
        f"<h3>Energy model</h3><p>Energy is the sum of counted events times the constants below, and of power times "
        "time. It stands for no measurement: Vivado's power report or a board's sensor replaces it.</p>"
        + _table(tables.constant_table(values), "Constants", open_=True)
        + "<p>The same model on published designs, from their stated logic, clock, rate and precision:</p>"
        + _table(tables.validation_table(values), "Model against published power", open_=True)
        + f"<h3>Resources</h3><p>{html.escape(values['resources']['method'])}.</p>"
        + _table(tables.resource_table(values), "Resources", open_=True)
    )


def _figure(svg: str, caption: str) -> str:
    label = html.escape(caption, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{svg}<figcaption class=soft>{label}</figcaption></figure>"


_LONG_TABLE = 100  #: rows, above which a table is not printed
_LONG_CELL = 60  #: characters, above which a cell gets room on a phone


def _table(table: Table, caption: str, prefix: str = "", *, open_: bool = False) -> str:
    numeric = table.numeric
    head = "".join(
        f"<th{' class=n' if number else ''}>{html.escape(column)}</th>"
        for number, column in zip(numeric, table.columns, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(value, n) for n, value in zip(numeric, row, strict=True))}</tr>" for row in table.rows
    )
    link = _download(f"{prefix}{table.name}.csv", "text/csv", table.csv(), "CSV")
    long = " class=long" if len(table.rows) > _LONG_TABLE else ""
    return (
        f"<details{long}{' open' if open_ else ''}><summary>{html.escape(caption)}</summary><p class=soft>{link}</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cell(value: Any, number: bool) -> str:
    text = shown(value)
    kind = " class=n" if number else " class=long" if len(text) > _LONG_CELL else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _download(name: str, kind: str, text: str, label: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{html.escape(name, quote=True)}" href="data:{kind};base64,{data}">{label}</a>'
