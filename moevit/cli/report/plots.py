"""The report's plots, each from the report's values alone, as SVG that goes into the page and as files."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

INK, SOFT, FAINT = "#222222", "#5f6670", "#d9dde1"
# Okabe and Ito's colours, which are told apart with any colour vision.
BLUE, ORANGE, GREEN, RED, SKY, PINK, YELLOW = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442",
)  # fmt: skip
METHOD_COLOURS = {"rtl": BLUE, "cycle": SKY, "measured": GREEN, "published": "#9aa3ab"}
KIND_COLOURS = {
    "linear": BLUE, "attention": ORANGE, "experts": GREEN, "route": PINK, "patches": RED, "constant": YELLOW,
    "output": FAINT,
}  # fmt: skip
KIND_MARKS = {"linear": "o", "attention": "s", "experts": "^", "route": "D", "patches": "v", "constant": "P"}
CAUSE_COLOURS = {
    "busy": BLUE, "dependency": ORANGE, "dram": RED, "ring": PINK, "queue": GREEN, "tile": YELLOW, "memory": SKY,
}  # fmt: skip
SPARE_COLOURS = (
    "#882255", "#8c6d31", "#999933", "#7a5195", "#44aa99", "#666666", "#aa4499", "#88ccee", "#ddcc77", "#332288",
    "#a0764f", "#b0b7bd",
)  # fmt: skip
METHOD_NAMES = {"rtl": "simulated (Verilog)", "cycle": "simulated (timing model)"}
WIDTH = 7.6  #: inches of all plots
Values = Mapping[str, Any]


def draw_all(values: Values, folder: Path) -> dict[str, str]:
    """Write each plot as PNG and SVG into ``folder``, and return the SVG text by name.

    Names are ``latency``, ``energy``, ``efficiency``, and for each task ``<task>-roofline`` and so on.
    """
    import matplotlib as mpl

    drawn: dict[str, str] = {}
    settings = {
        "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.color": INK,
        "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "moevit", "axes.titlesize": 10,
    }  # fmt: skip
    with mpl.rc_context(settings):
        drawn["latency"] = _save(folder, "latency", _latency(values))
        drawn["energy"] = _save(folder, "energy", _energy(values))
        drawn["efficiency"] = _save(folder, "efficiency", _efficiency(values))
        for name, task in values["tasks"].items():
            plots: dict[str, Callable[[Values], Any] | None] = {
                "roofline": _roofline, "layers": _layers, "stages": _stages, "breakdown": _breakdown,
                "memory": _memory, "experts": _experts if task["experts"] else None,
                "timeline": _timeline if task.get("timeline") else None,
            }  # fmt: skip
            for plot, function in plots.items():
                if function is not None:
                    drawn[f"{name}-{plot}"] = _save(folder, f"{name}-{plot}", function(task))
    return drawn


def _save(folder: Path, name: str, figure: Any) -> str:
    """Write a figure as PNG and SVG."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    figure.savefig(folder / f"{stem}.png", dpi=130)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "moevit"})
    svg = text.getvalue()
    (folder / f"{stem}.svg").write_text(svg)
    # All plots stand in one page, where an id may occur once.
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{stem}-", svg[svg.index("<svg") :])


def _figure(height: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, **options)


