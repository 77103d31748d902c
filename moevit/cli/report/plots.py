"""The plots of a report and of its tasks, each from the report's values alone, as SVG for the page and as files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moevit.cli.report import bars
from moevit.cli.report.roofline_plot import roofline
from moevit.cli.report.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    KIND_COLOURS,
    ORANGE,
    PINK,
    RED,
    SETTINGS,
    SKY,
    SOFT,
    YELLOW,
    legend,
    new_figure,
    save,
    trimmed,
)

CAUSE_COLOURS = {
    "busy": BLUE, "dependency": ORANGE, "dram": RED, "ring": PINK, "queue": GREEN, "tile": YELLOW, "memory": SKY,
    "idle": FAINT, "other": FAINT,
}  # fmt: skip
# More kinds of waiting than there are safe colours: these differ in lightness, and what is wide has its name on it.
SPARE_COLOURS = ("#882255", "#999933", "#332288", "#ddcc77", "#666666", "#b0b7bd")
TYPE_COLOURS = {"int16": BLUE, "uint8": ORANGE, "int8": GREEN}
Values = Mapping[str, Any]


def draw_all(values: Values, folder: Path) -> dict[str, str]:
    """Write each plot as PNG and SVG into ``folder``, and return the SVG text by name.

    Names are ``latency``, ``energy``, ``efficiency``, and for each task ``<task>-roofline`` and so on.
    """
    import matplotlib as mpl

    drawn: dict[str, str] = {}
    with mpl.rc_context(SETTINGS):
        for name, function in (("latency", bars.latency), ("energy", bars.energy), ("efficiency", bars.efficiency)):
            drawn[name] = save(folder, name, function(values["machines"]))
        for name, task in values["tasks"].items():
            plots: dict[str, Callable[[Values], Any] | None] = {
                "roofline": roofline, "layers": _layers, "stages": _stages, "breakdown": _breakdown,
                "memory": _memory, "experts": _experts if task["experts"] else None,
                "timeline": _timeline if task.get("timeline") else None,
            }  # fmt: skip
            for plot, draw in plots.items():
                if draw is not None:
                    drawn[f"{name}-{plot}"] = save(folder, f"{name}-{plot}", draw(task))
    return drawn


def _layers(task: Values) -> Any:
    rows = [row for row in task["layers"] if row["cycles"] > 0][::-1]
    figure, axes = new_figure(0.9 + 0.155 * len(rows))
    for y, row in enumerate(rows):
        axes.barh(y, row["cycles"], color=KIND_COLOURS.get(row["kind"], INK), height=0.8)
    axes.set_yticks(range(len(rows)), [trimmed(row["name"], 26) for row in rows], fontsize=6.5)
    axes.set_xlabel("cycles that each adds")
    axes.margins(y=0.01)
    axes.locator_params(axis="x", nbins=5)
    _grid(axes)
    legend(figure, {k: c for k, c in KIND_COLOURS.items() if any(r["kind"] == k for r in rows)})
    return figure


def _stages(task: Values) -> Any:
    stages = task["simulation"]["stages"]
    names = list(stages)[::-1]
    figure, axes = new_figure(1.35 + 0.36 * len(names))
    spare = iter(SPARE_COLOURS)
    causes = list(dict.fromkeys(cause for stage in stages.values() for cause in stage))
    colours = {cause: CAUSE_COLOURS.get(cause) or next(spare, SOFT) for cause in causes}
    for y, name in enumerate(names):
        left = 0.0
        for cause in sorted(stages[name], key=lambda c: (c != "busy", c in ("idle", "other"))):
            share = 100 * stages[name][cause] / task["cycles"]
            axes.barh(y, share, left=left, color=colours[cause], height=0.7, edgecolor="white", linewidth=0.4)
            if share > 5 + 1.5 * len(cause):
                axes.text(left + share / 2, y, f"{cause} {share:.0f}", ha="center", va="center", fontsize=7, color=INK,
                          bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8})  # fmt: skip
            left += share
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of all cycles")
    legend(figure, {c: colours[c] for c in causes if any(s.get(c, 0) > 0.01 * task["cycles"] for s in stages.values())})
    return figure


def _breakdown(task: Values) -> Any:
    parts = task["energy"]["parts"][::-1]
    figure, axes = new_figure(0.7 + 0.26 * len(parts))
    for y, part in enumerate(parts):
        low, typical, high = (1000 * part["joules"][k] for k in ("low", "typical", "high"))
        axes.barh(y, typical, color=SOFT if part["name"] == "processor system" else BLUE, height=0.65)
        if high > low:
            axes.errorbar(typical, y, xerr=[[typical - low], [high - typical]], color=INK, capsize=2, linewidth=1)
    axes.set_yticks(range(len(parts)), [part["name"] for part in parts])
    axes.set_xlabel("millijoules a frame; lines: range")
    _grid(axes)
    return figure


def _memory(task: Values) -> Any:
    memory = task["memory"]
    figure, (upper, lower) = new_figure(4.4, rows=2, sharex=True)
    used, there = memory["activation_words"]
    for axes, kinds, title in (
        (upper, ("activation",), f"activation memory: {used:,} of {there:,} words at most"),
        (lower, ("key", "value"), f"K and V, behind a ring of {memory['ring_words']:,} words"),
    ):
        for tensor in memory["tensors"]:
            if tensor["memory"] in kinds:
                axes.add_patch(_box(tensor, TYPE_COLOURS.get(tensor["dtype"], SOFT)))
        axes.set_xlim(0, memory["instructions"])
        axes.set_title(title, loc="left")
    upper.set_ylim(0, 1.05 * used)
    upper.set_ylabel("word")
    ring = memory["ring_words"]
    lower.set_ylim(ring, ring + max(memory["key_value_words"][1], 1))
    lower.set_ylabel("word of the operand memory")
    lower.set_xlabel("instruction of the program")
    legend(figure, TYPE_COLOURS)
    return figure


def _box(tensor: Values, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    width = max(tensor["read"] - tensor["written"], 1)
    height = tensor["last_word"] - tensor["first_word"] + 1
    return Rectangle(
        (tensor["written"], tensor["first_word"]), width, height, facecolor=colour, alpha=0.6, edgecolor="white",
        linewidth=0.4,
    )  # fmt: skip


def _experts(task: Values) -> Any:
    gates = task["experts"]
    most = max(max(gate["tokens"]) for gate in gates)
    experts = max(len(gate["tokens"]) for gate in gates)
    figure, axes = new_figure(1.2 + 0.3 * len(gates))
    table = [gate["tokens"] + [float("nan")] * (experts - len(gate["tokens"])) for gate in gates]
    picture = axes.imshow(table, aspect="auto", cmap="cividis", vmin=0)
    for y, gate in enumerate(gates):
        for x, tokens in enumerate(gate["tokens"]):
            axes.text(x, y, f"{tokens:.0f}", ha="center", va="center", fontsize=7 if experts <= 16 else 5,
                      color="white" if tokens < 0.6 * most else INK, gid=f"value-{y}-{x}")  # fmt: skip
    axes.set_yticks(range(len(gates)), [trimmed(gate["gate"], 16) for gate in gates], fontsize=7)
    axes.set_xticks(range(0, experts, 1 if experts <= 16 else 4))
    axes.set_xlabel("expert")
    figure.colorbar(picture, ax=axes, label="tokens of a frame", location="bottom", shrink=0.6, aspect=30)
    return figure


def _timeline(task: Values) -> Any:
    spans = task["timeline"]
    units = list(dict.fromkeys(span["unit"] for span in spans))[::-1]
    figure, axes = new_figure(1.2 + 0.3 * len(units))
    kinds = sorted({span["kind"] for span in spans}, key=lambda kind: [*KIND_COLOURS, kind].index(kind))
    for y, unit in enumerate(units):
        for kind in kinds:
            mine = [s for s in spans if s["unit"] == unit and s["kind"] == kind]
            bars_of = [(s["start"], max(s["end"] - s["start"], 1)) for s in mine]
            axes.broken_barh(bars_of, (y - 0.36, 0.72), facecolors=KIND_COLOURS.get(kind, SOFT), linewidth=0)
    axes.set_yticks(range(len(units)), units)
    axes.set_xlim(0, task["cycles"])
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("cycle")
    legend(figure, {kind: KIND_COLOURS.get(kind, SOFT) for kind in kinds})
    return figure


def _grid(axes: Any) -> None:
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
