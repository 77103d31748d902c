"""The report's tables: rows of plain values, shown in the page and downloadable as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moevit.cli.report.machines import METHOD_NAMES

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table.

    columns : headings, units included
    rows : values as they are in the report's JSON; None where there is none
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it has numbers only."""
        return tuple(
            any(map(_is_number, cells)) and all(value is None or _is_number(value) for value in cells)
            for cells in zip(*self.rows, strict=True)
        )

    def csv(self) -> str:
        """All values, unrounded."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value for a reader: four significant digits, thousands separated."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0 or 1e-3 <= abs(value) < 1e4:
            return f"{value:.4g}"
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return str(value)


def latency_table(values: Values) -> Table:
    """Latency beside others."""
    rows = tuple(
        (row["name"], row["network"], row["board"], row["precision"], row["clock_mhz"], row["configuration"],
         row["macs"], row["ms"], METHOD_NAMES[row["method"]], row["counted"], row["gmacs"], row["source"])
        for row in values["machines"]
    )  # fmt: skip
    columns = ("accelerator", "network", "runs on", "precision", "clock, MHz", "configuration", "MACs a frame",
               "ms a frame", "latency is", "counted", "GMAC/s", "source")  # fmt: skip
    return Table("latency", columns, rows)


def joules_table(values: Values) -> Table:
    """Energy beside others, of those that state it."""
    rows = tuple(
        (row["name"], row["network"], row["board"], row["clock_mhz"], row["configuration"], *row["mj"],
         row["mj_per_gmac"][1], METHOD_NAMES[row["energy_method"]], row["source"])
        for row in values["machines"]
        if row["mj"] is not None
    )  # fmt: skip
    columns = ("accelerator", "network", "runs on", "clock, MHz", "configuration", "mJ, low", "mJ a frame", "mJ, high",
               "mJ for 10⁹ MACs", "energy is", "source")  # fmt: skip
    return Table("energy", columns, rows)


def layer_table(task: Values) -> Table:
    """Cycles and traffic of each group of layers."""
    keys = ("name", "role", "shape", "macs", "cycles", "mac_utilisation", "dram_bytes", "dram_intensity",
            "operand_intensity", "gmacs")  # fmt: skip
    columns = ("layer", "does", "shape", "MACs", "cycles", "use of the multipliers", "DRAM bytes", "MACs a DRAM byte",
               "MACs an operand byte", "GMAC/s")  # fmt: skip
    return Table("layers", columns, tuple(tuple(row.get(key) for key in keys) for row in task["layers"]))


def stage_table(task: Values) -> Table:
    """Every cycle of every stage."""
    stages = task["simulation"]["stages"]
    rows = [
        (stage, cause, cycles, cycles / task["cycles"])
        for stage, causes in stages.items()
        for cause, cycles in causes.items()
    ]
    return Table("stages", ("stage", "cause", "cycles", "share"), tuple(rows))


def timeline_table(task: Values) -> Table:
    """From when to when a unit worked on a kind of layer."""
    keys = ("unit", "kind", "start", "end")
    rows = tuple(tuple(span[key] for key in keys) for span in task.get("timeline") or ())
    return Table("timeline", ("unit", "layers", "from cycle", "to cycle"), rows)


def energy_table(task: Values) -> Table:
    """Events, constants and joules."""
    rows = [
        (part["name"], part["count"], part["constant"] or "watts of the source",
         *(1000 * part["joules"][k] for k in ("typical", "low", "high")))
        for part in task["energy"]["parts"]
    ]
    columns = ("part", "events, or seconds", "times", "mJ", "mJ, low", "mJ, high")
    return Table("energy", columns, tuple(rows))


def constant_table(values: Values) -> Table:
    """The energy model's constants."""
    keys = ("name", "unit", "typical", "low", "high", "source")
    rows = tuple(tuple(constant[key] for key in keys) for constant in values["energy_constants"])
    return Table("constants", ("an event", "unit", "value", "low", "high", "source"), rows)


def validation_table(values: Values) -> Table:
    """The model against published watts."""
    rows = [
        (f"{c['name']}, {c['model']}", c["board"], c["published_watts"],
         *(c["estimated_watts"][k] for k in ("typical", "low", "high")), c["ratio"], c["inside"], c["source"])
        for c in values["energy_validation"]
    ]  # fmt: skip
    columns = ("design", "board", "published W", "model W", "W, low", "W, high", "model / published", "in range",
               "source")  # fmt: skip
    return Table("validation", columns, tuple(rows))


def expert_table(task: Values) -> Table:
    """Tokens of each expert by gate."""
    rows = [
        (gate["gate"], number, *of)
        for gate in task["experts"]
        for number, of in enumerate(zip(gate["tokens"], gate["fewest"], gate["most"], strict=True))
    ]
    return Table("experts", ("gate", "expert", "tokens, mean", "fewest", "most"), tuple(rows))


def memory_table(task: Values) -> Table:
    """Where each tensor lies, and from which instruction to which."""
    keys = ("name", "dtype", "memory", "first_word", "last_word", "bytes", "written", "read")
    columns = ("tensor", "type", "memory", "first word", "last word", "bytes", "written by instruction", "last read by")
    return Table("memory", columns, tuple(tuple(t[key] for key in keys) for t in task["memory"]["tensors"]))


def resource_table(values: Values) -> Table:
    """What the machine takes, and what its device has."""
    taken, device = values["resources"]["estimate"], values["resources"]["device"]
    names = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram36": "BRAM36", "uram": "URAM"}
    rows = tuple((name, taken[key], device[key] if device else None) for key, name in names.items())
    return Table("resources", ("resource", "takes", "device has"), rows)


def accuracy_table(task: Values) -> Table:
    """Figures of int8 and float on the same images."""
    outputs = (task["accuracy"] or {"outputs": {}})["outputs"]
    rows = [(output, name, value) for output, figures in outputs.items() for name, value in figures.items()]
    return Table("accuracy", ("output", "figure", "value"), tuple(rows))


def general_tables(values: Values) -> Sequence[Table]:
    """Those of the whole report."""
    return (
        latency_table(values),
        joules_table(values),
        constant_table(values),
        validation_table(values),
        resource_table(values),
    )


def task_tables(task: Values) -> Sequence[Table]:
    """Those of one task that have rows."""
    tables = (layer_table(task), stage_table(task), timeline_table(task), energy_table(task), accuracy_table(task),
              expert_table(task), memory_table(task))  # fmt: skip
    return [table for table in tables if table.rows]