def machines(values: Values) -> list[dict[str, Any]]:
    """Ours, this machine's CPU and the published ones, as rows of one table: name, MACs, method, ms and mJ.

    ``mj`` is (low, typical, high); a published or measured energy has all three equal.
    """
    rows: list[dict[str, Any]] = []
    config = values["config"]
    for name, task in values["tasks"].items():
        total = task["energy"]["total_joules"]
        rows.append(
            {
                "name": f"moevit {config['name']}, {name}", "macs": task["simulation"]["macs"],
                "board": config["device"] if config["device"] != "none" else config["name"],
                "precision": "int8", "clock_mhz": config["clock_mhz"], "method": task["simulation"]["backend"],
                "ms": task["simulation"]["latency_ms"], "energy_method": "estimated",
                "mj": [1000 * total[k] for k in ("low", "typical", "high")], "source": "this report",
            }
        )  # fmt: skip
        for run in task["cpu"]:
            joules = run["joules"]
            rows.append(
                {
                    "name": f"onnxruntime {run['precision']}, {name}", "macs": task["simulation"]["macs"],
                    "board": run["processor"], "precision": run["precision"], "clock_mhz": None, "method": "measured",
                    "ms": run["latency_ms"], "energy_method": "measured" if joules else None,
                    "mj": [1000 * joules] * 3 if joules else None,
                    "source": f"this report: {run['threads']} threads, onnxruntime {run['version']}",
                }
            )  # fmt: skip
    for design in values["published"]:
        mj = design["millijoules"]
        rows.append(
            {
                "name": f"{design['name']}, {design['model']}", "macs": design["macs"], "board": design["board"],
                "precision": design["precision"], "clock_mhz": design["clock_mhz"], "method": "published",
                "ms": design["latency_ms"], "energy_method": "published" if mj else None,
                "mj": [mj] * 3 if mj else None, "source": design["source"],
            }
        )  # fmt: skip
    return rows


def _latency(values: Values) -> Any:
    rows = machines(values)[::-1]
    figure, axes = _figure(0.9 + 0.27 * len(rows))
    for y, row in enumerate(rows):
        axes.barh(y, row["ms"], color=METHOD_COLOURS[row["method"]], height=0.68)
        axes.text(row["ms"] * 1.06, y, f"{row['ms']:.3g}", va="center", fontsize=8)
    _machine_axis(axes, rows, "milliseconds a frame (logarithmic)")
    _legend_below(axes, {m: c for m, c in METHOD_COLOURS.items() if any(r["method"] == m for r in rows)})
    return figure


def _energy(values: Values) -> Any:
    return _joules(values, lambda row: 1.0, "millijoules a frame (logarithmic; processor system included)")


def _efficiency(values: Values) -> Any:
    return _joules(values, lambda row: 1e9 / row["macs"], "millijoules for 10⁹ multiply-accumulates (logarithmic)")


def _joules(values: Values, scale: Callable[[Values], float], label: str) -> Any:
    """A bar for each machine whose energy is known, with its range; ``scale`` is what a row's is multiplied by."""
    rows = [row for row in machines(values) if row["mj"]][::-1]
    figure, axes = _figure(0.9 + 0.27 * len(rows))
    colours = {"estimated": BLUE, "measured": GREEN, "published": METHOD_COLOURS["published"]}
    for y, row in enumerate(rows):
        low, typical, high = (mj * scale(row) for mj in row["mj"])
        axes.barh(y, typical, color=colours[row["energy_method"]], height=0.68)
        if high > low:
            axes.errorbar(typical, y, xerr=[[typical - low], [high - typical]], color=INK, capsize=3, linewidth=1)
        axes.text(high * 1.08, y, f"{typical:.3g}", va="center", fontsize=8)
    _machine_axis(axes, rows, label)
    _legend_below(axes, {m: c for m, c in colours.items() if any(r["energy_method"] == m for r in rows)})
    return figure


def _machine_axis(axes: Any, rows: Sequence[Values], label: str) -> None:
    labels = [f"{row['name']}, {row['macs'] / 1e9:.2g} GMAC ({_short(row['board'])})" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.set_xlabel(label)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 1.8)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _short(board: str) -> str:
    return board if len(board) <= 16 else "CPU"


def _legend(axes: Any, colours: Mapping[str, str], **options: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=METHOD_NAMES.get(name, name)) for name, colour in colours.items()]
    axes.legend(handles=handles, fontsize=8, frameon=False, **({"loc": "lower right"} | options))


def _legend_below(axes: Any, colours: Mapping[str, str]) -> None:
    _legend(axes, colours, loc="upper center", bbox_to_anchor=(0.35, -0.55 / axes.figure.get_figheight()), ncols=6)


