"""The report as one HTML file that asks nobody for anything: style, plots and numbers are inside."""

import base64
import html
import json
from collections.abc import Mapping
from typing import Any

from moevit.cli.report import tables
from moevit.cli.report.tables import Table, shown

Values = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #5f6670; --line: #d9dde1; --ours: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.3rem; }
p, ul { margin: 0.5rem 0; }
.soft { color: var(--soft); font-size: 0.9rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.7rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem 0.9rem; flex: 1 1 9rem; }
.cards b { display: block; font-size: 1.4rem; color: var(--ours); }
figure { margin: 0.8rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 34rem; height: auto; }
details { margin: 0.4rem 0 1rem; }
summary { cursor: pointer; color: var(--ours); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.82rem; width: 100%; }
caption { text-align: left; color: var(--soft); }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
a { color: var(--ours); }
@media print { details > * { display: block; } body { max-width: none; font-size: 11pt; } figure svg { min-width: 0; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page(values: Values, plots: Mapping[str, str]) -> str:
    """The whole page.

    Parameters
    ----------
    values : the report
    plots : SVG text by name, as :func:`moevit.cli.report.plots.draw_all` returns it
    """
    title = f"moevit report: {values['container']} on {values['config']['name']}"
    body = [_head(values), _beside(values, plots)]
    body += [_task(values, name, plots) for name in values["tasks"]]
    body += [_method(values)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(values: Values) -> str:
    config = values["config"]
    array = f"{config['rows']}×{config['columns']}×{config['depth']}"
    device = "" if config["device"] == "none" else f", sized for {config['device']}"
    cards = []
    for name, task in values["tasks"].items():
        total = task["energy"]["total_joules"]
        cards += [
            (f"{task['simulation']['latency_ms']:.3g} ms", f"{name}: a frame, {_how(task)}"),
            (f"{1000 * total['typical']:.3g} mJ",
             f"{name}: a frame, estimated ({1000 * total['low']:.3g} … {1000 * total['high']:.3g})"),
            (f"{100 * task['simulation']['mac_utilisation']:.1f} %", f"{name}: useful work of the multipliers"),
        ]  # fmt: skip
    listed = "".join(f"<li><b>{html.escape(a)}</b>{html.escape(b)}</li>" for a, b in cards)
    sources = ", ".join(f"{s['task']} from {s['file']}" for s in values["sources"])
    machine = values["machine"]
    return (
        f"<h1>{html.escape(values['container'])} on {html.escape(config['name'])}</h1>"
        f"<p>{array} array, {values['macs_per_cycle']:,} multiply-accumulates a cycle, {config['clock_mhz']:g} "
        f"MHz{device}; configuration {values['config_digest']}. Tasks: {html.escape(sources)}.</p>"
        f"<ul class=cards>{listed}</ul>"
        f"<p class=soft>Made {values['made']} on {html.escape(machine['processor'])} ({machine['cpus']} CPUs). "
        f"{_download('report.json', 'application/json', json.dumps(values), 'All numbers as JSON')}</p>"
    )


def _how(task: Values) -> str:
    return {"rtl": "exact cycles of the Verilog", "cycle": "cycles of the timing model"}[task["simulation"]["backend"]]


def _beside(values: Values, plots: Mapping[str, str]) -> str:
    return (
        "<h2>Beside other ways to run it</h2>"
        "<p>Networks differ: compare machines on the same one, or by the last plot. Published figures are those of "
        "their authors, who differ in what they count; their MACs are ours for the network that they name. Our latency "
        "is a simulation with a DRAM model, from start to interrupt, without copying an image to the board.</p>"
        f"<h3>Latency</h3>{_figure(plots['latency'], 'Milliseconds a frame of each machine')}"
        f"<h3>Energy</h3>{_figure(plots['energy'], 'Millijoules a frame of each machine')}"
        f"{_figure(plots['efficiency'], 'The same for equal work: millijoules for 10⁹ multiply-accumulates')}"
        + _table(tables.machine_table(values), "Latency and energy, with sources")
    )


def _task(values: Values, name: str, plots: Mapping[str, str]) -> str:
    task = values["tasks"][name]
    simulation = task["simulation"]
    dram = simulation["dram"]
    moved = simulation["dram_bytes"]
    parts = [
        f"<h2>Task {html.escape(name)}</h2>",
        f"<p>{shown(task['cycles'])} cycles a frame, {shown(simulation['macs'])} multiply-accumulates; DRAM model: "
        f"{dram['bytes_per_cycle']:g} bytes a cycle, first word after {dram['latency_cycles']} cycles. A frame moves "
        f"{shown(moved['weights'])} bytes of weights, {shown(moved['instructions'])} of instructions, "
        f"{shown(moved['activations'])} of images and results.</p>",
    ]
    if task["host"]:
        listed = ", ".join(f"{html.escape(s['name'])} {s['host_ms']:.3g} ms" for s in task["host"])
        parts.append(
            f"<p>Parts of the model run on the host and are in none of the figures above: {listed}, measured on this "
            "CPU.</p>"
        )
    titles = {
        "roofline": ("Roofline", "Filled: against DRAM bytes; open: against bytes of the operand memory. A layer whose "
                     "weights came while others computed can lie above the DRAM's line"),
        "layers": ("Cycles by layer", "Layers overlap: this is what each adds"),
        "stages": ("What each stage does", "Share of all cycles, by cause"),
        "timeline": ("Timeline", "When each unit works on which kind of layer, first image"),
        "breakdown": ("Energy by part", "Estimated, with the range of the constants"),
        "experts": ("Use of the experts", "Tokens of an image that go to each expert"),
        "memory": ("Memory over the program", "Where tensors lie, by instruction"),
    }
    about = {"layers": tables.layer_table, "stages": tables.stage_table, "breakdown": tables.energy_table,
             "experts": tables.expert_table, "memory": tables.memory_table}  # fmt: skip
    for plot, (title, caption) in titles.items():
        if f"{name}-{plot}" in plots:
            parts.append(f"<h3>{title}</h3>{_figure(plots[f'{name}-{plot}'], caption)}")
            if plot in about:
                parts.append(_table(about[plot](task), f"{title}: the numbers", f"{name}-"))
    if task["accuracy"]:
        parts.append(
            f"<h3>Accuracy</h3><p>int8 beside the float model on the same {task['accuracy']['images']} images.</p>"
            + _table(tables.accuracy_table(task), "Accuracy", f"{name}-", open_=True)
        )
    return "".join(parts)


def _method(values: Values) -> str:
    taken, device = values["resources"]["estimate"], values["resources"]["device"]
    rows = tuple((key, value, device.get(key) if device else None) for key, value in taken.items())
    listed = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in values["methods"].items())
    return (
        f"<h2>How these figures came about</h2><ul>{listed}</ul>"
        f"<h3>Energy model</h3><p>Energy is the sum of counted events times the constants below, and of power times "
        "time. It stands for no measurement: Vivado's power report or a board's sensor replaces it.</p>"
        + _table(tables.constant_table(values), "Constants", open_=True)
        + "<p>The same model on published designs, from their stated logic, clock, rate and precision:</p>"
        + _table(tables.validation_table(values), "Model against published power", open_=True)
        + f"<h3>Resources</h3><p>{html.escape(values['resources']['method'])}.</p>"
        + _table(Table("resources", ("resource", "takes", "device has"), rows), "Resources", open_=True)
    )


def _figure(svg: str, caption: str) -> str:
    label = html.escape(caption, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{svg}<figcaption class=soft>{label}</figcaption></figure>"


def _table(table: Table, caption: str, prefix: str = "", *, open_: bool = False) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in table.rows)
    link = _download(f"{prefix}{table.name}.csv", "text/csv", table.csv(), "CSV")
    return (
        f"<details{' open' if open_ else ''}><summary>{html.escape(caption)}</summary><p class=soft>{link}</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cell(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"<td{' class=n' if number else ''}>{html.escape(shown(value))}</td>"


def _download(name: str, kind: str, text: str, label: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{html.escape(name, quote=True)}" href="data:{kind};base64,{data}">{label}</a>'
