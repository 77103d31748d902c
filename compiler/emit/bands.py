"""An image's way in: band by band of its rows of patches, so that the array begins before the last pixel came.

Where the patches of the whole image do not fit beside the rows that are made of them, those of two bands have a place
at a time, or of one.
"""

import math
from dataclasses import dataclass

from moevit import layout
from moevit.compiler.emit.draft import Draft
from moevit.compiler.emit.linear import Rows, emit_linear, share
from moevit.compiler.quantise import Quantised, QuantisedLinear
from moevit.compiler.stages import EmbedStage
from moevit.errors import AllocationError
from moevit.isa import DmaIn
from moevit.isa.formats import DmaSource
from moevit.program import Input, Tensor

BANDS = 4  #: of an image at most
BAND_BYTES = 1 << 14  #: of pixels at least: a copy waits for the bus before it begins
MAX_COPY = (1 << 20) - 1  #: bytes of one copy of constants


@dataclass(frozen=True)
class Band:
    """Rows of patches ``first`` … ``end - 1``."""

    first: int
    end: int


def bands(s: EmbedStage, tile_rows: int, most: int) -> list[Band]:
    """An image's bands of at most ``most`` rows of patches: each, but for the last, of whole tiles of ``tile_rows``."""
    (c, h, w), (ph, pw) = s.image, s.patch
    down, across = h // ph, w // pw
    step = tile_rows // math.gcd(tile_rows, across)
    wanted = max(layout.ceil_div(down, BANDS), layout.ceil_div(BAND_BYTES, c * ph * w))
    size = layout.ceil_div(wanted, step) * step
    if size > most:
        size = max(most // step * step, min(most, 1))
    return [Band(first, min(first + size, down)) for first in range(0, down, size)]


def emit_embed(
    draft: Draft, s: EmbedStage, q: QuantisedLinear, quantised: Quantised, source: Input
) -> None:
    """Add an image's patches, projected and added to constants; a band is copied while the array works on the last."""
    _Embed(draft, s, q, quantised, source).run()


class _Embed:
    def __init__(self, draft: Draft, s: EmbedStage, q: QuantisedLinear, quantised: Quantised, source: Input) -> None:
        self.draft, self.s, self.q, self.offset = draft, s, q, source.offset
        columns, base = draft.config.columns, quantised.base[s.output]
        self.vacant = draft.vacant  # of the first image there is nothing to wait for
        self.across, self.down = s.image[2] // s.patch[1], s.image[1] // s.patch[0]
        size, f = s.image[0] * s.patch[0] * s.patch[1], quantised.formats[s.x]
        whole = layout.ceil_div(base.shape[1], columns) * columns
        self.start = draft.tensor(f"{s.output}#base", len(base), whole, q.output)
        self.out = draft.tensor(s.output, len(base), whole, q.output, addr=self.start.addr)
        self.constants = draft.blocks.add(layout.pack_rows(base, columns, 16).tobytes())
        self.held = len(draft.column_chunks(s.name, q)) == 1  # one set of weights serves all bands
        self.slots, most = self._room(self.across * draft.words(size, f))
        if self.slots or self.held:
            self.parts = bands(s, draft.config.rows, most)
        else:
            self.parts = [Band(0, self.down)]
        window = self.slots * self.parts[0].end * self.across
        self.patches = draft.tensor(
            f"{s.output}#patches", self.down * self.across, size, f, window=min(window, self.down * self.across)
        )
        self.pixels: list[list[int]] = []  # copies of each band
        self.copied: list[int] = []  # copies of constants
        self.complete: list[int] = []  # the last one of each band
        self.last: list[int] = []  # instruction of each band's rows

    def _room(self, words: int) -> tuple[int, int]:
        """How many bands have a place at a time (0: all), and rows of patches of a band at most, each of ``words``."""
        memory = self.draft.memory
        if memory.fits(self.down * words):
            return 0, self.down
        for slots in (2, 1):
            if most := memory.room() // words // slots:
                return slots, most
        raise AllocationError(
            f"a row of patches of '{self.s.name}' needs {words} words of activation memory; {memory.in_use} of "
            f"{memory.words} are in use",
            mend=f"use a configuration with a larger activation_words ({memory.in_use + words} or more), or fewer "
            "tokens",
        )  # fmt: skip

    def run(self) -> None:
        draft, s = self.draft, self.s
        moved: list[int] = []  # by all copies of pixels, in the end
        self._copy(0)
        draft.record("constant", f"{s.name}#base", (), (self.start.name,), self.copied, [], rows=self.start.rows)
        draft.record("patches", f"{s.name}#patches", (s.x,), (self.patches.name,), moved, [], rows=self.patches.rows,
                     patch=(*s.image, *s.patch))  # fmt: skip
        streams: list[int] = []
        for number in range(len(self.parts)):
            if self.slots != 1:
                self._copy(number + 1)
            streams = self._project(number, streams)
            if self.slots == 1:
                self._copy(number + 1)
        for copies in self.pixels:
            moved.extend(copies)
        draft.places.pop(self.patches.name)
        draft.places.pop(self.start.name)
        draft.memory.free(self.patches.addr)

    def _row(self, number: int) -> int:
        """The first row of the constants that comes with a band: those before the patches come with the first."""
        return self.s.first + self.parts[number].first * self.across if number else 0

    def _copy(self, number: int) -> None:
        """Bring a band, if there is one of that number."""
        if number >= len(self.parts):
            return
        band = self.parts[number]
        wait = self.last[number - self.slots] + 1 if self.slots and number >= self.slots else self.vacant
        self.pixels.append(copy_pixels(self.draft, self.s, band, self.offset, self.patches, wait))
        end = self.s.first + band.end * self.across
        self.copied.extend(copy_constants(self.draft, self.constants, self.start, self._row(number), end, self.vacant))
        self.complete.append(self.copied[-1])

    def _project(self, number: int, streams: list[int]) -> list[int]:
        """A band's patches times the weights. Returns the streams that brought these, if they stay."""
        draft, s, band = self.draft, self.s, self.parts[number]
        first, end = band.first * self.across, band.end * self.across
        draft.done(self.patches, first, end - first, self.pixels[number][-1])
        row = self._row(number)
        draft.done(self.start, row, s.first + end - row, self.complete[number])
        rows = Rows(
            name=s.name if len(self.parts) == 1 else f"{s.name}#{first}", x=self.patches, input_row=first, out=self.out,
            output_row=s.first + first, rows=end - first, residual=self.start, source=s.source,
            macs=share(s.macs, first, end, self.patches.rows),
        )  # fmt: skip
        release = not self.held or number == len(self.parts) - 1
        work = emit_linear(draft, self.q, rows, release=release, streams=streams)
        self.last.append(work.last)
        return work.streams if self.held else []


def copy_pixels(draft: Draft, s: EmbedStage, band: Band, offset: int, patches: Tensor, wait: int) -> list[int]:
    """Bring a band's pixels from ``offset`` of the input: a DMA_IN for each channel, or for each row of patches."""
    (c, h, w), (ph, pw) = s.image, s.patch
    across, row, lines = w // pw, patches.stride * draft.config.columns, band.end - band.first
    channel, line = (h * w, ph * pw), (ph * w, across * row)  # strides in the input and in memory
    inner, outer = ((c, channel), (lines, line)) if lines < c else ((lines, line), (c, channel))
    count, (src_stride, dst_stride) = inner
    number, (src_step, dst_step) = outer
    src = offset + band.first * ph * w
    dst = draft.row_word(patches, band.first * across) * draft.config.columns
    return [
        draft.issue(
            DmaIn(
                wait=wait, source=DmaSource.INPUT, offset=src + i * src_step,
                count0=count, src_stride0=src_stride, dst_stride0=dst_stride,
                count1=ph, src_stride1=w, dst_stride1=pw,
                segments=across, segment_bytes=pw, dst_segment=row, dst=dst + i * dst_step,
            )
        )
        for i in range(number)
    ]  # fmt: skip


def copy_constants(draft: Draft, offset: int, tensor: Tensor, row: int, end: int, wait: int) -> list[int]:
    """Bring rows ``row`` … ``end - 1`` of a constant tensor whose first row lies at ``offset`` of the image."""
    size = tensor.stride * draft.config.columns
    step = MAX_COPY // size
    return [
        draft.issue(
            DmaIn(
                wait=wait, source=DmaSource.IMAGE, offset=offset + first * size,
                segment_bytes=min(step, end - first) * size,
                dst=tensor.addr * draft.config.columns + first * size,
            )
        )
        for first in range(row, end, step)
    ]  # fmt: skip
