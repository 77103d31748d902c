"""How much of a mixture of experts is computed at once: how many tokens, and how many of an expert's hidden channels.

A queue may hold every token that was routed, so the hidden rows of an expert take as much memory as if it did. Where
that is too much, tokens are routed in groups, each of which needs the weights of all experts again. Larger groups fit
if an expert's hidden channels are computed slice by slice: ``down(gelu(up(x)))`` is the sum over slices of hidden
channels, each times its own columns of ``down``. Every slice is rounded to the residual's steps for itself, so results
may differ by such steps, which are a few hundred times smaller than those of 8 bits.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from moevit import layout
from moevit.compiler.emit.cost import compute_cycles, stream_cycles, turn_cycles
from moevit.compiler.emit.draft import Draft
from moevit.compiler.quantise import QuantisedLinear, QuantisedMoe
from moevit.errors import AllocationError
from moevit.numerics.fixed import BIAS_WIDTH

MAX_SLICES = 8  #: of an expert's hidden channels


@dataclass(frozen=True)
class Plan:
    """Tokens that are routed together, slices of hidden channels, buffers of hidden rows, and words of a row of one."""

    rows: int
    slices: int
    buffers: int
    words: int


def plan_experts(draft: Draft, q: QuantisedMoe, most: int, kept_words: int) -> Plan:
    """The quickest way that fits the memory; without slices if all tokens fit that may be routed together.

    Parameters
    ----------
    draft, q : what is in memory, the mixture
    most : tokens that may be routed together
    kept_words : of activation memory that a token takes besides its hidden rows

    Raises
    ------
    AllocationError : not even a tile of rows fits
    """
    experts, hidden = q.stage.moe.experts, draft.tiles(q.experts[0][0])
    buffers, tile = min(2, experts), draft.config.rows
    if draft.memory.fits(most * kept_words, *[most * hidden] * buffers):
        return Plan(most, 1, buffers, hidden)
    plans = []
    for slices in _slices(q, hidden):
        words = hidden // slices
        for count in range(1, buffers + 1):
            groups = 1
            while not draft.memory.fits(*_sizes(rows := _group(most, groups, tile), kept_words, words, count)):
                groups += 1
                if rows == min(tile, most):
                    break
            else:
                plans.append(Plan(rows, slices, count, words))
    if not plans:
        least = sum(_sizes(min(tile, most), kept_words, hidden, 1))
        raise AllocationError(
            f"the experts of layer '{q.stage.name}' need {least} words of activation memory, {tile} tokens at a time; "
            f"{draft.memory.in_use} of {draft.memory.words} are in use",
            mend=f"use a configuration with a larger activation_words ({draft.memory.in_use + least} or more), or "
            "fewer tokens",
        )  # fmt: skip
    return min(plans, key=lambda plan: _cycles(draft, q, plan))


def slices_of(q: QuantisedLinear, count: int, zero_point: int) -> list[QuantisedLinear]:
    """An expert's second matrix for each of ``count`` slices of its input, whose zero point is given.

    The sum of their results is the whole one's but for rounding; the bias is the first one's.
    """
    if count == 1:
        return [q]
    width = -(-q.weight.shape[1] // count)
    parts = [q.weight[:, first : first + width] for first in range(0, q.weight.shape[1], width)]
    offsets = [zero_point * part.astype(np.int64).sum(axis=1) for part in parts]
    biases = [q.bias + sum(offsets[1:]), *(-offset for offset in offsets[1:])]
    return [dataclasses.replace(q, weight=part, bias=bias) for part, bias in zip(parts, biases, strict=True)]


def _slices(q: QuantisedMoe, hidden: int) -> list[int]:
    """Into how many slices of whole column tiles an expert's hidden channels can be cut."""
    up, _ = q.experts[0]
    if len(up.weight) != up.key_channels:
        return [1]  # the last one would be shorter
    spare = (1 << (BIAS_WIDTH - 1)) - 1 - max(int(np.abs(down.bias).max(initial=0)) for _, down in q.experts)
    if len(up.weight) * 127 * 255 > spare:
        return [1]  # a bias could overflow
    return [n for n in range(1, min(MAX_SLICES, hidden) + 1) if hidden % n == 0]


def _group(most: int, groups: int, tile: int) -> int:
    """Tokens of each of so many groups, in whole row tiles."""
    if groups == 1:
        return most
    return min(layout.ceil_div(layout.ceil_div(most, groups), tile) * tile, most)


def _sizes(rows: int, kept_words: int, words: int, buffers: int) -> tuple[int, ...]:
    return (rows * kept_words, *[rows * words] * buffers)


def _cycles(draft: Draft, q: QuantisedMoe, plan: Plan) -> float:
    """About how long the experts take, each with its share of the tokens."""
    c, op, total = draft.config, q.stage.moe, q.stage.rows
    length, width = op.up_weight.shape[2], op.up_weight.shape[1] // plan.slices
    tiles = draft.tiles(q.experts[0][1])
    groups = layout.ceil_div(total, plan.rows)
    # A queue ends somewhere in its last row tile.
    tokens = layout.ceil_div(plan.rows * op.top_k, op.experts) + c.rows // 2
    compute = compute_cycles(tokens, plan.words, length, c) + compute_cycles(tokens, tiles, width, c)
    if plan.buffers == 1:
        compute += turn_cycles(width, c)
    stream = stream_cycles(plan.words, length, c) + stream_cycles(tiles, width, c)
    return groups * op.experts * plan.slices * max(compute, stream)