def _roofline(task: Values) -> Any:
    figure, axes = _figure(4.1)
    roof = task["roof"]
    points = [p for p in task["layers"] if p.get("gmacs")]
    xs = [p["dram_intensity"] for p in points if p["dram_intensity"]] + [
        p["operand_intensity"] for p in points if p["operand_intensity"]
    ]
    low, high = min([*xs, 1.0]) / 2, max([*xs, 64.0]) * 2
    for rate, colour, name in (
        (roof["dram"], RED, f"DRAM {roof['dram']:.3g} GB/s"),
        (roof["on_chip"], SKY, f"operand memory {roof['on_chip']:.4g} GB/s"),
    ):
        ridge = roof["compute"] / rate
        axes.plot([low, ridge, high], [low * rate, roof["compute"], roof["compute"]], color=colour, linewidth=1.4,
                  label=name)  # fmt: skip
    for kind in dict.fromkeys(p["kind"] for p in points):
        mine = [p for p in points if p["kind"] == kind]
        dram = [(p["dram_intensity"], p["gmacs"]) for p in mine if p["dram_intensity"]]
        chip = [(p["operand_intensity"], p["gmacs"]) for p in mine if p["operand_intensity"]]
        mark, colour = KIND_MARKS.get(kind, "o"), KIND_COLOURS.get(kind, INK)
        if dram:
            axes.scatter(*zip(*dram, strict=True), marker=mark, s=26, color=colour, label=f"{kind}, by DRAM byte")
        if chip:
            axes.scatter(*zip(*chip, strict=True), marker=mark, s=26, facecolors="none", edgecolors=colour,
                         label=f"{kind}, by operand byte")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("multiply-accumulates for a byte moved")
    axes.set_ylabel("GMAC/s")
    axes.axhline(roof["compute"], color=SOFT, linewidth=0.8, linestyle=":")
    axes.grid(color=FAINT, linewidth=0.5)
    axes.legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
    return figure


def _layers(task: Values) -> Any:
    rows = [row for row in task["layers"] if row["cycles"] > 0][::-1]
    figure, axes = _figure(0.8 + 0.15 * len(rows))
    for y, row in enumerate(rows):
        axes.barh(y, row["cycles"], color=KIND_COLOURS.get(row["kind"], INK), height=0.8)
    axes.set_yticks(range(len(rows)), [_trim(row["name"]) for row in rows], fontsize=5.5)
    axes.set_xlabel("cycles that each adds")
    axes.margins(y=0.01)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, {k: c for k, c in KIND_COLOURS.items() if any(r["kind"] == k for r in rows)})
    return figure


def _trim(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"…{name[-most + 1:]}"


def _stages(task: Values) -> Any:
    stages = task["simulation"]["stages"]
    names = list(stages)[::-1]
    figure, axes = _figure(1.0 + 0.42 * len(names))
    causes = list(dict.fromkeys(cause for stage in stages.values() for cause in stage))
    spare = iter(SPARE_COLOURS)
    colours = {cause: CAUSE_COLOURS.get(cause) or next(spare, SOFT) for cause in causes}
    colours |= {"idle": FAINT, "other": FAINT}
    for y, name in enumerate(names):
        left = 0.0
        for cause in sorted(stages[name], key=lambda c: (c != "busy", c in ("idle", "other"))):
            share = 100 * stages[name][cause] / task["cycles"]
            axes.barh(y, share, left=left, color=colours[cause], height=0.7)
            if share > 7:
                axes.text(left + share / 2, y, f"{cause} {share:.0f}", ha="center", va="center", fontsize=7, color=INK,
                          bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8})  # fmt: skip
            left += share
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of all cycles")
    shown = {c: colours[c] for c in causes if any(s.get(c, 0) > 0.01 * task["cycles"] for s in stages.values())}
    _legend(axes, shown, loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=6)
    return figure


