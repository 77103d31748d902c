"""The plots that put machines beside one another: a bar each, with what it is and where the figure comes from above."""

from collections.abc import Mapping, Sequence
from typing import Any

from moevit.cli.report.machines import METHOD_NAMES
from moevit.cli.report.style import INK, METHOD_COLOURS, SOFT, legend, new_figure, plain_numbers

Values = Mapping[str, Any]
_ROW, _EDGES = 0.38, 0.95  # inches


def latency(rows: Sequence[Values]) -> Any:
    """Milliseconds a frame."""
    return _bars(rows, [[row["ms"]] * 3 for row in rows], "method", "milliseconds a frame (logarithmic)")


def energy(rows: Sequence[Values]) -> Any:
    """Millijoules a frame, of those machines whose energy is known."""
    known = [row for row in rows if row["mj"]]
    label = "millijoules a frame (logarithmic)"
    return _bars(known, [row["mj"] for row in known], "energy_method", label)


def efficiency(rows: Sequence[Values]) -> Any:
    """Millijoules for equal work."""
    known = [row for row in rows if row["mj_per_gmac"]]
    label = "millijoules for 10⁹ multiply-accumulates (logarithmic)"
    return _bars(known, [row["mj_per_gmac"] for row in known], "energy_method", label)


def _bars(rows: Sequence[Values], values: Sequence[Sequence[float]], method: str, label: str) -> Any:
    """A bar for each row, first on top, with its range if it has one."""
    figure, axes = new_figure(_EDGES + _ROW * len(rows))
    axes.set_xscale("log")
    lowest, highest = min(v[0] for v in values), max(v[2] for v in values)
    left = lowest / 2
    for number, (row, (low, typical, high)) in enumerate(zip(rows, values, strict=True)):
        y = len(rows) - 1 - number
        axes.barh(y, typical - left, left=left, color=METHOD_COLOURS[row[method]], height=0.4)
        if high > low:
            axes.errorbar(typical, y, xerr=[[typical - low], [high - typical]], color=INK, capsize=2, linewidth=1)
        # The value's group carries the row's number, by which the page can be checked against its JSON.
        axes.text(high * 1.06, y, f"{typical:.3g}", va="center", fontsize=8, gid=f"value-{number}")
        axes.annotate(_about(row, row[method]), (0, y), xytext=(2, 8.2), textcoords="offset points",
                      xycoords=("axes fraction", "data"), fontsize=7, color=INK)  # fmt: skip
    axes.set_xlim(left, highest * 1.9)
    axes.set_ylim(-0.45, len(rows) - 0.2)
    axes.set_yticks([])
    plain_numbers(axes.xaxis)
    axes.spines["left"].set_color(SOFT)
    axes.set_xlabel(label)
    legend(figure, {m: c for m, c in METHOD_COLOURS.items() if any(r[method] == m for r in rows)}, columns=3)
    return figure


def _about(row: Values, method: str) -> str:
    """What a bar is: machine, network, and how or where its figure was got."""
    what = f"{row['name']}, {row['network']} ({row['macs'] / 1e9:.2g} GMAC)"
    if method == "published":
        return f"{what}, {row['board']}: {_short(row['source'])}"
    if row["clock_mhz"]:
        return f"{what}, {row['clock_mhz']:g} MHz: {METHOD_NAMES[method]}"
    return f"{what}, this CPU"


def _short(source: str) -> str:
    """A source without what says which of several places it is also printed in; the table has all."""
    return source.partition(", as in the tables")[0].removesuffix(", its table")
