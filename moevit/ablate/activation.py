"""Activation by delta: GELU as ReLU minus a small table, against tables of the function itself, and against ReLU.

The tables are compared on every input the machine's format has within the table's range. What they are worth to the
model is measured by running it with RELU in the place of GELU in its instructions.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from moevit.ablate.result import Figure, How, NotApplicableError, Technique, Way
from moevit.ablate.subject import Subject, patched
from moevit.isa import Linear
from moevit.numerics.activation import (
    DELTA_FRACTION,
    FRACTION,
    TABLE_INDEX_WIDTH,
    TABLES,
    Activation,
    activate,
)
from moevit.numerics.fixed import round_shift
from moevit.program import Program
from moevit.sim import metrics
from moevit.sim.simulate import simulate

KEY = "activation"
TITLE = "Activation by delta"

NOTES = (
    "Errors of the tables are absolute, over every input of the machine's 11-bit fraction format within the table's "
    "range; outside of it the function is 0 or its argument for all. Nodes have 15 fraction bits in all tables.",
    "'same size' and 'same error' tables are interpolated as the machine's is and span both signs; a lookup takes the "
    "nearest node. Their bits count values, and differences where they interpolate.",
    "ReLU in the model: the compiled instructions with that field changed, nothing trained again. An existing network "
    "cannot leave its activation out.",
)


def run(subject: Subject) -> Technique:
    """Compare tables, and run the model with and without its activation function."""
    used = [i.activation for i in subject.instructions if isinstance(i, Linear) and i.activation in TABLES]
    if not used:
        raise NotApplicableError("no layer of the model has GELU or SiLU")
    kind = Activation(max(set(used), key=used.count))
    table = TABLES[kind]
    step = table.step_log2
    reach = 1 << (TABLE_INDEX_WIDTH + step)  # inputs -reach ... reach - 1 are in the table
    x = np.arange(-reach, reach, dtype=np.int64)
    want = _float(x / (1 << FRACTION), kind)
    subject.progress(f"activation: tables of {kind.name}")
    got = activate(x, kind) / (1 << FRACTION)
    n = 1 << TABLE_INDEX_WIDTH
    bits = n * (table.base_width + table.slope_width)
    ours = _errors(got, want, How.REFERENCE) | _size(n, bits)
    worst = ours["max_error"].value
    ways = [
        ("ours", f"ReLU minus a table of {n}", ours),
        ("same_size", "table of the function, same size", _interpolated(x, want, kind, reach, TABLE_INDEX_WIDTH)),
    ]
    for key, label, make in (
        ("same_error", "table of the function, same error", _interpolated),
        ("lookup", "lookup without interpolation, same error", _lookup),
    ):
        full = (2 * reach).bit_length() - 1  # an entry for each input: nothing can be better
        sizes = (make(x, want, kind, reach, index) for index in range(TABLE_INDEX_WIDTH, full))
        good = next((t for t in sizes if t["max_error"].value <= worst * 1.01), None)
        ways.append((key, label, good or make(x, want, kind, reach, full)))
    relu = activate(x, Activation.RELU) / (1 << FRACTION)
    ways.append(("relu", "ReLU in its place", _errors(relu, want, How.REFERENCE) | _size(0, 0)))
    without = _with_relu(subject, kind)
    changed = sum(isinstance(i, Linear) and i.activation == kind for i in subject.instructions)
    details: dict[str, Figure] = {}
    for number, program in ((0, subject.program), (len(ways) - 1, without)):
        key, label, figures = ways[number]
        subject.progress(f"activation: {len(subject.inputs)} inputs, {label}")
        mine, floats = _model_figures(subject, program)
        ways[number] = (key, label, figures | mine)
        details |= {f"float_{name}": figure for name, figure in floats.items()}
    return Technique(
        KEY, f"{TITLE}: {kind.name}", f"{changed} LINEARs with {kind.name}, {len(subject.inputs)} inputs",
        tuple(Way(key, label, figures, ours=key == "ours") for key, label, figures in ways), details, NOTES,
    )  # fmt: skip


def _float(x: NDArray, kind: Activation) -> NDArray:
    if kind == Activation.GELU:
        return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    return np.asarray(x / (1 + np.exp(-x)))


def _errors(got: NDArray, want: NDArray, how: How) -> dict[str, Figure]:
    error = np.abs(got - want)
    return {
        "max_error": Figure(float(error.max()), "absolute", how),
        "rms_error": Figure(float(np.sqrt((error**2).mean())), "absolute", how),
    }


def _size(entries: int, bits: int) -> dict[str, Figure]:
    return {
        "entries": Figure(entries, "entries", How.COMPUTED),
        "table_bits": Figure(bits, "bits", How.COMPUTED),
    }


def _interpolated(x: NDArray, want: NDArray, kind: Activation, reach: int, index: int) -> dict[str, Figure]:
    """A table of 2**index nodes and differences of the function over -reach ... reach - 1."""
    shift = (2 * reach).bit_length() - 1 - index
    starts = (np.arange((1 << index) + 1, dtype=np.int64) << shift) - reach
    nodes = np.round(_float(starts / (1 << FRACTION), kind) * (1 << DELTA_FRACTION)).astype(np.int64)
    base, slope = nodes[:-1], np.diff(nodes)
    offset = x + reach
    i, fraction = offset >> shift, offset & ((1 << shift) - 1)
    y = round_shift(base[i] + round_shift(slope[i] * fraction, shift), DELTA_FRACTION - FRACTION)
    width = _signed_width(base) + _signed_width(slope)
    return _errors(y / (1 << FRACTION), want, How.COMPUTED) | _size(1 << index, width << index)


def _lookup(x: NDArray, want: NDArray, kind: Activation, reach: int, index: int) -> dict[str, Figure]:
    """A table of 2**index values in the output's own format; an input takes the value of its interval's middle."""
    shift = (2 * reach).bit_length() - 1 - index
    middle = (np.arange(1 << index) << shift) - reach + ((1 << shift) - 1) / 2
    values = np.round(_float(middle / (1 << FRACTION), kind) * (1 << FRACTION)).astype(np.int64)
    y = values[(x + reach) >> shift]
    return _errors(y / (1 << FRACTION), want, How.COMPUTED) | _size(1 << index, _signed_width(values) << index)


def _signed_width(values: NDArray) -> int:
    return max(int(values.max()), int(-values.min()) - 1, 0).bit_length() + 1


def _with_relu(subject: Subject, kind: Activation) -> Program:
    """The compiled program with RELU for ``kind``."""
    changed = [
        dataclasses.replace(i, activation=int(Activation.RELU))
        if isinstance(i, Linear) and i.activation == kind
        else i
        for i in subject.instructions
    ]
    return patched(subject.program, subject.task, changed)


def _model_figures(subject: Subject, program: Program) -> tuple[dict[str, Figure], dict[str, Figure]]:
    """A program's outputs on all inputs beside the float model's and, where it is known, the truth; and how near the
    float model comes to that."""
    task = program.tasks[0]
    result = simulate(program, subject.inputs, backend="isa")
    mine: dict[str, Figure] = {}
    floats: dict[str, Figure] = {}
    for y in task.outputs:
        got, want, extra = result.outputs[y.name], subject.floats[y.name], subject.inputs.extra
        found: dict[str, float] = {}
        labels = extra.get("labels")
        if got.ndim == 2 and got.shape[1] > 1 and labels is not None and labels.shape == (len(got),):
            found |= metrics.classification(got, want, labels)
        target = extra.get(y.name, extra.get("targets") if len(task.outputs) == 1 else None)
        if target is not None:
            found |= metrics.against_target(got, want, target)
        prefix = "" if len(task.outputs) == 1 else f"{y.name}_"
        error = metrics.distance(got, want)["relative_rms_err"]
        mine[f"{prefix}model_error"] = Figure(error, "relative RMS", How.ISA)
        for name, value in found.items():
            figure, _, of = name.rpartition("_")
            if of == "int8":
                mine[prefix + figure] = Figure(value, _UNITS[figure], How.ISA)
            elif of == "float":
                floats[prefix + figure] = Figure(value, _UNITS[figure], How.FLOAT)
    return mine, floats


_UNITS = {"top1": "share right", "miou": "mean IoU", "rmse": "output units"}
