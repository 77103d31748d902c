"""One unit for all layers, against a unit for each kind of layer.

The cycles of each layer are those of the compiled model on the RTL. What separate units would do with them is computed.
"""

import math
from collections.abc import Sequence

from moevit.ablate.result import Figure, How, NotApplicableError, Technique, Way
from moevit.ablate.subject import Subject
from moevit.isa import Instruction, Linear
from moevit.numerics.activation import Activation
from moevit.program import Layer, Task
from moevit.sim.simulate import simulate

KEY = "unified"
TITLE = "One unit for all layers"

PATCH, PROJECTION, ATTENTION, MLP, EXPERTS, GATE, HEAD = (
    "patch embedding", "projections", "attention", "MLP", "experts", "gates", "heads",
)  # fmt: skip
KINDS = (PATCH, PROJECTION, ATTENTION, MLP, EXPERTS, GATE, HEAD)

NOTES = (
    "Separate units are computed from the cycles that each layer adds on the RTL: at batch 1 every layer needs the one "
    "before, so one unit works at a time; a unit with a part of the multipliers takes as many times longer.",
    "'Shared out' gives each kind the share of the multipliers for which the image is done soonest (in proportion to "
    "the square root of its cycles). Both favour the plain way: rounding, buffers between units and smaller tiles cost "
    "nothing.",
    "A multiplier counts as idle in a cycle in which it does no multiplication of the model. With many images in "
    "flight separate units would idle less, but each image would take no less time.",
)


def run(subject: Subject) -> Technique:
    """Run the model on the RTL and share its cycles out to kinds of layers."""
    subject.progress("unified: the model on the RTL")
    result = simulate(subject.program, subject.first, backend="rtl", check=True)
    assert result.layers is not None and result.cycles is not None
    of = kinds(subject.task, subject.instructions)
    cycles = dict.fromkeys(KINDS, 0.0)
    for layer in result.layers:
        if layer.name in of:
            cycles[of[layer.name]] += layer.cycles
    cycles = {kind: n for kind, n in cycles.items() if n}
    if len(cycles) < 2:
        raise NotApplicableError("the model has one kind of layer only")
    multipliers = subject.config.macs_per_cycle
    whole = result.cycles[0]
    rest = whole - sum(cycles.values())  # moving data in and out
    shared = sum(math.sqrt(n) for n in cycles.values()) ** 2 + rest
    ways = (
        _way("ours", "one unit for all kinds", multipliers, whole, result.macs, How.RTL, ours=True),
        _way("each_as_large", f"{len(cycles)} units, each as large", len(cycles) * multipliers, whole, result.macs,
             How.COMPUTED),
        _way("shared_out", f"{len(cycles)} units, multipliers shared out", multipliers, shared, result.macs,
             How.COMPUTED),
    )  # fmt: skip
    parts = cycles | {"data in and out": rest}
    return Technique(
        KEY, TITLE, "the whole model, one input", ways,
        details={kind: Figure(round(n), "cycles", How.RTL) for kind, n in parts.items()},
        notes=NOTES,
        checks={"every tensor is the reference's": bool(result.bit_exact)},
    )  # fmt: skip


def _way(
    key: str, label: str, multipliers: int, cycles: float, macs: int, how: How, ours: bool = False
) -> Way:
    figures = {
        "multipliers": Figure(multipliers, "multiply-accumulates a cycle", How.COMPUTED),
        "cycles": Figure(round(cycles), "cycles", how),
        "idle": Figure(1 - macs / (multipliers * cycles), "share of multiplier cycles", how),
    }
    return Way(key, label, figures, ours)


def kinds(task: Task, instructions: Sequence[Instruction]) -> dict[str, str]:
    """The kind of each layer that multiplies, by name; found from what it reads and writes."""
    maker = {name: layer for layer in task.layers for name in layer.outputs}
    feeds_attention = {name for layer in task.layers if layer.kind == "attention" for name in layer.inputs}

    def activated(layer: Layer | None) -> bool:
        linears = [instructions[n] for n in layer.instructions] if layer is not None else []
        return any(isinstance(i, Linear) and i.activation != Activation.NONE for i in linears)

    def kind(layer: Layer) -> str | None:
        if layer.kind in ("route", "gather", "scatter", "attention"):
            return {"route": GATE, "attention": ATTENTION}.get(layer.kind, EXPERTS)
        if layer.kind != "linear":
            return None
        source = maker.get(layer.inputs[0])
        if source is not None and source.kind == "patches":
            return PATCH
        if feeds_attention & set(layer.outputs) or (source is not None and source.kind == "attention"):
            return PROJECTION
        return MLP if activated(layer) or activated(source) else HEAD

    found = {layer.name: kind(layer) for layer in task.layers}
    return {name: k for name, k in found.items() if k is not None}
