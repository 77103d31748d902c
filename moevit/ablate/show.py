"""Figures as text, for the terminal and the plot."""

import textwrap
from collections.abc import Iterator

from moevit.ablate.result import Figure, How, Technique

#: What the figures are called, by key. A unit is added where the name does not say it.
NAMES = {
    "cycles": "cycles",
    "dram_bytes": "DRAM bytes",
    "data_bytes": "K, V and scores",
    "operand_bytes": "bytes into array",
    "instructions": "instructions",
    "context_error": "error of P.V",
    "output_error": "error as int8",
    "passes": "passes",
    "row_buffer": "row buffer",
    "traffic": "score traffic",
    "max_error": "largest error",
    "rms_error": "RMS error",
    "entries": "entries",
    "table_bits": "table bits",
    "model_error": "model's error",
    "top1": "top-1",
    "miou": "mean IoU",
    "rmse": "RMSE",
    "float_top1": "float model's top-1",
    "float_miou": "float model's mean IoU",
    "float_rmse": "float model's RMSE",
    "multipliers": "multipliers",
    "idle": "idle",
    "expert_bytes": "expert bytes",
}
MARKS = {How.RTL: "r", How.ISA: "i", How.REFERENCE: "n", How.FLOAT: "f", How.COMPUTED: "c"}
LEGEND = (
    "*: the machine's way. r: counted on the RTL, i: instruction-level simulator, n: NumPy on the model's integers, "
    "f: onnxruntime, c: computed"
)

LABEL_WIDTH = 46
WIDTH = 116  #: of running text


def name(key: str) -> str:
    """What a figure is called."""
    return NAMES.get(key, key.replace("_", " "))


def text(figure: Figure) -> str:
    """A value as short as it can be read."""
    value = figure.value
    if figure.unit.startswith(("relative", "share")):
        return f"{100 * value:.2f} %" if abs(value) < 0.1 else f"{100 * value:.1f} %"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(technique: Technique) -> Iterator[str]:
    """A technique's lines."""
    if not technique.applicable:
        yield f"{technique.title}: not applicable, {technique.reason}"
        return
    yield f"{technique.title} ({technique.subject})"
    keys = list(dict.fromkeys(key for way in technique.ways for key in way.figures))
    cells = [
        [f"{text(way.figures[key])} {MARKS[way.figures[key].how]}" if key in way.figures else "" for key in keys]
        for way in technique.ways
    ]
    widths = [max(len(name(key)), *(len(row[i]) for row in cells)) for i, key in enumerate(keys)]
    heads = "  ".join(f"{name(key):>{width}}" for key, width in zip(keys, widths, strict=True))
    yield f"  {'':{LABEL_WIDTH}}  {heads}".rstrip()
    for way, row in zip(technique.ways, cells, strict=True):
        label = ("* " if way.ours else "  ") + way.label
        columns = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {label:{LABEL_WIDTH}}  {columns}".rstrip()
    if technique.details:
        # A mark stays with its value.
        details = [f"{name(key)} {text(f)}\N{NO-BREAK SPACE}{MARKS[f.how]}" for key, f in technique.details.items()]
        yield from textwrap.wrap(", ".join(details), WIDTH, initial_indent="  ", subsequent_indent="  ")
    failed = [what for what, holds in technique.checks.items() if not holds]
    if technique.checks:
        count = len(technique.checks)
        yield f"  Had to be equal and was: {count - len(failed)} of {count}."
    yield from (f"  Does not hold: {what}." for what in failed)
    for note in technique.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="  - ", subsequent_indent="    ")
