"""Top-1 accuracy of an ONNX classifier on Fashion-MNIST's test images, in float, by onnxruntime."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.errors import InputError, ModelError

from ._cli import Progress, add_data_argument, main_wrapper, merge_json, require
from .fashion_mnist import CLASSES, ImageSet, load
from .session import open_session
from .subset import load_subset

__all__ = ["logits", "main", "top1"]

_BATCH = 100


def logits(
    model: Path, images: NDArray[np.uint8], *, threads: int = 0, progress: bool = False
) -> NDArray[np.float32]:
    """Run an ONNX model on images scaled to [0, 1].

    Parameters
    ----------
    model
        ONNX file with one float32 input ``[batch, 1, 28, 28]`` (the batch may be fixed) and logits as first
        output.
    images
        uint8 ``[N, 28, 28]``.
    threads
        Threads of onnxruntime; 0 is its default.
    progress
        Whether to count on standard error, where that is a terminal.

    Returns
    -------
    float32 ``[N, classes]``.

    Raises
    ------
    ModelError
        The file is missing, is not ONNX, or takes or gives something else.
    """
    session = open_session(model, threads)
    entries = session.get_inputs()
    shape = entries[0].shape
    if len(entries) != 1 or entries[0].type != "tensor(float)" or shape[1:] != [1, 28, 28]:
        got = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in entries)
        raise ModelError(f"must take one float32 input [batch, 1, 28, 28], not {got}", where=str(model))
    step = shape[0] if isinstance(shape[0], int) else _BATCH
    scaled = images.astype(np.float32)[:, None] / np.float32(255)
    counter = Progress("images", len(images)) if progress else None
    parts = []
    for start in range(0, len(scaled), step):
        part = scaled[start : start + step]
        missing = step - len(part) if isinstance(shape[0], int) else 0
        if missing:
            part = np.concatenate((part, np.zeros((missing, 1, 28, 28), np.float32)))
        got = session.run(None, {entries[0].name: part})[0]
        if got.ndim != 2 or len(got) != len(part):
            raise ModelError(
                f"its first output must be logits [batch, classes], not {got.shape}", where=str(model)
            )
        parts.append(got[: len(part) - missing])
        if counter:
            counter.update(start + len(parts[-1]))
    return np.concatenate(parts)


def top1(model: Path, images: ImageSet, *, threads: int = 0, progress: bool = False) -> float:
    """Fraction of `images` whose largest logit is their label's."""
    got = logits(model, images.images, threads=threads, progress=progress)
    if got.shape[1] != len(CLASSES):
        raise ModelError(f"must give {len(CLASSES)} logits, not {got.shape[1]}", where=str(model))
    return float((got.argmax(1) == images.labels).mean())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.evaluate",
        description="Float top-1 of an ONNX model on Fashion-MNIST's 10,000 test images, by onnxruntime.",
    )
    parser.add_argument("model", type=Path, metavar="FILE.onnx")
    add_data_argument(parser)
    parser.add_argument(
        "--subset", type=Path, metavar="FILE.npz", help="measure these images too (see subset)"
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE.json", help="write the figures into this file")
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime, default: all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    args = parser.parse_args(argv)
    if args.threads < 0:
        raise InputError(f"--threads must be at least 0, not {args.threads}")
    require("onnxruntime", "pip install onnxruntime")
    test = load(args.data, "test")
    subset = load_subset(args.subset) if args.subset else None
    figures: dict[str, Any] = {
        "onnx_top1": top1(args.model, test, threads=args.threads, progress=True),
        "onnx_images": len(test),
    }
    if subset is not None:
        figures["subset_top1"] = top1(args.model, subset, threads=args.threads)
        figures["subset_images"] = len(subset)
    if args.metrics:
        merge_json(args.metrics, figures)
    if args.json:
        print(json.dumps(figures))
    else:
        print(
            f"{args.model}: top-1 {figures['onnx_top1']:.4f} on {len(test)} test images (float, onnxruntime)"
        )
        if subset is not None:
            print(
                f"{args.model}: top-1 {figures['subset_top1']:.4f} on {len(subset)} images of {args.subset}"
            )
    return 0


if __name__ == "__main__":
    main_wrapper(main)
