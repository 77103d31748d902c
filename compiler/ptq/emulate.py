"""Quantised stages run in integers on whole tensors, one stage at a time, with the operators of `moevit.numerics`.

The numbers are those of the machine; there are no addresses, tiles or instructions. So a stage can be judged before
anything is emitted: alone, on inputs that are exact, or behind all stages before it.
"""

from collections.abc import Mapping
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from moevit.compiler.quantise import (
    Format,
    Quantised,
    QuantisedAttention,
    QuantisedLinear,
    QuantisedMoe,
    QuantisedStage,
    head_padding,
)
from moevit.compiler.stages import AttentionStage, EmbedStage, LinearStage, Stages, reads
from moevit.config import AcceleratorConfig
from moevit.numerics import layernorm, softmax
from moevit.numerics.activation import Activation, activate
from moevit.numerics.fixed import requantise, rescale, saturate
from moevit.numerics.matmul import int_matmul
from moevit.numerics.route import apply_score, route

Integers = NDArray[np.int64]
Floats = NDArray[np.floating]

BITS = {"int8": (8, True), "uint8": (8, False), "int16": (16, True)}


def encode(values: Floats, f: Format) -> Integers:
    """Integers of real values, saturated."""
    return saturate(np.round(np.asarray(values, np.float64) / f.scale) + f.zero_point, *BITS[f.dtype])


def decode(values: Integers, f: Format) -> NDArray[np.float32]:
    """Real values of integers."""
    return ((values - f.zero_point) * f.scale).astype(np.float32)


