"""The report's tables: rows of plain values, shown in the page and downloadable as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moevit.cli.report.plots import machines

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

    def csv(self) -> str:
        """All values, unrounded."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()


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


def machine_table(values: Values) -> Table:
    """Latency and energy beside others."""
    rows = []
    for row in machines(values):
        low, typical, high = row["mj"] or (None, None, None)
        rows.append(
            (row["name"], row["board"], row["precision"], row["clock_mhz"], row["macs"], row["ms"], row["method"],
             row["macs"] / row["ms"] / 1e6, typical, low, high, row["energy_method"], row["source"])
        )  # fmt: skip
    columns = ("accelerator", "runs on", "precision", "clock, MHz", "MACs a frame", "ms a frame", "latency is",
               "GMAC/s", "mJ a frame", "mJ, low", "mJ, high", "energy is", "source")  # fmt: skip
    return Table("machines", columns, tuple(rows))


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


def energy_table(task: Values) -> Table:
    """Events, constants and joules."""
    rows = [
        (part["name"], part["count"], part["constant"], *(1000 * part["joules"][k] for k in ("typical", "low", "high")))
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


def accuracy_table(task: Values) -> Table:
    """Figures of int8 and float on the same images."""
    outputs = (task["accuracy"] or {"outputs": {}})["outputs"]
    rows = [(output, name, value) for output, figures in outputs.items() for name, value in figures.items()]
    return Table("accuracy", ("output", "figure", "value"), tuple(rows))


def task_tables(task: Values) -> Sequence[Table]:
    """Those of one task that have rows."""
    tables = (layer_table(task), stage_table(task), energy_table(task), accuracy_table(task), expert_table(task),
              memory_table(task))  # fmt: skip
    return [table for table in tables if table.rows]
