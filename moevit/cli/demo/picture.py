"""The demo's picture: scenes with both tasks' answers, use of the experts, where the cycles go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.cli.demo.report import Report, TaskReport

_INK, _SOFT, _FAINT = "#262626", "#5f6670", "#dfe3e7"
_TASK = {"seg": "#0072b2", "depth": "#e69f00"}  # Okabe and Ito's blue and orange
_IDEAL = "#262626"
#: Of the classes: what is behind all, then Tol's muted colours, which the colour-blind can tell apart; the largest
#: areas are labelled too.
_CLASSES = (
    "#f1f1f1", "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499",
    "#555555",
)  # fmt: skip
#: Of the experts: Tol's light colours, as they have their number written on them.
_EXPERTS = ("#77aadd", "#99ddff", "#44bb99", "#bbcc33", "#eedd88", "#ee8866", "#ffaabb", "#dddddd")
_DARK = ("#332288", "#117733", "#882255", "#aa4499", "#555555", "#999933", "#cc6677")
_CAUSES = {
    "busy": "#0072b2", "dependency": "#e69f00", "ring": "#cc79a7", "dram": "#d55e00", "queue": "#882255",
    "tile": "#f0e442", "norm": "#009e73", "scores": "#56b4e9", "drain": "#999933", "post": "#a0764f",
    "idle": "#eef0f2",
}  # fmt: skip
_LABEL_PIXELS = 110  # an area that is large enough for a label
_NEAR, _FAR = 1.4, 4.2  # metres, of the colour scale


def draw(path: Path, report: Report) -> None:
    """Write the picture as a PNG file, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(len(report.scenes), 4)
    height = 7.85 + 1.24 * shown
    figure = Figure(figsize=(13, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    _title(figure, report, height)
    top = 1 - 1.58 / height
    middle = top - 1.24 * shown / height
    _scenes(figure, report, shown, top, middle)
    lower = middle - 0.98 / height
    _experts(figure, report, lower, lower - 2.55 / height)
    _stages(figure, report, lower - 3.42 / height, 0.62 / height)
    _parts(figure, report, lower, 0.62 / height)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _title(figure: Any, report: Report, height: float) -> None:
    c = report.program.config
    seg, depth = (report.tasks[name] for name in ("seg", "depth"))
    figure.text(
        0.03, 1 - 0.42 / height, "moevit: one M³ViT, two tasks, one container", fontsize=17, weight="bold", color=_INK
    )
    speed = ", ".join(
        f"{name} {sum(t.rtl.cycles or ()) / t.rtl.images:,.0f} cycles = {t.rtl.latency_ms:.2f} ms a scene "
        f"(MAC utilisation {100 * (t.rtl.mac_utilisation or 0):.1f} %)"
        for name, t in report.tasks.items()
    )
    text = (
        f"{c.name}, {c.rows}×{c.columns}×{c.depth} array at {c.clock_mhz:g} MHz: {speed}.\n"
        f"{seg.accuracy.scenes} scenes: mean IoU int8 {seg.accuracy.int8:.4f}, float {seg.accuracy.in_float:.4f};  "
        f"depth RMSE int8 {depth.accuracy.int8:.4f} m, float {depth.accuracy.in_float:.4f} m.   "
        "RTL, isa and reference agree in every bit."
    )
    figure.text(0.03, 1 - 0.6 / height, text, fontsize=10, color=_INK, va="top", linespacing=1.5)


# -- scenes --------------------------------------------------------------------------------------------------


def _scenes(figure: Any, report: Report, shown: int, top: float, bottom: float) -> None:
    from matplotlib.colors import ListedColormap

    grid = figure.add_gridspec(
        shown, 11, left=0.03, right=0.878, top=top, bottom=bottom, wspace=0.06, hspace=0.06,
        width_ratios=(1, 0.14, 1, 1, 1, 1, 0.14, 1, 1, 1, 1),
    )  # fmt: skip
    looks: dict[str, dict[str, Any]] = {
        "seg": {"cmap": ListedColormap(_CLASSES), "vmin": -0.5, "vmax": len(_CLASSES) - 0.5},
        "depth": {"cmap": "cividis_r", "vmin": _NEAR, "vmax": _FAR},
    }
    scale: Any = None
    for row in range(shown):
        first = _picture(figure, grid[row, 0], report.images[row], "input" if not row else "", cmap="gray", vmin=0)
        first.set_ylabel(f"scene {report.scenes[row]}", fontsize=9, color=_SOFT)
        for place, (name, task) in zip((2, 7), report.tasks.items(), strict=True):
            answers = (("truth", task.truth), ("float", task.in_float), ("int8, RTL", task.int8))
            for column, (title, values) in enumerate(answers):
                axes = _picture(
                    figure, grid[row, place + column], values[row], "" if row else title, **looks[name]
                )
                if name == "seg":
                    _labels(axes, values[row])
            if name == "depth":
                scale = axes.images[0]
            title = "" if row else f"expert, block {task.usage[-1].block}"
            _expert_map(figure, grid[row, place + 3], task.experts[row], title)
    for place, name, text in ((2, "seg", "segmentation"), (7, "depth", "depth")):
        left, right = (grid[0, n].get_position(figure) for n in (place, place + 3))
        y = top + 0.3 / figure.get_figheight()
        figure.text((left.x0 + right.x1) / 2, y + 0.004, text, ha="center", fontsize=11, weight="bold", color=_INK)
        figure.add_artist(_line((left.x0, right.x1), (y, y), _TASK[name]))
    _legend(figure, top)
    bar = figure.add_axes((0.892, bottom, 0.012, (top - bottom) * 0.3))
    figure.colorbar(scale, cax=bar)
    bar.invert_yaxis()
    bar.set_yticks([1.6, 2.4, 3.2, 4.0], ["1.6 m", "2.4 m", "3.2 m", "4.0 m"])
    bar.tick_params(labelsize=8.5, length=0, colors=_INK)
    bar.set_title("depth", fontsize=9, loc="left", color=_INK)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _expert_map(figure: Any, place: Any, experts: NDArray[np.int64], title: str) -> None:
    """Each patch's first expert, as a number on a colour."""
    from matplotlib.colors import ListedColormap

    axes = _picture(figure, place, experts, title, cmap=ListedColormap(_EXPERTS), vmin=-0.5, vmax=len(_EXPERTS) - 0.5)
    for (y, x), expert in np.ndenumerate(experts):
        axes.text(x, y, str(expert), fontsize=6, color=_INK, ha="center", va="center_baseline")


def _line(x: tuple[float, float], y: tuple[float, float], colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(x, y, color=colour, linewidth=2.2)


def _picture(figure: Any, place: Any, values: NDArray[np.generic], title: str, **look: Any) -> Any:
    axes = figure.add_subplot(place)
    axes.imshow(values, interpolation="nearest", **look)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_FAINT, linewidth=0.8)
    if title:
        axes.set_title(title, fontsize=9.5, color=_INK, pad=4)
    return axes


def _labels(axes: Any, classes: NDArray[np.generic]) -> None:
    """Write the class onto each class's area, where it is large, so that no colour has to be told from another."""
    from matplotlib.patheffects import withStroke

    from moevit.models.scenes import CLASSES

    for number in np.unique(classes):
        inside = classes == number
        if number == 0 or inside.sum() < _LABEL_PIXELS:
            continue
        y, x = _middle(inside)
        name = CLASSES[int(number)].partition("/")[0]
        behind = _CLASSES[int(number)]
        half = 1.6 * len(name)
        axes.text(
            min(max(x, half), classes.shape[1] - half), y, name, fontsize=6.6, ha="center", va="center",
            color="white" if behind in _DARK else _INK,
            path_effects=[withStroke(linewidth=2, foreground=behind)],  # where it is longer than its area
        )  # fmt: skip


def _middle(inside: NDArray[np.bool_]) -> tuple[float, float]:
    """The point of an area that is farthest from what is not the area, along rows and columns together."""
    best = np.zeros(inside.shape)
    for axis in (0, 1):
        for back in (False, True):
            mask = np.flip(inside, axis) if back else inside
            run = np.zeros(inside.shape)
            length = np.zeros(inside.shape[1 - axis])
            for i in range(inside.shape[axis]):
                line = mask[i] if axis == 0 else mask[:, i]
                length = (length + 1) * line
                if axis == 0:
                    run[i] = length
                else:
                    run[:, i] = length
            run = np.flip(run, axis) if back else run
            best += np.sqrt(run)
    y, x = np.unravel_index(np.argmax(best * inside), inside.shape)
    return float(y), float(x)


def _legend(figure: Any, top: float) -> None:
    from matplotlib.patches import Patch

    from moevit.models.scenes import CLASSES

    handles = [
        Patch(facecolor=colour, edgecolor=_FAINT, label=name) for colour, name in zip(_CLASSES, CLASSES, strict=True)
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.884, top + 0.004), fontsize=8.5, frameon=False,
        handlelength=1.1, handleheight=1.1, labelspacing=0.42, labelcolor=_INK, borderaxespad=0.0,
    )  # fmt: skip


# -- experts -------------------------------------------------------------------------------------------------


def _experts(figure: Any, report: Report, top: float, bottom: float) -> None:
    """A panel for each task and layer, in it each expert's tokens: average, spread and extremes over all scenes."""
    uses = [(name, use) for name, task in report.tasks.items() for use in task.usage]
    rows, columns = len(report.tasks), max(len(task.usage) for task in report.tasks.values())
    grid = figure.add_gridspec(
        rows, columns, left=0.075, right=0.44, top=top - 0.012, bottom=bottom, wspace=0.09, hspace=0.34
    )
    most = max(s[-1] for _, use in uses for s in use.spread)
    for row, (name, task) in enumerate(report.tasks.items()):
        for column, use in enumerate(task.usage):
            axes = figure.add_subplot(grid[row, column])
            for expert, (tokens, spread) in enumerate(zip(use.tokens, use.spread, strict=True)):
                axes.plot((expert, expert), (spread[0], spread[3]), color=_TASK[name], linewidth=1.1)
                axes.plot((expert, expert), (spread[1], spread[2]), color=_TASK[name], linewidth=6, alpha=0.55,
                          solid_capstyle="butt")  # fmt: skip
                axes.plot((expert - 0.34, expert + 0.34), (tokens, tokens), color=_INK, linewidth=1.6)
            axes.set_xlim(-0.6, use.experts - 0.4)
            axes.set_ylim(0, most * 1.04)
            axes.set_xticks(range(use.experts))
            axes.tick_params(length=0, labelsize=8, colors=_INK, pad=2)
            axes.set_yticks(range(0, int(most) + 1, 20))
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel(name, fontsize=10, weight="bold", color=_INK)
            axes.grid(axis="y", color=_FAINT, linewidth=0.7)
            axes.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.spines["bottom"].set_color(_FAINT)
            axes.set_title(f"block {use.block}", fontsize=8.5, color=_SOFT, pad=2)
    scenes = next(iter(report.tasks.values())).accuracy.scenes
    _heading(figure, 0.075, top, "Tokens that a scene sends to each expert",
             f"{uses[0][1].top_k} of {uses[0][1].experts} a token. Black: average of {scenes} scenes; bar: eight of "
             "ten; line: all.")  # fmt: skip


def _heading(figure: Any, x: float, top: float, title: str, small: str) -> None:
    """A title with a line of explanation, above `top`."""
    inch = 1 / figure.get_figheight()
    figure.text(x, top + 0.3 * inch, title, fontsize=11, color=_INK)
    figure.text(x, top + 0.11 * inch, small, fontsize=8.5, color=_SOFT)


# -- time ----------------------------------------------------------------------------------------------------


def _plain(axes: Any) -> None:
    """Only the axis line that is read."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(axis="both", length=0, labelsize=9, colors=_INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_FAINT, linewidth=0.7)


def _parts(figure: Any, report: Report, top: float, bottom: float) -> None:
    """Cycles by part of the network: a bar for each task, and in it what the array would need alone."""
    axes = figure.add_axes((0.615, bottom, 0.36, top - bottom))
    tasks = report.tasks
    names = list(dict.fromkeys(p.part.name for task in tasks.values() for p in task.parts))
    largest = max(p.cycles for task in tasks.values() for p in task.parts)
    for i, (name, task) in enumerate(tasks.items()):
        for p in task.parts:
            y = names.index(p.part.name) + (i - 0.5) * 0.4
            axes.barh(y, p.cycles, height=0.38, color=_TASK[name])
            if p.ideal:
                axes.plot((p.ideal, p.ideal), (y - 0.19, y + 0.19), color=_IDEAL, linewidth=1.8)
            axes.text(
                max(p.cycles, p.ideal) + 0.012 * largest, y, f"{p.cycles:,.0f}", va="center", fontsize=7.4, color=_INK
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, largest * 1.13)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    _heading(figure, 0.575, top, "Cycles by block and part", "What each adds, average of the scenes on RTL.")
    _plain(axes)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=_TASK[name], label=name) for name in tasks]
    handles.append(Line2D([], [], color=_IDEAL, linewidth=1.8, label="the array alone, never waiting"))
    axes.legend(
        handles=handles, fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.045), ncols=3
    )


def _stages(figure: Any, report: Report, top: float, bottom: float) -> None:
    """What the five stages do, both tasks together."""
    axes = figure.add_axes((0.075, bottom, 0.365, top - bottom))
    seen: dict[str, Any] = {}
    for y, (_, causes) in enumerate(stage_shares(list(report.tasks.values()))):
        at = 0.0
        for name, share in causes.items():
            bar = axes.barh(y, 100 * share, left=at, height=0.62, color=_CAUSES.get(name, "#999999"))
            if share > 0.005:
                seen.setdefault(name, bar)
            if 100 * share >= 1.4 * (len(name) + 5):  # the text fits
                light = name in ("idle", "tile", "scores", "dependency")
                axes.text(at + 50 * share, y, f"{name} {100 * share:.0f} %", va="center", ha="center", fontsize=8,
                          color=_INK if light else "white")  # fmt: skip
            at += 100 * share
    names = [stage for stage, _ in stage_shares(list(report.tasks.values()))]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:.0f} %")
    _heading(figure, 0.075, top, "What each stage of the pipeline does", "Busy, and why it waits; both tasks together.")
    _plain(axes)
    order = [name for name in _CAUSES if name in seen]
    axes.legend(
        [seen[name] for name in order], order, fontsize=8.5, frameon=False, loc="upper center",
        bbox_to_anchor=(0.47, -0.1), ncols=min(len(order), 7), columnspacing=1.1, handlelength=1.1,
    )  # fmt: skip


def stage_shares(tasks: Sequence[TaskReport]) -> list[tuple[str, dict[str, float]]]:
    """Each stage: its name, and the share of its time by cause (busy first, idle last), both tasks together."""
    out = []
    stages = [task.rtl.stages or {} for task in tasks]
    for stage in stages[0]:
        causes = {cause: sum(s[stage][cause] for s in stages) for cause in stages[0][stage]}
        total = sum(causes.values()) or 1.0
        out.append((stage, {cause: cycles / total for cause, cycles in causes.items()}))
    return out