def _breakdown(task: Values) -> Any:
    parts = task["energy"]["parts"][::-1]
    figure, axes = _figure(0.8 + 0.3 * len(parts))
    for y, part in enumerate(parts):
        low, typical, high = (1000 * part["joules"][k] for k in ("low", "typical", "high"))
        axes.barh(y, typical, color=SOFT if part["name"] == "processor system" else BLUE, height=0.65)
        axes.errorbar(typical, y, xerr=[[typical - low], [high - typical]], color=INK, capsize=3, linewidth=1)
    axes.set_yticks(range(len(parts)), [part["name"] for part in parts])
    axes.set_xlabel("millijoules an inference, estimated; lines: range of the constants")
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _memory(task: Values) -> Any:
    memory = task["memory"]
    figure, (upper, lower) = _figure(4.6, rows=2, sharex=True)
    end = memory["instructions"]
    used, there = memory["activation_words"]
    for axes, kinds, title in (
        (upper, ("activation",), f"activation memory: {used:,} of {there:,} words at most"),
        (lower, ("key", "value"), f"K and V in the operand memory, behind a ring of {memory['ring_words']:,} words"),
    ):
        tones = {"int16": BLUE, "uint8": ORANGE, "int8": GREEN}
        for tensor in memory["tensors"]:
            if tensor["memory"] in kinds:
                axes.add_patch(_box(tensor, tones.get(tensor["dtype"], SOFT)))
        axes.set_xlim(0, end)
        axes.set_title(title, loc="left", fontsize=9)
    upper.set_ylim(0, 1.25 * memory["activation_words"][0])
    ring = memory["ring_words"]
    lower.set_ylim(ring, ring + max(memory["key_value_words"][1], 1))
    lower.set_xlabel("instructions of the program")
    _legend(upper, {"int16": BLUE, "uint8": ORANGE, "int8": GREEN}, loc="upper right", ncols=3)
    return figure


def _box(tensor: Values, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    width = max(tensor["read"] - tensor["written"], 1)
    height = tensor["last_word"] - tensor["first_word"] + 1
    return Rectangle(
        (tensor["written"], tensor["first_word"]), width, height, facecolor=colour, alpha=0.55, edgecolor="white",
        linewidth=0.4,
    )  # fmt: skip


def _experts(task: Values) -> Any:
    gates = task["experts"]
    most = max(max(gate["tokens"]) for gate in gates)
    figure, axes = _figure(0.9 + 0.36 * len(gates))
    picture = axes.imshow([gate["tokens"] for gate in gates], aspect="auto", cmap="cividis", vmin=0)
    for y, gate in enumerate(gates):
        for x, tokens in enumerate(gate["tokens"]):
            axes.text(x, y, f"{tokens:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if tokens < 0.6 * most else INK)  # fmt: skip
    axes.set_yticks(range(len(gates)), [_trim(gate["gate"], 28) for gate in gates], fontsize=7)
    axes.set_xticks(range(len(gates[0]["tokens"])))
    axes.set_xlabel("expert")
    figure.colorbar(picture, ax=axes, label="tokens of an image", shrink=0.9)
    return figure


def _timeline(task: Values) -> Any:
    spans = task["timeline"]
    units = list(dict.fromkeys(span["unit"] for span in spans))[::-1]
    figure, axes = _figure(0.9 + 0.38 * len(units))
    for y, unit in enumerate(units):
        for kind in dict.fromkeys(span["kind"] for span in spans):
            mine = [s for s in spans if s["unit"] == unit and s["kind"] == kind]
            bars = [(s["start"], max(s["end"] - s["start"], 1)) for s in mine]
            axes.broken_barh(bars, (y - 0.36, 0.72), facecolors=KIND_COLOURS.get(kind, SOFT), linewidth=0)
    axes.set_yticks(range(len(units)), units)
    axes.set_xlim(0, task["cycles"])
    axes.set_xlabel("cycle")
    kinds = dict.fromkeys(span["kind"] for span in spans)
    colours = {kind: KIND_COLOURS.get(kind, SOFT) for kind in kinds}
    _legend(axes, colours, loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=6)
    return figure
