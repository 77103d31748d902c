"""Post-training quantisation: float stages and calibrated ranges to integers.

Weights int8 symmetric per output channel; 8-bit activations per tensor, uint8 with a zero point where one-sided;
residual stream int16, one scale for all tensors that are added to each other. Zero points are folded into the
next layer's bias, the attention's 1/sqrt(d) and log2(e) into the requantisation of the scores, a gate's log2(e) into
that of its logits. Gate and experts see the same 8-bit rows; each expert has a scale of its own inside.

What a quantised model states is taken as it stands: weights that are integers times a scale, and the formats of tensors
that have 8 bits here too.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.calibrate import Range
from moevit.compiler.ir import Given, MoE
from moevit.compiler.ptq.grid import LOWEST, steps_of
from moevit.compiler.stages import AttentionStage, EmbedStage, LinearStage, MoeStage, Stage, Stages
from moevit.config import AcceleratorConfig
from moevit.errors import BeyondRangeError, UnsupportedNode
from moevit.layout import ceil_div
from moevit.numerics import activation as act
from moevit.numerics import layernorm, softmax
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import BIAS_WIDTH, MID_WIDTH, quantise_scale, quantise_scales, saturate
from moevit.numerics.route import LOGIT_FRACTION, SCORE_FRACTION, SCORE_WIDTH, RouteOrder

INT16_HEADROOM = 2.0  #: residual and output scales leave room for twice the calibrated peak
WEIGHT_MAX = 127
MID_LIMIT = 2.0 ** (MID_WIDTH - 1 - act.FRACTION)  #: of an activation's input
SCORE_LIMIT = math.log(2) * 2.0 ** (softmax.SCORE_WIDTH - 1 - softmax.SCORE_FRACTION)  #: times the attention's scale
LOGIT_LIMIT = math.log(2) * 2.0 ** (MID_WIDTH - 1 - LOGIT_FRACTION)  #: of a gate

ACTIVATIONS = {"relu": Activation.RELU, "gelu": Activation.GELU, "gelu_tanh": Activation.GELU,
               "silu": Activation.SILU}  # fmt: skip
ORDERS = {"softmax_topk": RouteOrder.SOFTMAX_TOPK, "topk_softmax": RouteOrder.TOPK_SOFTMAX}


@dataclass(frozen=True)
class Format:
    """A tensor's integer format: real = (q - zero_point) * scale."""

    dtype: str
    scale: float
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class NormConstants:
    """Loader constants of a stage whose input is int16: LayerNorm, or affine when ``length`` constants are None."""

    gamma: NDArray[np.int64]
    beta: NDArray[np.int64]
    shift: int
    row: layernorm.RowConstants | None


@dataclass(frozen=True, eq=False)
class QuantisedLinear:
    """A matrix of a stage in integers, and what happens before and after; channels are padded and ordered as the
    machine has them."""

    stage: Stage
    weight: NDArray[np.int8]  #: [out, in]
    bias: NDArray[np.int64]
    mult: NDArray[np.int64]
    shift: NDArray[np.int64]
    signed: bool
    norm: NormConstants | None
    activation: Activation
    second: tuple[int, int, int]  #: mult, shift, zero point after an activation
    output: Format
    key_channels: int  #: padded channels before K; all when there is no K
    value_channels: int  #: padded channels before V


@dataclass(frozen=True, eq=False)
class QuantisedAttention:
    """An attention stage in integers."""

    stage: AttentionStage
    score: tuple[int, int]
    out: tuple[int, int]
    output: Format


@dataclass(frozen=True, eq=False)
class QuantisedMoe:
    """A mixture of experts in integers."""

    stage: MoeStage
    gate: QuantisedLinear  #: its outputs are base-2 logits
    experts: tuple[tuple[QuantisedLinear, QuantisedLinear], ...]  #: up and down of each
    order: RouteOrder
    threshold: int
    rows: Format  #: 8-bit, of what the gate and the experts see
    output: Format


QuantisedStage = QuantisedLinear | QuantisedAttention | QuantisedMoe


