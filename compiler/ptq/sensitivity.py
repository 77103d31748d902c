"""What the quantisation of each stage alone costs: at the stage's own output and at the model's.

A stage computes in integers on inputs that are exact up to their own rounding; everything before and after it is
float. So the figures say which layer to look at, and they do not depend on each other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import interpret
from moevit.compiler.ir import Array, Graph, MoE
from moevit.compiler.ptq.emulate import Emulator
from moevit.compiler.quantise import Quantised, QuantisedStage
from moevit.compiler.stages import AttentionStage, LinearStage, Stages, reads
from moevit.config import AcceleratorConfig

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Errors that one stage's quantisation causes.

    ``local_sqnr_db`` is the signal's power over the error's at the stage's output, ``sqnr_db`` the same at the
    model's outputs, ``cosine`` the mean cosine there, over images.
    """

    stage: str
    kind: str
    local_sqnr_db: float
    sqnr_db: float
    cosine: float


def sqnr_db(got: Floats, want: Floats) -> float:
    """Signal to quantisation noise, in decibels; 120 at most."""
    noise = float(np.square(got.astype(np.float64) - want).sum())
    power = float(np.square(want.astype(np.float64)).sum())
    return 10 * float(np.log10(max(power, 1e-30) / max(noise, power * 1e-12, 1e-30)))


def rerun(graph: Graph, tensors: Mapping[str, Array], changed: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors of the float graph when some have other values."""
    out = dict(tensors) | dict(changed)
    dirty = set(changed)
    for op in graph.ops:
        if op.output not in changed and dirty.intersection(op.inputs):
            operands = [out[i] for i in op.inputs]
            result = interpret.mixture(op, operands[0]) if isinstance(op, MoE) else interpret.evaluate(op, *operands)
            out[op.output] = result.astype(np.float32, copy=False)
            dirty.add(op.output)
    return out


def sensitivity(
    stages: Stages, quantised: Quantised, config: AcceleratorConfig, inputs: Mapping[str, Floats],
    progress: Callable[[str], None] = lambda stage: None,
) -> Iterator[Sensitivity]:  # fmt: skip
    """Each stage's errors on inputs `(B, ...)`, in the order of computation."""
    graph, emulator = stages.graph, Emulator(stages, quantised, config)
    exact = interpret.run(graph, inputs)
    want = _joined(interpret.outputs(graph, exact))
    for q in quantised.stages:
        progress(q.stage.name)
        changed = alone(emulator, q, exact)
        got = _joined(interpret.outputs(graph, rerun(graph, exact, changed)))
        local = [(changed[t], exact[t]) for t in changed if t in exact]
        yield Sensitivity(
            stage=q.stage.name, kind=type(q.stage).__name__.removesuffix("Stage"),
            local_sqnr_db=min((sqnr_db(a, b) for a, b in local), default=120.0),
            sqnr_db=sqnr_db(got, want), cosine=_cosine(got, want),
        )  # fmt: skip


def alone(emulator: Emulator, q: QuantisedStage, exact: Mapping[str, Array]) -> dict[str, Array]:
    """The real values of a stage's outputs when its inputs are the float model's."""
    given = {t: emulator.encode(t, _value(emulator, t, exact)) for t in reads(q.stage)}
    s = q.stage
    if isinstance(s, AttentionStage):  # in the machine, q has rows of which no queries are made
        given[s.x] = np.pad(given[s.x], ((0, 0), (s.row, 0), (0, 0)))
    return emulator.real(emulator.step(q, given))


def _value(emulator: Emulator, tensor: str, exact: Mapping[str, Array]) -> Array:
    """A tensor of the float model, or what a stage adds that the model does not have: a copy of rows, or zeros."""
    if tensor in exact:
        return exact[tensor]
    made = next(s for s in emulator.stages.stages if s.output == tensor)
    assert isinstance(made, LinearStage)
    if made.residual:
        return exact[made.residual]
    return np.zeros((*exact[made.x].shape[:2], len(made.weight)), np.float32)


def _joined(outputs: Mapping[str, Floats]) -> NDArray[np.float64]:
    """All outputs of an image in one row, each scaled to the same power."""
    rows = [v.reshape(len(v), -1).astype(np.float64) for v in outputs.values()]
    return np.concatenate(rows, axis=1)


def _cosine(got: Floats, want: Floats) -> float:
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    return float(((got * want).sum(axis=1) / np.where(norms > 0, norms, 1)).mean())
