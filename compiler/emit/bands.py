"""An image's way in: band by band of its rows of patches, so that the array begins before the last pixel came."""

import math
from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.stages import EmbedStage
from moevit.isa import DmaIn
from moevit.isa.formats import DmaSource
from moevit.program import Tensor

BANDS = 4  #: of an image at most
BAND_BYTES = 1 << 14  #: of pixels at least: a copy waits for the bus before it begins


@dataclass(frozen=True)
class Band:
    """Rows of patches ``first`` … ``end - 1``."""

    first: int
    end: int


def bands(s: EmbedStage, tile_rows: int) -> list[Band]:
    """An image's bands: each, but for the last, of whole tiles of ``tile_rows`` patches."""
    (c, h, w), (ph, pw) = s.image, s.patch
    down, across = h // ph, w // pw
    step = tile_rows // math.gcd(tile_rows, across)
    wanted = max(layout.ceil_div(down, BANDS), layout.ceil_div(BAND_BYTES, c * ph * w))
    size = layout.ceil_div(wanted, step) * step
    return [Band(first, min(first + size, down)) for first in range(0, down, size)]


def copy_pixels(draft: Draft, s: EmbedStage, band: Band, offset: int, patches: Tensor) -> list[int]:
    """Bring a band's pixels from ``offset`` of the input: a DMA_IN for each channel, or for each row of patches."""
    (c, h, w), (ph, pw) = s.image, s.patch
    across, row, lines = w // pw, patches.stride * draft.config.columns, band.end - band.first
    channel, line = (h * w, ph * pw), (ph * w, across * row)  # strides in the input and in memory
    inner, outer = ((c, channel), (lines, line)) if lines < c else ((lines, line), (c, channel))
    count, (src_stride, dst_stride) = inner
    number, (src_step, dst_step) = outer
    src = offset + band.first * ph * w
    dst = patches.addr * draft.config.columns + band.first * across * row
    return [
        draft.issue(
            DmaIn(
                source=DmaSource.INPUT, offset=src + i * src_step,
                count0=count, src_stride0=src_stride, dst_stride0=dst_stride,
                count1=ph, src_stride1=w, dst_stride1=pw,
                segments=across, segment_bytes=pw, dst_segment=row, dst=dst + i * dst_step,
            )
        )
        for i in range(number)
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