@dataclass(frozen=True, eq=False)
class Quantised:
    """All stages in integers, and the formats of all tensors between them."""

    stages: tuple[QuantisedStage, ...]
    formats: dict[str, Format]
    base: dict[str, NDArray[np.int64]]  #: int16 constants that embedding outputs start from, by tensor


def image_format(r: Range) -> Format:
    """uint8 of an input. Pixels in [0, 1] keep their own steps of 1/255 exactly."""
    if r.low >= 0 and r.high <= 1:
        return Format("uint8", 1 / 255)
    span = max(r.high - r.low, 1e-6)
    scale = span / 255
    return Format("uint8", scale, int(np.clip(round(-r.low / scale), 0, 255)))


def residual_format(peak: float) -> Format:
    """int16 of the residual stream, of what a norm reads, and of outputs."""
    return Format("int16", peak * INT16_HEADROOM / 32767)


def _int8(r: Range) -> Format:
    return Format("int8", r.peak / 127)


def _unsigned(given: Given) -> Format:
    """uint8 with the very steps that a model states."""
    return Format("uint8", given.scale, given.zero_point - given.low)


def _signed(given: Given) -> Format:
    """int8 with the very steps that a model states where zero lies in their middle; else a range that covers it."""
    reach = max(given.zero_point - given.low, given.high - given.zero_point)
    return Format("int8", given.scale * (1 if reach <= 128 else reach / 127))


def _either(given: Given) -> Format:
    """The very steps that a model states, where int8 and uint8 can be read."""
    symmetric = _signed(given)
    return symmetric if symmetric.scale == given.scale else _unsigned(given)


def given_of(stages: Stages, tensor: str) -> Given | None:
    """The format that the model states of a tensor that has 8 bits in the machine, where it has 8 there too."""
    op = stages.graph.producer(tensor)
    source = op or next((i for i in stages.graph.inputs if i.name == tensor), None)
    return narrow(source.given) if source is not None else None


def narrow(given: Given | None) -> Given | None:
    """A format that the machine's 8 bits can hold."""
    held = given is not None and given.high - given.low <= 255 and given.low <= given.zero_point <= given.high
    return given if held else None


def given_hidden(op: MoE, expert: int) -> Given | None:
    """As :func:`given_of`, of what an expert's activation gives."""
    return narrow(op.given_hidden[expert]) if op.given_hidden else None


def _one_sided(r: Range) -> Format:
    scale = max(r.high - r.low, 1e-6) / 255
    return Format("uint8", scale, int(np.clip(round(-r.low / scale), 0, 255)))


def choose_formats(stages: Stages, ranges: dict[str, Range]) -> dict[str, Format]:
    """The format of every tensor between stages."""
    outputs = {o.tensor for o in stages.graph.outputs}
    wide: set[str] = set(outputs)
    group: dict[str, str] = {}

    def root(t: str) -> str:
        while group.get(t, t) != t:
            t = group[t]
        return t

    for s in stages.stages:
        if isinstance(s, EmbedStage):
            wide.add(s.output)
        if isinstance(s, LinearStage | MoeStage) and s.norm is not None:
            wide.add(s.x)
        if isinstance(s, LinearStage | MoeStage) and s.residual is not None:
            wide |= {s.residual, s.output}
            group[root(s.residual)] = root(s.output)
    peaks: dict[str, float] = {}
    for t in wide & set(ranges):  # rows that a mixture of experts starts from have no values of their own
        peaks[root(t)] = max(peaks.get(root(t), 0.0), ranges[t].peak)

    def chosen(tensor: str, of: Callable[[Given], Format], otherwise: Callable[[Range], Format]) -> Format:
        given = given_of(stages, tensor)
        return of(given) if given is not None else otherwise(ranges[tensor])

    formats = {
        i.name: residual_format(peaks[root(i.name)]) if i.name in wide else chosen(i.name, _unsigned, image_format)
        for i in stages.graph.inputs
    }
    for s in stages.stages:
        if s.output in wide:
            formats[s.output] = residual_format(peaks[root(s.output)])
        elif isinstance(s, LinearStage) and s.activation is not None:
            formats[s.output] = chosen(s.output, _unsigned, _one_sided)
        else:
            formats[s.output] = chosen(s.output, _signed, _int8)
        if isinstance(s, LinearStage) and s.key is not None and s.value is not None:
            formats[s.key], formats[s.value] = (chosen(t, _signed, _int8) for t in (s.key, s.value))
    return formats