class Emulator:
    """Runs the stages of a model for a machine.

    Tensors are `(B, rows, channels)` by name, without padding; an image input is `(B, C, H, W)`.

    Parameters
    ----------
    stages : Stages
    quantised : Quantised
        The same stages in integers.
    config : AcceleratorConfig
        Its columns decide where softmax's running maximum grows.
    """

    def __init__(self, stages: Stages, quantised: Quantised, config: AcceleratorConfig) -> None:
        self.stages, self.quantised, self.config = stages, quantised, config

    def encode(self, name: str, values: Floats) -> Integers:
        """A tensor's integers."""
        return encode(values, self.quantised.formats[name])

    def decode(self, name: str, values: Integers) -> NDArray[np.float32]:
        """A tensor's real values."""
        return decode(values, self.quantised.formats[name])

    def real(self, tensors: Mapping[str, Integers]) -> dict[str, NDArray[np.float32]]:
        """Real values of tensors, with those rows of queries, keys and values alone that the float model has."""
        out = {t: self.decode(t, values) for t, values in tensors.items()}
        for a in self.stages.stages:
            if isinstance(a, AttentionStage) and a.x in out:
                out[a.x] = out[a.x][:, a.row : a.row + a.rows]
                out |= {t: out[t][:, : a.keys] for t in (a.key, a.value) if t in out}
        return out

    def run(self, inputs: Mapping[str, Floats]) -> dict[str, Integers]:
        """Every tensor between stages, for real inputs `(B, ...)`."""
        tensors = {i.name: self.encode(i.name, inputs[i.name].reshape(-1, *i.shape)) for i in self.stages.graph.inputs}
        for q in self.quantised.stages:
            tensors |= self.step(q, tensors)
        return tensors

    def outputs(self, inputs: Mapping[str, Floats]) -> dict[str, NDArray[np.float32]]:
        """The model's outputs `(B, *model_shape)` by name; of other tensors only what is still to be read is held."""
        graph = self.stages.graph
        tensors = {i.name: self.encode(i.name, inputs[i.name].reshape(-1, *i.shape)) for i in graph.inputs}
        last = {name: q for q in self.quantised.stages for name in reads(q.stage)}
        kept = {o.tensor for o in graph.outputs}
        for q in self.quantised.stages:
            tensors |= self.step(q, tensors)
            for name in set(reads(q.stage)) - kept:
                if last[name] is q:
                    del tensors[name]
        return {o.name: o.arrange(self.decode(o.tensor, tensors[o.tensor])) for o in graph.outputs}

    def step(self, q: QuantisedStage, tensors: Mapping[str, Integers]) -> dict[str, Integers]:
        """The outputs of one stage, by name."""
        return _step(q, self, tensors)

    def unpadded(self, x: Integers, heads: int, head_dim: int) -> Integers:
        """Channels of heads without what fills each up to whole column tiles."""
        padded = head_padding(head_dim, self.config)
        return x.reshape(*x.shape[:-1], heads, padded)[..., :head_dim].reshape(*x.shape[:-1], -1)

    def padded(self, x: Integers, tensor: str, width: int) -> Integers:
        """The channels of a tensor that a matrix of ``width`` columns takes; an attention's result as it lies there."""
        if x.shape[-1] >= width:
            return x[..., :width]
        padding = [(0, 0)] * (x.ndim - 1)
        s = next(s for s in self.stages.stages if isinstance(s, AttentionStage) and s.output == tensor)
        shaped = x.reshape(*x.shape[:-1], s.heads, s.head_dim)
        return np.pad(shaped, [*padding, (0, 0), (0, width // s.heads - s.head_dim)]).reshape(*x.shape[:-1], width)


def loaded(q: QuantisedLinear, x: Integers) -> Integers:
    """What the loader makes of rows: int16 becomes 8 bits."""
    if q.norm is None:
        return x
    n = q.norm
    normal = x if n.row is None else layernorm.normalise(x, n.row)
    return layernorm.affine(normal, n.gamma, n.beta, n.shift, q.signed)


def product(q: QuantisedLinear, x: Integers) -> Integers:
    """Loaded rows times the matrix, after POST's first stage."""
    acc = int_matmul(x.reshape(-1, x.shape[-1]), q.weight.T)  # one product: BLAS is slow on many small ones
    return requantise(acc, q.bias, q.mult, q.shift).reshape(*x.shape[:-1], len(q.weight))


def finished(q: QuantisedLinear, mid: Integers) -> Integers:
    """POST's second stage."""
    if q.activation == Activation.NONE:
        return mid
    return rescale(activate(mid, q.activation), *q.second)


@singledispatch
def _step(q: QuantisedStage, emulator: Emulator, tensors: Mapping[str, Integers]) -> dict[str, Integers]:
    raise NotImplementedError(f"no emulation of {type(q).__name__}")


@_step.register
def _(q: QuantisedLinear, emulator: Emulator, tensors: Mapping[str, Integers]) -> dict[str, Integers]:
    s = q.stage
    bits = BITS[q.output.dtype]
    if isinstance(s, EmbedStage):
        base = emulator.quantised.base[s.output]
        tokens = np.repeat(base[None], len(tensors[s.x]), axis=0)
        patches = product(q, _patches(s, tensors[s.x]))
        rows = slice(s.first, s.first + patches.shape[1])
        tokens[:, rows] = saturate(tokens[:, rows] + patches, *bits)
        return {s.output: tokens}
    assert isinstance(s, LinearStage)
    x = emulator.padded(tensors[s.x][:, s.row : s.row + s.rows], s.x, q.weight.shape[1])
    mid = product(q, loaded(q, x))
    y = finished(q, mid[..., : q.key_channels])
    if s.residual:
        y = y + tensors[s.residual][:, : s.rows]
    out = {s.output: saturate(y, *bits)}
    if s.heads:
        assert s.key is not None and s.value is not None
        parts = (out[s.output], *(saturate(m, 8) for m in np.split(mid[..., q.key_channels :], 2, axis=-1)))
        names = (s.output, s.key, s.value)
        return {n: emulator.unpadded(m, s.heads, s.head_dim) for n, m in zip(names, parts, strict=True)}
    return out


def _patches(s: EmbedStage, image: Integers) -> Integers:
    (c, h, w), (ph, pw) = s.image, s.patch
    down, across = h // ph, w // pw
    cut = image[:, :, : down * ph, : across * pw].reshape(-1, c, down, ph, across, pw)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(len(image), down * across, c * ph * pw)


@_step.register
def _(q: QuantisedAttention, emulator: Emulator, tensors: Mapping[str, Integers]) -> dict[str, Integers]:
    s = q.stage
    query, key, value = (
        t.reshape(*t.shape[:2], s.heads, s.head_dim).swapaxes(1, 2)
        for t in (
            tensors[s.x][:, s.row : s.row + s.rows], tensors[s.key][:, : s.keys], tensors[s.value][:, : s.keys],
        )
    )  # fmt: skip
    out = np.empty_like(query)
    for image in range(len(query)):  # an image at a time: the scores of all would be the largest tensor
        scores = requantise(int_matmul(query[image], key[image].swapaxes(-1, -2), 128), 0, *q.score)
        p, row_sum = softmax.softmax(saturate(scores, softmax.SCORE_WIDTH), emulator.config.columns)
        mult, shift = softmax.row_scale(row_sum, *q.out)
        context = requantise(int_matmul(p, value[image]), 0, mult[..., None], shift[..., None])
        out[image] = saturate(context, 8)
    return {s.output: out.swapaxes(1, 2).reshape(len(out), out.shape[2], -1)}


@_step.register
def _(q: QuantisedMoe, emulator: Emulator, tensors: Mapping[str, Integers]) -> dict[str, Integers]:
    s = q.stage
    x = loaded(q.gate, tensors[s.x])
    scores = route(product(q.gate, x), s.moe.top_k, q.order, q.threshold)
    out = tensors[s.residual].copy()
    for e, (up, down) in enumerate(q.experts):
        image, token = np.nonzero(scores[..., e])
        hidden = saturate(finished(up, product(up, x[image, token])), 8, signed=False)
        added = apply_score(product(down, hidden), scores[image, token, e][:, None])
        out[image, token] = saturate(out[image, token] + added, 16)
    return {s.output: out}
