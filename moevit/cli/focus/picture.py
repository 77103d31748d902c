"""Photographs, both maps and their difference side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moevit.cli.focus.photos import Photo

COLUMNS = ("photograph", "onnxruntime, float", "moevit, integers", "difference × 10")
DPI = 60
MAX_ROWS = 4


def draw(path: Path, rows: Sequence[tuple[Photo, NDArray[np.float32], NDArray[np.float32]]]) -> None:
    """Write a picture of photographs with onnxruntime's and moevit's map, each [224, 224]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = rows[:MAX_ROWS]
    figure, axes = pyplot.subplots(
        len(rows), len(COLUMNS), figsize=(9, 2.3 * len(rows)), squeeze=False, layout="constrained"
    )
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=9)
    for line, (photo, want, got) in zip(axes, rows, strict=True):
        left, top, right, bottom = photo.box
        shown: list[tuple[Any, dict[str, Any]]] = [
            (np.asarray(photo.image), {}),
            (want, {"cmap": "magma", "vmin": 0, "vmax": 1}),
            (got, {"cmap": "magma", "vmin": 0, "vmax": 1}),
            (10 * (got - want), {"cmap": "coolwarm", "vmin": -1, "vmax": 1}),
        ]
        for axis, (values, style) in zip(line, shown, strict=True):
            axis.imshow(values[top:bottom, left:right], **style)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(photo.name, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    with Image.open(path) as image:  # 256 colours are a third of the bytes, and enough
        reduced = image.convert("RGB").quantize(256)
    reduced.save(path, optimize=True)