def quantise(
    stages: Stages, ranges: dict[str, Range], config: AcceleratorConfig, only: Collection[str] | None = None
) -> Quantised:
    """Quantise every stage for ``config`` (whose columns decide the padding of attention heads).

    With ``only``, the stages of these names alone; the formats are still those of all tensors.

    Raises
    ------
    BeyondRangeError
        Values inside of stages reach beyond what the machine holds. It has all of them.
    """
    some = [s for s in stages.stages if only is None or s.name in only]
    _need_held(stages, some, ranges)
    formats = choose_formats(stages, ranges)
    out: list[QuantisedStage] = []
    base: dict[str, NDArray[np.int64]] = {}
    kept = stages.graph.integer_weights
    heads = {s.output: (s.heads, s.head_dim) for s in stages.stages if isinstance(s, AttentionStage)}
    for s in some:
        if isinstance(s, AttentionStage):
            out.append(_attention(s, formats))
        elif isinstance(s, EmbedStage):
            scale = formats[s.output].scale
            base[s.output] = saturate(np.round(s.base / scale), 16)
            out.append(_linear(s, formats[s.x], None, formats, None, config, kept))
        elif isinstance(s, LinearStage):
            out.append(_linear(s, *_load_format(stages, s, formats, ranges), formats, heads.get(s.x), config, kept))
        elif isinstance(s, MoeStage):
            out.append(_moe(s, *_load_format(stages, s, formats, ranges), formats[s.output], ranges, config, kept))
    return Quantised(tuple(out), formats, base)


def _load_format(
    stages: Stages, s: LinearStage | MoeStage, formats: dict[str, Format], ranges: dict[str, Range]
) -> tuple[Format, NormConstants | None]:
    """What the array sees of a stage's input, and how the loader makes it."""
    stored = formats[s.x]
    if s.norm is not None:
        assert s.norm_output is not None
        given = given_of(stages, s.norm_output)
        seen = _int8(ranges[s.norm_output]) if given is None else _either(given)
        raised = s.norm.beta + seen.zero_point * seen.scale  # what the array sees is q, not q - zero point
        gamma, beta, shift = layernorm.quantise_affine(s.norm.gamma, raised, seen.scale)
        row = layernorm.RowConstants.of(len(s.norm.gamma), s.norm.eps, stored.scale, shift)
        return seen, NormConstants(gamma, beta, shift, row)
    if stored.dtype == "int16":  # x * gamma is the 8-bit value: affine's "normal" is the row itself
        given = given_of(stages, s.x)
        seen = _int8(ranges[s.x]) if given is None else _either(given)
        length = (s.weight if isinstance(s, LinearStage) else s.moe.gate_weight).shape[1]
        ratio = stored.scale / seen.scale * 2.0**layernorm.NORMAL_FRACTION
        raised = np.full(length, float(seen.zero_point))
        gamma, beta, shift = layernorm.quantise_affine(np.full(length, ratio), raised, 1.0)
        return seen, NormConstants(gamma, beta, shift, None)
    return stored, None


def _pad_heads(rows: NDArray, heads: int, head_dim: int, padded: int) -> NDArray:
    """Rows [heads * head_dim, ...] to [heads * padded, ...], zeros between."""
    shaped = rows.reshape(heads, head_dim, *rows.shape[1:])
    padding = [(0, 0), (0, padded - head_dim)] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(shaped, padding).reshape(heads * padded, *rows.shape[1:])


