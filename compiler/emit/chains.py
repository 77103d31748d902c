"""Stages one after the other, rows by rows, where what lies between them does not fit the memory as a whole.

Up and down of an MLP, or Q, attention and projection: row i of each stage needs row i of the one before, and no other.
(An attention needs K and V of all rows, which lie in the operand memory and are computed first.) So some rows can go
through all stages of such a *chain* before the next ones begin, and between the stages there is room for so many rows
only. Each stage's weights then come again for each chunk of rows, while the array is busy with the chunk before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.linear import Rows, emit_attention, emit_linear, share
from moevit.compiler.quantise import Quantised, QuantisedAttention, QuantisedLinear, QuantisedMoe
from moevit.compiler.stages import AttentionStage, LinearStage, reads
from moevit.errors import AllocationError
from moevit.program import Tensor

Stage = QuantisedLinear | QuantisedAttention
Quantisable = QuantisedLinear | QuantisedAttention | QuantisedMoe


@dataclass(frozen=True)
class Chain:
    """Stages ``first`` … of a model that can go rows by rows.

    Parameters
    ----------
    stages : at least two, the last one's output is whole
    words : of activation memory that a row takes between the stages, by stage
    """

    stages: tuple[Stage, ...]
    words: tuple[int, ...]

    @property
    def rows(self) -> int:
        return _rows(self.stages[0])

    @property
    def channels(self) -> int:
        """Of the last stage's rows in memory."""
        return _channels(self.stages, len(self.stages) - 1)


def find_chain(draft: Draft, quantised: Quantised, first: int, outputs: frozenset[str]) -> Chain | None:
    """The longest chain that begins with stage ``first``; None if that and the next stage are none.

    ``outputs`` are the model's: they are needed whole.
    """
    stages: list[Stage] = []
    for q in quantised.stages[first:]:
        if stages and not _follows(stages[-1], q, quantised.stages, outputs):
            break
        if isinstance(q, QuantisedMoe) or not isinstance(q.stage, LinearStage | AttentionStage):
            break
        if isinstance(q.stage, LinearStage) and stages and q.stage.rows != _rows(stages[0]):
            break
        if not stages and not isinstance(q.stage, LinearStage):
            break
        stages.append(q)
    if len(stages) < 2:
        return None
    return Chain(tuple(stages), tuple(draft.words(_channels(stages, i), s.output) for i, s in enumerate(stages[:-1])))


def rows_at_once(draft: Draft, chain: Chain, out_words: int) -> int:
    """Rows that go through the chain together: all if they fit, else as few times as it takes, in whole row tiles.

    Fewer and larger chunks are never slower, since each costs its weights once more.

    Parameters
    ----------
    draft, chain : what is in memory, what is to come
    out_words : that the last stage's output needs of its own

    Raises
    ------
    AllocationError : not even a tile of rows fits
    """
    if _fits_whole(draft, chain, out_words):
        return chain.rows
    tile = draft.config.rows
    for chunks in range(2, layout.ceil_div(chain.rows, tile) + 1):
        rows = layout.ceil_div(layout.ceil_div(chain.rows, chunks), tile) * tile
        if draft.memory.fits(out_words, *(rows * words for words in chain.words)):
            return rows
    least = out_words + sum(tile * words for words in chain.words)
    names = " → ".join(s.stage.name for s in chain.stages)
    raise AllocationError(
        f"'{names}' needs {least} words of activation memory, {tile} rows at a time; {draft.memory.in_use} of "
        f"{draft.memory.words} are in use",
        mend=f"use a configuration with a larger activation_words ({draft.memory.in_use + least} or more), or fewer "
        "tokens",
    )  # fmt: skip


def emit_chain(draft: Draft, chain: Chain, rows: int, out: Tensor, extra: tuple[Tensor, ...]) -> None:
    """Add a chain, ``rows`` rows at a time.

    Parameters
    ----------
    draft, chain : the program, the stages
    rows : that go through it together
    out : the last stage's output, which may lie in the place of its residual: no chunk reads another's rows of it
    extra : K and V of its attention, if it has one
    """
    stages, outs = chain.stages, []
    for i, q in enumerate(stages[:-1]):
        channels = _channels(stages, i)
        outs.append(draft.tensor(q.stage.output, chain.rows, channels, q.output, window=rows))
    outs.append(out)
    if extra:
        first = stages[0]
        assert isinstance(first, QuantisedLinear) and isinstance(first.stage, LinearStage)
        _linear(draft, first, first.stage, None, 0, chain.rows, extra)
    for row in range(0, chain.rows, rows):
        count = min(rows, chain.rows - row)
        for q, to in zip(stages, outs, strict=True):
            if isinstance(q, QuantisedAttention):
                emit_attention(draft, q, to, row, count)
            elif isinstance(q.stage, LinearStage):
                _linear(draft, q, q.stage, to, row, count)


def _linear(
    draft: Draft, q: QuantisedLinear, s: LinearStage, out: Tensor | None, row: int, rows: int,
    extra: tuple[Tensor, ...] = (),
) -> None:  # fmt: skip
    """Some rows of a stage: K and V if they are given, else everything but these."""
    tile = q.key_channels // draft.config.columns
    macs, name = s.macs, f"{s.name}#{row}"
    if s.heads:  # Q, K and V have a third each
        macs = s.macs - s.macs // 3 if extra else s.macs // 3
    if extra:
        name = f"{s.name}#key_value"
    rows_of = Rows(
        name=name, x=draft.places[s.x].tensor, input_row=s.row + row, out=out, output_row=row, rows=rows,
        residual=draft.places[s.residual].tensor if s.residual else None, extra=extra,
        tiles=(tile, draft.tiles(q)) if extra else (0, tile), macs=share(macs, row, row + rows, s.rows),
        source=s.source,
    )  # fmt: skip
    emit_linear(draft, q, rows_of)


def _fits_whole(draft: Draft, chain: Chain, out_words: int) -> bool:
    """Whether stage after stage can be computed for all rows, where a stage's input goes when it is done."""
    trial = draft.memory.copy()
    held: list[int] = []
    for words in (*(chain.rows * w for w in chain.words), out_words):
        if not trial.fits(words):
            return False
        held.append(trial.take(words, "a trial"))
        if len(held) > 1:
            trial.free(held[-2])
    return True


def _rows(q: Stage) -> int:
    assert isinstance(q.stage, LinearStage)
    return q.stage.rows


def _channels(stages: Sequence[Stage], index: int) -> int:
    """Channels of a stage's rows in memory: an attention's are those of its queries."""
    while True:
        q = stages[index]
        if isinstance(q, QuantisedLinear):
            return q.key_channels
        index -= 1


def _follows(
    before: Stage, q: Quantisable, stages: Sequence[Quantisable], outputs: frozenset[str]
) -> bool:
    """Whether a stage takes all rows of the one before, row by row, and nothing else needs these."""
    tensor, s = before.stage.output, q.stage
    if tensor in outputs or s.x != tensor or sum(reads(o.stage).count(tensor) for o in stages) > 1:
        return False
    if isinstance(s, AttentionStage):
        made = before.stage
        if not isinstance(made, LinearStage) or (s.row, s.rows) != (0, made.rows):
            return False
        return (s.key, s.value) == (made.key, made.value)
    # Only an attention follows a layer with K and V.
    if not isinstance(s, LinearStage) or s.row or (isinstance(before.stage, LinearStage) and before.stage.heads):
        return False
    return not s.heads
