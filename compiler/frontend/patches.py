"""Recognising patches of an image in an array of addresses, however they were cut."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from moevit.compiler.frontend.form import Rejected
from moevit.compiler.frontend.space import Addresses, Source

_WAY_OUT = "supported are patches that cover the image row by row, without overlap or padding"


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches:
    """Patches of an image `(C, H, W)`; `order` is each column's place in (channel, row, column) order."""

    image: tuple[int, int, int]
    patch: tuple[int, int]
    order: Addresses


def image_shapes(source: Source) -> tuple[tuple[int, int, int], ...]:
    """The shapes of an input as an image, `(C, H, W)`.

    One with its channels last is one of a single channel, whose rows hold the channels of a pixel behind each other.
    """
    shape = source.model_shape
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > 3:
        return ()
    channels, height, width = (*(1,) * (3 - len(shape)), *shape)
    return (channels, height, width), (1, channels, height * width)


def patches_of(source: Source, idx: Addresses) -> Patches:
    """Read addresses `(patches, values)` of an input as patches; raises `Rejected` if they are not."""
    images = image_shapes(source)
    if not images:
        raise Rejected(f"'{source.name}' is no image", "give it as (batch, channels, height, width)")
    if (idx < 0).any():
        raise Rejected("its patches are padded", _WAY_OUT + "; pad the images beforehand")
    first, last = images
    try:
        return _patches_of(source, idx, first)
    except Rejected as rejected:
        with suppress(Rejected):
            return _patches_of(source, idx, last)
        raise rejected


def _patches_of(source: Source, idx: Addresses, image: tuple[int, int, int]) -> Patches:
    channel, row, column = np.unravel_index(idx - source.start, image)
    top, left = row.min(axis=1, keepdims=True), column.min(axis=1, keepdims=True)
    row, column = row - top, column - left
    height, width = int(row.max()) + 1, int(column.max()) + 1
    order = (channel * height + row) * width + column
    down, across = image[1] // height, image[2] // width
    if sorted(order[0]) != list(range(image[0] * height * width)) or not np.all(order == order[:1]):
        raise Rejected(f"its rows are not patches of '{source.name}'", _WAY_OUT)
    grid = np.stack(np.divmod(np.arange(down * across), max(across, 1)), axis=1)
    if not np.array_equal(np.hstack([top, left]), grid * [height, width]):
        raise Rejected(f"its patches of '{source.name}' are not in order", _WAY_OUT)
    return Patches(image=image, patch=(height, width), order=order[0])