def head_padding(head_dim: int, config: AcceleratorConfig) -> int:
    """Channels that a head takes in memory: its own, up to whole column tiles."""
    return ceil_div(head_dim, config.columns) * config.columns


def _linear(
    s: LinearStage | EmbedStage, seen: Format, norm: NormConstants | None, formats: dict[str, Format],
    heads: tuple[int, int] | None, config: AcceleratorConfig, kept: bool,
) -> QuantisedLinear:  # fmt: skip
    weight, bias = s.weight.astype(np.float64), s.bias.astype(np.float64)
    output = formats[s.output]
    kind = ACTIVATIONS[s.activation] if isinstance(s, LinearStage) and s.activation else Activation.NONE
    mid_scale = np.full(len(weight), 2.0**-act.FRACTION if kind else output.scale)
    channels = len(weight)
    key = value = ceil_div(channels, config.columns) * config.columns
    weight = _spread_input(weight, heads, config)
    if isinstance(s, LinearStage) and s.heads:
        assert s.key is not None and s.value is not None
        padded = head_padding(s.head_dim, config)
        scales = np.repeat([output.scale, formats[s.key].scale, formats[s.value].scale], s.heads * s.head_dim)
        weight, bias, mid_scale = (_pad_heads(a, 3 * s.heads, s.head_dim, padded) for a in (weight, bias, scales))
        key, value = s.heads * padded, 2 * s.heads * padded
    return QuantisedLinear(
        s, *_integers(weight, bias, seen, mid_scale, kept), seen.dtype == "int8", norm, kind,
        _second(kind, output), output, key, value,
    )  # fmt: skip


def _second(kind: Activation, output: Format) -> tuple[int, int, int]:
    """POST's second stage: multiplier, shift and zero point after an activation."""
    return (*_clipped_scale(2.0**-act.FRACTION / output.scale), output.zero_point) if kind else (0, 0, 0)


def _clipped_scale(scale: float) -> tuple[int, int]:
    return quantise_scale(float(_clipped(np.array(scale))))


def _clipped(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest scales that there are: with less, every result is zero, and with more it saturates."""
    return np.clip(scale, 2.0**-46, 2.0**15)


def _integers(
    weight: NDArray, bias: NDArray, seen: Format, mid_scale: NDArray, kept: bool
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Weight, bias, multiplier and shift of rows ``x @ weight.T + bias``, x as ``seen``, in steps of ``mid_scale``.

    With ``kept``, rows that are integers times a scale keep both.
    """
    peak = np.abs(weight).max(axis=1)
    limit = (1 << (BIAS_WIDTH - 1)) - 1
    scale = np.where(peak > 0, peak, 1.0) / WEIGHT_MAX
    lowest = np.full(len(weight), -WEIGHT_MAX)
    if kept:
        steps = steps_of(weight)
        scale = np.where(steps > 0, steps, scale)
        lowest = np.where(steps > 0, LOWEST, lowest)
    # where a bias dwarfs its row's weights it decides the row's scale, and the weights round to little or nothing
    scale = np.maximum(scale, np.abs(bias) / (seen.scale * (limit >> 1)))
    q = np.clip(np.round(weight / scale[:, None]), lowest[:, None], WEIGHT_MAX)
    acc_scale = scale * seen.scale
    q_bias = np.round(bias / acc_scale) - seen.zero_point * q.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mid_scale > 0, acc_scale / np.where(mid_scale > 0, mid_scale, 1), 1.0)
    # a channel of zeros has no meaningful scale
    mult, shift = quantise_scales(_clipped(ratio))
    return q.astype(np.int8), q_bias.astype(np.int64), mult, shift


