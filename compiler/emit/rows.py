"""Inputs that are rows already: the host has them in the layout of the activation memory, DMA_IN copies them."""

from collections.abc import Iterable, Mapping

import numpy as np

from moevit import layout
from moevit.compiler import ir
from moevit.compiler.emit.draft import Draft
from moevit.compiler.quantise import Format
from moevit.config import AcceleratorConfig
from moevit.isa import DmaIn
from moevit.isa.formats import BLOCK_BYTES, DmaSource
from moevit.program import DTYPES, Input

MAX_SEGMENT = (1 << 20) - 1  #: bytes of one DMA_IN without loops


def place_inputs(
    entries: Iterable[ir.Input], formats: Mapping[str, Format], config: AcceleratorConfig
) -> tuple[dict[str, Input], int]:
    """The inputs by name, one behind the other in the input buffer, and the bytes of that."""
    out: dict[str, Input] = {}
    offset = 0
    for entry in entries:
        f = formats[entry.name]
        rows, channels = entry.shape if len(entry.shape) == 2 else (0, 0)
        out[entry.name] = Input(
            entry.name, entry.model_shape, f.scale, f.zero_point, offset, f.dtype, rows, channels
        )
        offset += _row_bytes(out[entry.name], config) * rows if channels else int(np.prod(entry.shape))
        offset += -offset % BLOCK_BYTES
    return out, offset


def _row_bytes(x: Input, config: AcceleratorConfig) -> int:
    return layout.row_words(x.channels, config.columns, DTYPES[x.dtype][0]) * config.columns


def bring_rows(draft: Draft, inputs: Iterable[Input]) -> None:
    """Copy every input that is rows. Before all else: these copies wait for nothing, and memory is still unused."""
    for x in inputs:
        if not x.channels:
            continue
        whole = layout.ceil_div(x.channels, draft.config.columns) * draft.config.columns
        t = draft.tensor(x.name, x.rows, whole, Format(x.dtype, x.scale, x.zero_point))
        size = _row_bytes(x, draft.config)
        step = max(MAX_SEGMENT // size, 1)
        copies = []
        for first in range(0, x.rows, step):
            rows = min(step, x.rows - first)
            copies.append(
                draft.issue(
                    DmaIn(
                        source=DmaSource.INPUT, offset=x.offset + first * size, segment_bytes=rows * size,
                        dst=t.addr * draft.config.columns + first * size,
                    )
                )
            )  # fmt: skip
            draft.done(t, first, rows, copies[-1])
        draft.record("rows", f"{x.name}#rows", (x.name,), (t.name,), copies, [], rows=x.rows)
