"""The plot: a row of small panels per technique, a bar per way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moevit.ablate.result import Figure, How, Technique, Way
from moevit.ablate.show import text

# Okabe and Ito's blue and orange: told apart with any colour vision, and in grey.
_OURS, _PLAIN, _INK, _FAINT = "#0072b2", "#e69f00", "#222222", "#d9dde1"

WIDTH = 9.0  #: inches
_ROW, _HEAD, _TOP, _BOTTOM = 0.24, 0.5, 0.46, 0.36  # inches: a bar, a technique's title, page title, legend


@dataclass(frozen=True)
class _Panel:
    """One figure of a technique; ``log`` where ways differ by orders of magnitude: dots, not bars."""

    key: str
    title: str
    log: bool = False


PANELS = {
    "attention": (
        _Panel("cycles", "cycles"),
        _Panel("dram_bytes", "DRAM bytes"),
        _Panel("operand_bytes", "bytes of K and V into the array"),
    ),
    "softmax": (
        _Panel("context_error", "relative RMS error of P·V"),
        _Panel("passes", "passes over the scores"),
        _Panel("traffic", "bytes of scores moved, one image"),
    ),
    "activation": (
        _Panel("max_error", "largest absolute error (log)", log=True),
        _Panel("table_bits", "bits of the table (log)", log=True),
        _Panel("model_error", "relative RMS error of the output"),
    ),
    "unified": (
        _Panel("multipliers", "multiply-accumulates a cycle"),
        _Panel("cycles", "cycles of one image"),
        _Panel("idle", "multipliers idle, share"),
    ),
    "experts": (
        _Panel("expert_bytes", "DRAM bytes of experts, one image"),
        _Panel("cycles", "cycles of one image"),
        _Panel("instructions", "instructions"),
    ),
}


def draw(paths: Sequence[Path], techniques: Sequence[Technique], subject: str) -> None:
    """Draw the techniques that are applicable into files, whose names say the format."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    heights = [_HEAD + _ROW * len(t.ways) for t in techniques]
    height = _TOP + sum(heights) + _BOTTOM
    # Text in the SVG stays text; identifiers and dates are left out, so that the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moevit", "font.size": 8.5}):
        page = Page(figsize=(WIDTH, height), dpi=150, facecolor="white")
        FigureCanvasAgg(page)
        page.text(0.02, 1 - 0.27 / height, f"Each technique against the plain way: {subject}", fontsize=12,
                  weight="bold", color=_INK, va="center")  # fmt: skip
        at = height - _TOP
        for technique, high in zip(techniques, heights, strict=True):
            _technique(page, technique, at, high, height)
            at -= high
        _legend(page, height)
        for path in paths:
            kind = path.suffix.removeprefix(".")
            temporary = path.with_name(f".{path.name}")
            page.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
            temporary.replace(path)


def _technique(page: Any, technique: Technique, top: float, high: float, height: float) -> None:
    """A technique's row: title, labels of the ways, panels."""
    bottom, bars = (top - high + 0.1) / height, _ROW * len(technique.ways) / height
    page.text(0.02, bottom + bars + 0.05 / height, technique.title, fontsize=10, weight="bold", color=_INK)
    page.add_artist(_line(0.02, 0.985, (top - 0.03) / height))
    left, gap, right = 0.31, 0.02, 0.985
    panels = PANELS[technique.key]
    width = (right - left - gap * (len(panels) - 1)) / len(panels)
    for number, panel in enumerate(panels):
        axes = page.add_axes((left + number * (width + gap), bottom, width, bars))
        _draw(axes, panel, technique.ways)
        if number == 0:
            axes.set_yticks(range(len(technique.ways)), [way.label for way in technique.ways])
            for label, way in zip(axes.get_yticklabels(), technique.ways, strict=True):
                label.set(color=_INK, weight="bold" if way.ours else "normal", fontsize=8)


def _line(left: float, right: float, y: float) -> Any:
    from matplotlib.lines import Line2D

    return Line2D((left, right), (y, y), color=_FAINT, linewidth=0.8)


def _draw(axes: Any, panel: _Panel, ways: Sequence[Way]) -> None:
    found = [(y, way.figures[panel.key], way.ours) for y, way in enumerate(ways) if panel.key in way.figures]
    positive = [figure.value for _, figure, _ in found if figure.value > 0] or [1.0]
    if panel.log:
        axes.set_xscale("log")
        low, high = min(positive) / 2, max(positive)
        axes.set_xlim(low, high * (high / low) ** 0.5)
    else:
        axes.set_xlim(0, max(positive) * 1.42)  # room for the values
    for y, figure, ours in found:
        _mark(axes, panel, y, figure, _OURS if ours else _PLAIN)
    axes.set_ylim(len(ways) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.minorticks_off()
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_FAINT)
    axes.tick_params(length=0)
    axes.set_title(panel.title, fontsize=8, color=_INK, loc="left", pad=3)


def _mark(axes: Any, panel: _Panel, y: int, figure: Figure, colour: str) -> None:
    """A bar, or a dot on a logarithmic axis; hollow if it is computed."""
    hollow = figure.how == How.COMPUTED
    at = figure.value
    if panel.log:
        if at > 0:
            axes.plot(at, y, "o", markersize=6, color=colour, markerfacecolor="white" if hollow else colour)
        else:
            at = axes.get_xlim()[0]
    else:
        axes.barh(y, at, height=0.62, facecolor="white" if hollow else colour, edgecolor=colour, linewidth=1.2)
    axes.annotate(text(figure), (at, y), xytext=(6 if panel.log else 4, 0), textcoords="offset points", va="center",
                  ha="left", fontsize=8, color=_INK, annotation_clip=False)  # fmt: skip


def _legend(page: Any, height: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=_OURS, edgecolor=_OURS, label="the machine's way"),
        Patch(facecolor=_PLAIN, edgecolor=_PLAIN, label="plain ways"),
        Patch(facecolor="#888888", edgecolor="#888888", label="filled: measured"),
        Patch(facecolor="white", edgecolor="#888888", label="hollow: computed"),
    ]
    page.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.012, 0.06 / height), ncols=4, frameon=False,
                fontsize=8.5)  # fmt: skip