def _need_held(stages: Stages, some: Iterable[Stage], ranges: dict[str, Range]) -> None:
    """Refuse what POST would saturate: an activation's input by more than clipping at a high percentile would, scores
    of which then several would seem equally likely, and a gate's logits."""
    problems: list[tuple[UnsupportedNode, tuple[str, ...]]] = []

    def need(s: Stage, op: str, reach: float, limit: float, what: str, way_out: str, room: float = 1.0) -> None:
        if reach > limit * room:
            made = stages.graph.producer(s.moe.output if isinstance(s, MoeStage) else s.output)
            reason = f"{what} {reach:.4g}; the machine holds {limit:.4g}"
            name = ", ".join(s.source) or s.name
            node = UnsupportedNode(name=name, op=op, reason=reason, way_out=way_out)
            problems.append((node, made.source if made is not None else ()))

    def need_hidden(s: Stage, reach: float) -> None:
        way_out = "scale the weights before it down, and those after it up"
        need(s, "Activation", reach, MID_LIMIT, "its activation reaches", way_out, room=1.25)

    for s in some:
        if isinstance(s, LinearStage) and s.activation:
            need_hidden(s, ranges[s.output].high)
        elif isinstance(s, AttentionStage):
            reach = ranges[f"{s.output}#scores"].high
            need(s, "Attention", reach, SCORE_LIMIT, "its scores reach", "scale the weights of its queries down")
        elif isinstance(s, MoeStage):
            need_hidden(s, max(ranges[f"{s.moe.output}#hidden.{e}"].high for e in range(s.moe.experts)))
            reach = ranges[f"{s.moe.output}#logits"].peak
            need(s, "MoE", reach, LOGIT_LIMIT, "its gate's logits reach", "scale the gate's weights down")
    if problems:
        raise BeyondRangeError([node for node, _ in problems], [sources for _, sources in problems])


def _moe(
    s: MoeStage, seen: Format, norm: NormConstants | None, output: Format, ranges: dict[str, Range],
    config: AcceleratorConfig, kept: bool,
) -> QuantisedMoe:  # fmt: skip
    op = s.moe

    def matrix(
        weight: NDArray, bias: NDArray, given: Format, step: float, kind: Activation, to: Format,
        loads: NormConstants | None = None,
    ) -> QuantisedLinear:  # fmt: skip
        whole = ceil_div(len(weight), config.columns) * config.columns
        integers = _integers(weight.astype(np.float64), bias.astype(np.float64), given,
                             np.full(len(weight), step), kept)  # fmt: skip
        return QuantisedLinear(s, *integers, given.dtype == "int8", loads, kind, _second(kind, to), to, whole, whole)

    def expert(e: int) -> tuple[QuantisedLinear, QuantisedLinear]:
        given = given_hidden(op, e)
        hidden = _one_sided(ranges[f"{op.output}#hidden.{e}"]) if given is None else _unsigned(given)
        return (
            matrix(op.up_weight[e], op.up_bias[e], seen, 2.0**-act.FRACTION, ACTIVATIONS[op.activation], hidden),
            matrix(op.down_weight[e], op.down_bias[e], hidden, output.scale, Activation.NONE, output),
        )

    step = math.log(2) * 2.0**-LOGIT_FRACTION
    gate = matrix(op.gate_weight, op.gate_bias, seen, step, Activation.NONE, Format("int8", 1.0), norm)
    threshold = min(round(op.threshold * (1 << SCORE_FRACTION)), (1 << SCORE_WIDTH) - 1)
    experts = tuple(expert(e) for e in range(op.experts))
    return QuantisedMoe(s, gate, experts, ORDERS[op.order], threshold, seen, output)


def _spread_input(weight: NDArray, heads: tuple[int, int] | None, config: AcceleratorConfig) -> NDArray:
    """Weights for an input whose heads are padded in memory (an attention's output): zero columns between."""
    if heads is None:
        return weight
    count, head_dim = heads
    return _pad_heads(weight.T, count, head_dim, head_padding(head_dim, config)).T


def _attention(s: AttentionStage, formats: dict[str, Format]) -> QuantisedAttention:
    q, k, v, out = (formats[t].scale for t in (s.x, s.key, s.value, s.output))
    score = q * k * s.scale * math.log2(math.e) * (1 << softmax.SCORE_FRACTION)
    return QuantisedAttention(s, _clipped_scale(score), _clipped_scale(s.mass * v / out), formats[s.output])
