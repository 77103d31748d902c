"""What all plots of a report have in common: colours, sizes, legends and how they are saved."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moevit.cli.report.machines import METHOD_NAMES

INK, SOFT, FAINT = "#222222", "#5f6670", "#d9dde1"
# Okabe and Ito's colours, which are told apart with any colour vision.
BLUE, ORANGE, GREEN, RED, SKY, PINK, YELLOW = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442",
)  # fmt: skip
GREY = "#9aa3ab"
METHOD_COLOURS = {
    "rtl": BLUE, "cycle": SKY, "estimated": BLUE, "vivado": ORANGE, "measured": GREEN, "published": GREY,
}  # fmt: skip
KIND_COLOURS = {
    "linear": BLUE, "attention": ORANGE, "experts": GREEN, "route": PINK, "patches": RED, "constant": YELLOW,
    "output": FAINT,
}  # fmt: skip
KIND_MARKS = {"linear": "o", "attention": "s", "experts": "^", "route": "D", "patches": "v", "constant": "P"}
WIDTH = 4.8  #: inches of all plots: on a phone a point is then a pixel, and nothing has to be moved aside
SETTINGS = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "text.color": INK,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "moevit", "axes.titlesize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8,
}  # fmt: skip


def save(folder: Path, name: str, figure: Any) -> str:
    """Write a figure as PNG and SVG; returns the SVG, with ids that no other plot of the page has."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    figure.savefig(folder / f"{stem}.png", dpi=170)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "moevit"})
    svg = text.getvalue()
    (folder / f"{stem}.svg").write_text(svg)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{stem}-", svg[svg.index("<svg") :])


def new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of a height in inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, **options)


def legend(figure: Any, colours: Mapping[str, str], columns: int = 4) -> None:
    """A legend below everything: nothing can lie under it."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=METHOD_NAMES.get(name, name)) for name, colour in colours.items()]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=columns,
                  handlelength=1.4, columnspacing=1.4)  # fmt: skip


def plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis as 1, 2, 5, 10 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def trimmed(name: str, most: int) -> str:
    """The end of a name that is too long, which is what tells layers apart."""
    return name if len(name) <= most else f"…{name[-most + 1:]}"
