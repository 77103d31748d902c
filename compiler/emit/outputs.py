"""A large output's way out: rows are copied while the next ones are computed, through a window of two chunks of them.
(Of one, where there is no room for two.)

An output that nothing reads need not fit the activation memory, and its copy, which a bus may take longer for than the
array for the layer, begins early. One whose weights do not fit the ring goes block of columns by block of columns, so
that each weight comes once, and all rows of a block lie behind each other in the output buffer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.linear import Rows, emit_linear, share
from moevit.compiler.quantise import QuantisedLinear
from moevit.compiler.stages import LinearStage
from moevit.isa import DmaOut
from moevit.order import walks
from moevit.program import Tensor

OUTPUT_CHUNKS = 8  #: that a large output of the model is computed and copied in
CHUNK_BYTES = 1 << 14  #: smaller ones would wait longer for the bus than it takes to copy them
MAX_DMA_WORDS = (1 << 16) - 1  #: of one DMA_OUT
MOST_BLOCKS = 8  #: times as many as the weights need
MOST_WALKS = 64  #: that the order of an output in blocks may take in the container

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """How an output leaves: ``blocks`` of its columns one after the other, each ``chunk`` rows at a time, of which
    ``slots`` have a place."""

    blocks: int
    chunk: int
    slots: int


def plan_output(draft: Draft, s: LinearStage, q: QuantisedLinear, orders: Sequence[Order | None]) -> Window | None:
    """How an output that nothing reads leaves; None if it is computed whole and copied then.

    ``orders`` are those in which the model's outputs have the values of this tensor.
    """
    tile, wanted = _wanted(draft, s, q.key_channels, q)
    whole = draft.memory.fits(s.rows * draft.words(q.key_channels, q.output))
    if whole and 2 * wanted > s.rows:
        return None
    needed = len(draft.column_chunks(s.name, q))
    for slots in (2, 1):
        for blocks in _blocks(draft, s, q, needed):
            tile, wanted = _wanted(draft, s, q.key_channels // blocks, q)
            room = draft.memory.room() // slots // draft.words(q.key_channels // blocks, q.output)
            most = min(wanted, room, MAX_DMA_WORDS // draft.words(q.key_channels // blocks, q.output))
            fitting = range(tile, min(most, s.rows // 2) + 1, tile)
            # The next block begins where a chunk does.
            chunk = max((n for n in fitting if blocks == 1 or s.rows % n == 0), default=0)
            if chunk and (blocks == 1 or _simple(s, q, orders, blocks)):
                return Window(blocks, chunk, slots)
    return None


def _wanted(draft: Draft, s: LinearStage, columns: int, q: QuantisedLinear) -> tuple[int, int]:
    """Of rows of so many columns: the fewest that are copied at a time, of which there may be several, and the best."""
    config, stride = draft.config, draft.words(columns, q.output)
    tile = _tile_rows(draft, stride * config.columns)
    wanted = max(s.rows // OUTPUT_CHUNKS, CHUNK_BYTES // (stride * config.columns))
    return tile, layout.ceil_div(wanted, tile) * tile


def emit_output(draft: Draft, s: LinearStage, q: QuantisedLinear, window: Window, offset: int) -> Tensor:
    """Add an output's rows and their copies to ``offset`` of the output buffer.

    Where the window has two chunks, a part's DMA_OUT stands behind the LINEAR of the next part. That would else not
    retire, nor let the next copy begin, before the bus has answered this one.

    Returns its tensor, which has the rows of all blocks behind each other.
    """
    x, blocks, chunk = draft.places[s.x].tensor, window.blocks, window.chunk
    tiles = draft.tiles(q) // blocks
    out = draft.tensor(s.output, blocks * s.rows, q.key_channels // blocks, q.output, window=window.slots * chunk)
    row_bytes = out.stride * draft.config.columns
    copies: list[int] = []
    ends: list[int] = []  # the row behind each of them
    waiting: list[DmaOut] = []
    for block in range(blocks):
        own = block * tiles, (block + 1) * tiles
        held = len(draft.column_chunks(s.name, q, *own)) == 1  # one set of weights serves all chunks
        streams: list[int] = []
        for first, end in _parts(draft, s.rows, window, row_bytes if block == 0 else 0):
            row = block * s.rows + first
            left = row + end - first - out.window  # rows that these take the places of
            after = next(copy for copy, e in zip(copies, ends, strict=False) if e >= left) + 1 if left > 0 else 0
            rows = Rows(
                name=f"{s.name}#{row}", x=x, input_row=s.row + first, out=out, output_row=row, rows=end - first,
                tiles=own, macs=share(s.macs, row, row + end - first, out.rows), source=s.source,
            )  # fmt: skip
            work = emit_linear(
                draft, q, rows, after=after, release=end == s.rows or not held, streams=streams
            )
            streams = work.streams if held else []
            waiting.append(
                DmaOut(
                    wait=work.last + 1, src=draft.row_word(out, row), words=rows.rows * out.stride,
                    offset=offset + row * row_bytes,
                )
            )  # fmt: skip
            ends.append(row + end - first)
            while len(waiting) >= window.slots:
                copies.append(draft.issue(waiting.pop(0)))
    for copy in waiting:
        draft.issue(copy)
    return out


def _parts(draft: Draft, rows: int, window: Window, row_bytes: int) -> list[tuple[int, int]]:
    """The rows of each LINEAR of a block: a chunk each, but of the first block, which has ``row_bytes``, smaller ones
    until a window of two is full.

    Where the bus is slower than the array, all that it waits for is the first part.
    """
    ends = {*range(window.chunk, rows, window.chunk), rows}
    if row_bytes and window.slots > 1:
        step = _tile_rows(draft, row_bytes)
        step *= layout.ceil_div(CHUNK_BYTES, step * row_bytes)
        ends |= {base + at for base in (0, window.chunk) for at in range(step, window.chunk, step)}
    return list(pairwise([0, *sorted(ends)]))


def _tile_rows(draft: Draft, row_bytes: int) -> int:
    """The fewest rows that are whole tiles and whole bus words."""
    bus = draft.config.axi_bytes
    return draft.config.rows * (bus // math.gcd(bus, draft.config.rows * row_bytes))


def in_blocks(order: Order | None, rows: int, channels: int, blocks: int) -> Order:
    """The order of an output's values [rows, channels] in blocks [blocks * rows, channels / blocks]."""
    columns = channels // blocks
    row, block, column = np.ogrid[:rows, :blocks, :columns]
    places = ((block * rows + row) * columns + column).reshape(-1)
    return places if order is None else places[order]


def _blocks(draft: Draft, s: LinearStage, q: QuantisedLinear, needed: int) -> list[int]:
    """Numbers of blocks of whole column tiles to try, best first: so few that the weights of each fit the ring, then
    more, and one block in any case."""
    tiles = draft.tiles(q)
    if len(s.weight) != tiles * draft.config.columns:
        return [1]
    cut = [n for n in range(max(needed, 2), min(MOST_BLOCKS * needed, tiles) + 1) if tiles % n == 0]
    return [1, *cut] if needed == 1 else [*cut, 1]


def _simple(s: LinearStage, q: QuantisedLinear, orders: Sequence[Order | None], blocks: int) -> bool:
    """Whether the order of the values in blocks takes little room in a container."""
    new = (in_blocks(order, s.rows, q.key_channels, blocks) for order in orders)
    return all(len(walks(order, s.rows * q.key_channels)) <= MOST_WALKS for order in new)
