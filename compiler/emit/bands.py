"""An image's way in: band by band of its rows of patches, so that the array begins before the last pixel came."""

import math
from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.stages import EmbedStage
from moevit.isa import DmaIn
from moevit.isa.formats import DmaSource
from moevit.program import Tensor

BANDS = 4  #: at most, beyond what whole row tiles ask for: a copy has to wait for the bus before it begins


@dataclass(frozen=True)
class Band:
    """Rows of patches ``first`` … ``end - 1``."""

    first: int
    end: int


def bands(s: EmbedStage, tile_rows: int) -> list[Band]:
    """An image's bands: each, but for the last, of whole tiles of ``tile_rows`` patches."""
    down, across = s.image[1] // s.patch[0], s.image[2] // s.patch[1]
    step = tile_rows // math.gcd(tile_rows, across)
    size = layout.ceil_div(layout.ceil_div(down, BANDS), step) * step
    return [Band(first, min(first + size, down)) for first in range(0, down, size)]


def copy_pixels(draft: Draft, s: EmbedStage, band: Band, offset: int, patches: Tensor) -> list[int]:
    """Bring a band's pixels, of all channels, from ``offset`` of the input: one DMA_IN for each row of patches."""
    (c, h, w), (ph, pw) = s.image, s.patch
    across, row = w // pw, patches.stride * draft.config.columns
    return [
        draft.issue(
            DmaIn(
                source=DmaSource.INPUT, offset=offset + line * ph * w,
                count0=c, src_stride0=h * w, dst_stride0=ph * pw,
                count1=ph, src_stride1=w, dst_stride1=pw,
                segments=across, segment_bytes=pw, dst_segment=row,
                dst=patches.addr * draft.config.columns + line * across * row,
            )
        )
        for line in range(band.first, band.end)
    ]  # fmt: skip


def copy_constants(draft: Draft, offset: int, tensor: Tensor, row: int, end: int) -> int:
    """Bring rows ``row`` … ``end - 1`` of a constant tensor whose first row lies at ``offset`` of the image."""
    size = tensor.stride * draft.config.columns
    return draft.issue(
        DmaIn(
            source=DmaSource.IMAGE, offset=offset + row * size, segment_bytes=(end - row) * size,
            dst=tensor.addr * draft.config.columns + row * size,
        )
    )  # fmt: skip
