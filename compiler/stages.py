"""What the machine can do in one pass of its pipeline, still in floats: the fused form of a graph."""

from dataclasses import dataclass

import numpy as np

from moevit.compiler import ir
from moevit.compiler.ir import Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """One macro operation. ``x`` and ``output`` name tensors of the graph (calibration knows them)."""

    name: str
    x: str
    output: str
    source: tuple[str, ...]
    macs: int


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbedStage(Stage):
    """Patches of image ``x`` projected and added to ``base`` [N, D] (prefix and position), from row ``first``."""

    image: tuple[int, int, int]
    patch: tuple[int, int]
    weight: Array
    bias: Array
    base: Array
    first: int


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearStage(Stage):
    """``activation(norm(x[rows]) @ weight.T + bias) + residual``.

    When ``attention`` is set, ``weight`` holds q, k and v under each other and the outputs are three tensors.
    ``norm_output`` names the graph tensor after the norm (its calibration gives the input's scale).
    """

    row: int
    rows: int
    weight: Array
    bias: Array
    norm: ir.LayerNorm | None = None
    norm_output: str | None = None
    activation: str | None = None
    residual: str | None = None
    heads: int = 0
    head_dim: int = 0
    key: str | None = None
    value: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionStage(Stage):
    """Softmax attention of ``x`` (queries), ``key`` and ``value``.

    Queries are rows ``row`` to ``row + rows`` of ``x``, which has all rows that queries or keys are made of; the
    first ``keys`` rows of ``key`` and ``value`` are seen. The result is multiplied by ``mass``.
    """

    row: int
    rows: int
    keys: int
    key: str
    value: str
    heads: int
    head_dim: int
    scale: float
    mass: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class MoeStage(Stage):
    """``residual + moe(norm(x))``.

    The residual is overwritten: no later stage reads it. ``norm_output`` is as in LinearStage.
    """

    rows: int
    moe: ir.MoE
    residual: str
    norm: ir.LayerNorm | None = None
    norm_output: str | None = None


@dataclass(frozen=True, eq=False)
class Stages:
    """A graph as stages, in order, with the shapes of the tensors that they name."""

    graph: ir.Graph
    stages: tuple[Stage, ...]


def reads(stage: Stage) -> tuple[str, ...]:
    """The tensors that a stage reads."""
    if isinstance(stage, AttentionStage):
        return stage.x, stage.key, stage.value
    residual = stage.residual if isinstance(stage, LinearStage | MoeStage) else None
    return (stage.x,) if residual is None else (stage.x, residual)


def identity_linear(norm: ir.LayerNorm, name: str, x: str, row: int, rows: int) -> LinearStage:
    """A LayerNorm whose result is needed in memory: through the array with an identity weight."""
    d = len(norm.gamma)
    return LinearStage(
        name=name, x=x, output=norm.output, source=norm.source, macs=0, row=row, rows=rows,
        weight=np.eye(d, dtype=np.float32), bias=np.zeros(d, np.float32), norm=norm, norm_output=norm.output,
    )  # fmt: skip


def copied(residual: str | None, name: str, like: MoeStage) -> LinearStage:
    """Rows for a mixture of experts to be added to, in memory of their own: those of ``residual``, or zeros.

    One weight of zero per channel, so that POST adds the residual to nothing.
    """
    channels = like.moe.down_weight.shape[1]
    return LinearStage(
        name=name, x=like.x, output=name, source=(), macs=0, row=0, rows=like.rows,
        weight=np.zeros((channels, 1), np.float32), bias=np.zeros(channels, np.float32), residual=residual,
    )  # fmt: skip
