"""The roofline: every layer as a point under what the array, the DRAM and the operand memory allow."""

from collections.abc import Mapping
from typing import Any

from moevit.cli.report.style import FAINT, INK, KIND_COLOURS, KIND_MARKS, RED, SKY, new_figure, plain_numbers

Values = Mapping[str, Any]


def roofline(task: Values) -> Any:
    """Filled marks stand at a layer's MACs for a byte of DRAM, open ones at those for a byte of the operand memory."""
    figure, axes = new_figure(4.3)
    roof = task["roof"]
    points = [p for p in task["layers"] if p.get("gmacs")]
    xs = [p[key] for p in points for key in ("dram_intensity", "operand_intensity") if p[key]]
    low, high = min([*xs, 1.0]) / 2, max([*xs, 64.0]) * 2
    # Dashed and on top, because the two roofs are the same line on some machines.
    for rate, colour, width, dashes, name in (
        (roof["on_chip"], SKY, 2.4, "-", f"operand memory, {roof['on_chip']:.4g} GB/s"),
        (roof["dram"], RED, 1.2, (0, (5, 3)), f"DRAM, {roof['dram']:.4g} GB/s"),
    ):
        ridge = min(max(roof["compute"] / rate, low), high)
        xs_line = [low, ridge, high]
        axes.plot(xs_line, [min(x * rate, roof["compute"]) for x in xs_line], color=colour, linewidth=width,
                  linestyle=dashes, label=name)  # fmt: skip
    axes.axhline(roof["compute"], color=INK, linewidth=0.8, linestyle=":", label=f"array, {roof['compute']:.4g} GMAC/s")
    for kind in dict.fromkeys(p["kind"] for p in points):
        mine = [p for p in points if p["kind"] == kind]
        mark, colour = KIND_MARKS.get(kind, "o"), KIND_COLOURS.get(kind, INK)
        for key, what, look in (
            ("dram_intensity", "DRAM", {"color": colour}),
            ("operand_intensity", "operand", {"facecolors": "none", "edgecolors": colour}),
        ):
            there = [(p[key], p["gmacs"]) for p in mine if p[key]]
            if there:
                label = f"{kind}, {what} bytes"
                axes.scatter(*zip(*there, strict=True), marker=mark, s=24, zorder=3, label=label, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    axes.set_xlabel("multiply-accumulates for a byte moved")
    axes.set_ylabel("GMAC/s")
    axes.grid(color=FAINT, linewidth=0.5)
    figure.legend(fontsize=7.5, frameon=False, loc="outside lower center", ncols=2, columnspacing=1.4)
    return figure
