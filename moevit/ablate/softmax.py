"""Single-pass softmax: what it costs in accuracy, and what it saves in passes over the scores.

All ways get the same Q, K and V, the model's own integers, and are held to the softmax in float64 of them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.ablate.result import Figure, How, NotApplicableError, Technique, Way
from moevit.ablate.subject import Subject
from moevit.isa import Attention
from moevit.numerics import softmax
from moevit.numerics.fixed import requantise, saturate
from moevit.numerics.matmul import int_matmul
from moevit.program import Layer
from moevit.sim.inputs import quantise
from moevit.sim.reference import attend, run_reference

KEY = "softmax"
TITLE = "Single-pass softmax"

BATCH = 16  #: images whose tensors are held at a time
ROUNDED = "output_error"
UNROUNDED = "context_error"

NOTES = (
    "Errors are of P.V over all attention layers and inputs, relative to the RMS of P.V with the float softmax of the "
    "same int8 Q, K and V: before P.V is rounded to int8 and after. All ways see the machine's 16-bit "
    "scores.",
    "Passes count the score tensor; the row buffer holds one row tile: 16-bit scores where they are read again, 8-bit "
    "probabilities where they are made at once. Both twice, so that the next tile can start. Traffic is that of all "
    "attention layers of one image, writing and reading.",
)

LABELS = {
    "ours": "one pass: running maximum",
    "two_pass": "two passes: exact maximum, then 8 bits",
    "three_pass": "three passes: normalised, then 8 bits",
    "float": "float probabilities of the same scores",
}
PASSES = {"ours": 1, "two_pass": 2, "three_pass": 3, "float": 3}


def run(subject: Subject) -> Technique:
    """Measure on every attention layer and every input."""
    layers = [layer for layer in subject.task.layers if layer.kind == "attention"]
    if not layers:
        raise NotApplicableError("the model has no attention")
    errors = {key: _Error() for key in LABELS}
    same = True
    for first in range(0, len(subject.inputs), BATCH):
        end = min(first + BATCH, len(subject.inputs))
        subject.progress(f"softmax: inputs {first} to {end - 1}")
        tensors = run_reference(
            subject.program, subject.task, quantise(subject.task, subject.inputs.floats(first, end))
        )
        for layer in layers:
            same &= _measure(subject, layer, tensors, errors)
    ways = tuple(
        Way(key, label, _figures(subject, layers, key, errors[key]), ours=key == "ours")
        for key, label in LABELS.items()
    )
    return Technique(
        KEY, TITLE, f"{len(layers)} attention layers, {len(subject.inputs)} inputs", ways, notes=NOTES,
        checks={"ours: it is the context that the model goes on with": same},
    )  # fmt: skip


@dataclass
class _Error:
    """Sums of squares: of the difference before and after rounding, and of the truth."""

    unrounded: float = 0.0
    rounded: float = 0.0
    power: float = 0.0

    def add(self, got: NDArray, want: NDArray, scale: float, written: NDArray | None = None) -> None:
        """P.V in V's steps, and as int8; ``scale`` brings V's steps to those."""
        if written is None:
            written = np.clip(np.floor(got * scale + 0.5), -128, 127)
        self.unrounded += float(((got - want) ** 2).sum())
        self.rounded += float(((written / scale - want) ** 2).sum())
        self.power += float((want**2).sum())


def _measure(subject: Subject, layer: Layer, tensors: dict[str, NDArray], errors: dict[str, _Error]) -> bool:
    """Add one layer's errors; returns whether what is called ours is what the reference computed."""
    a = subject.instructions[layer.instructions[0]]
    assert isinstance(a, Attention)
    lanes = subject.config.columns
    q, k, v = (_heads(tensors[name], a, lanes) for name in layer.inputs)
    q, k, v = q[:, :, layer.input_row :][:, :, : a.n_rows], k[:, :, : a.n_keys], v[:, :, : a.n_keys]
    acc = int_matmul(q, np.swapaxes(k, -1, -2), 128)
    exact = acc * (a.score_mult * 2.0 ** (-a.score_shift - softmax.SCORE_FRACTION))  # base-2 exponents
    want = _probabilities(exact) @ v
    scores = saturate(requantise(acc, 0, a.score_mult, a.score_shift), softmax.SCORE_WIDTH)
    exponents = scores * 2.0**-softmax.SCORE_FRACTION
    scale = a.out_mult * 2.0**-a.out_shift
    single, row_sum = softmax.softmax(scores, lanes)
    powers = 2.0 ** (exponents - exponents.max(axis=-1, keepdims=True))
    two = np.floor(powers * 255 + 0.5)
    normal = _probabilities(exponents)
    three = np.minimum(np.floor(normal * 256 + 0.5), 255)
    contexts = {
        "ours": int_matmul(single, v) / row_sum[..., None],
        "two_pass": (two @ v) / two.sum(axis=-1, keepdims=True),
        "three_pass": (three @ v) / 256,
        "float": normal @ v,
    }
    mine = attend(q, k, v, a, lanes)  # with the machine's reciprocal
    for key, got in contexts.items():
        errors[key].add(got, want, scale, mine if key == "ours" else None)
    whole = _heads(tensors[layer.outputs[0]], a, lanes)[:, :, layer.output_row :][:, :, : a.n_rows]
    return np.array_equal(mine, whole)


def _probabilities(exponents: NDArray) -> NDArray:
    powers = 2.0 ** (exponents - exponents.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _heads(x: NDArray, a: Attention, lanes: int) -> NDArray:
    """[B, rows, channels] to [B, heads, rows, head_dim]."""
    padded = layout.ceil_div(a.head_dim, lanes) * lanes
    split = x[..., : a.heads * padded].reshape(*x.shape[:2], a.heads, padded)
    return split[..., : a.head_dim].swapaxes(1, 2)


def _figures(subject: Subject, layers: list[Layer], key: str, error: _Error) -> dict[str, Figure]:
    attentions = [subject.instructions[layer.instructions[0]] for layer in layers]
    scores = sum(a.heads * a.n_rows * a.n_keys for a in attentions)  # type: ignore[attr-defined]
    longest = max(a.n_keys for a in attentions)  # type: ignore[attr-defined]
    one = key == "ours"
    size = 1 if one else 2  # bytes of what is kept of a score
    reads = 1 if one else PASSES[key]
    values = How.REFERENCE
    figures = {
        UNROUNDED: Figure(math.sqrt(error.unrounded / error.power), "relative RMS", values),
        ROUNDED: Figure(math.sqrt(error.rounded / error.power), "relative RMS", values),
    }
    if key == "float":
        return figures
    return figures | {
        "passes": Figure(PASSES[key], "passes over the scores", How.COMPUTED),
        "row_buffer": Figure(2 * subject.config.rows * longest * size, "bytes", How.COMPUTED),
        "traffic": Figure(scores * size * (1 + reads), "bytes", How.COMPUTED),
    }
