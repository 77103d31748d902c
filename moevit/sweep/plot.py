"""The plot of a sweep: latency against what it costs, with the machines that nothing beats."""

from collections.abc import Sequence
from pathlib import Path

from moevit.sweep.measure import Row, lookup, pareto

AXES = {
    "resources.dsp": "DSPs (estimated)",
    "millijoules.typical": "millijoules a frame (estimated)",
    "dram_gbps": "DRAM traffic while it runs, GB/s",
}
_INK, _SOFT, _FAINT, _BLUE, _ORANGE = "#222222", "#5f6670", "#d9dde1", "#0072b2", "#e69f00"


def draw(path: Path, rows: Sequence[Row], title: str, device: str | None) -> None:
    """A panel for each cost. Machines that fit the device, or any where none is named, are full; others are rings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(11, 3.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    done = [row for row in rows if row["status"] == "ok"]
    for axes, (cost, label) in zip(figure.subplots(1, len(AXES)), AXES.items(), strict=True):
        for fits, options in ((True, {"color": _BLUE}), (False, {"facecolors": "none", "edgecolors": _SOFT})):
            mine = [row for row in done if (device is None or device in row["fits"]) == fits]
            xs, ys = [lookup(r, cost) for r in mine], [r["latency_ms"] for r in mine]
            axes.scatter(xs, ys, s=16, linewidth=0.8, **options)
        front = pareto([row for row in done if device is None or device in row["fits"]], cost)
        axes.plot([lookup(r, cost) for r in front], [r["latency_ms"] for r in front], color=_ORANGE, linewidth=1.3,
                  marker="o", markersize=4)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(color=_FAINT, linewidth=0.5, which="both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("milliseconds a frame (timing model)")
    what = "orange: not beaten" + (f"; full: fits {device}" if device else "")
    figure.suptitle(f"{title}: {len(done)} machines; {what}", fontsize=10, color=_INK)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
