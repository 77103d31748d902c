"""Mean IoU and depth RMSE of the two ONNX files of an M³ViT on test scenes, in float, by onnxruntime."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moevit.errors import InputError, ModelError

from . import scenes
from ._cli import Progress, add_data_argument, main_wrapper, merge_json, require
from .session import open_session

__all__ = ["depth_rmse", "main", "predict", "seg_miou"]

_BATCH = 32


def predict(
    model: Path, images: NDArray[np.uint8], channels: int, *, threads: int = 0, progress: bool = False
) -> NDArray[np.float32]:
    """Run an ONNX model on scenes scaled to [0, 1].

    Parameters
    ----------
    model
        ONNX file with one float32 input ``[batch, 1, 64, 64]`` (the batch may be fixed) whose first output is
        ``[batch, channels, 64, 64]``.
    images
        uint8 ``[N, 1, 64, 64]``.
    channels
        Channels that the output must have. With more than one, only the largest's number is kept.
    threads
        Threads of onnxruntime; 0 is its default.
    progress
        Whether to count on standard error, where that is a terminal.

    Returns
    -------
    float32 ``[N, 64, 64]``: the values of the only channel, or the number of the largest.

    Raises
    ------
    ModelError
        The file is missing, is not ONNX, or takes or gives something else.
    """
    session = open_session(model, threads)
    side = scenes.SIDE
    entries = session.get_inputs()
    shape = entries[0].shape
    if len(entries) != 1 or entries[0].type != "tensor(float)" or shape[1:] != [1, side, side]:
        got = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in entries)
        raise ModelError(
            f"must take one float32 input [batch, 1, {side}, {side}], not {got}", where=str(model)
        )
    fixed = isinstance(shape[0], int)
    step = shape[0] if fixed else _BATCH
    counter = Progress(model.stem, len(images)) if progress else None
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(images), step):
        part = images[start : start + step].astype(np.float32) / np.float32(255)
        count = len(part)
        if fixed and count < step:
            part = np.concatenate((part, np.zeros((step - count, 1, side, side), np.float32)))
        got = session.run(None, {entries[0].name: part})[0]
        if got.shape != (len(part), channels, side, side):
            raise ModelError(
                f"its first output must be [batch, {channels}, {side}, {side}], not {list(got.shape)}",
                where=str(model),
            )
        parts.append((got[:, 0] if channels == 1 else got.argmax(1).astype(np.float32))[:count])
        if counter:
            counter.update(start + count)
    return np.concatenate(parts)


def seg_miou(model: Path, data: scenes.SceneSet, *, threads: int = 0, progress: bool = False) -> float:
    """Mean IoU over the classes of a segmentation model (`scenes.mean_iou`)."""
    classes = predict(model, data.images, len(scenes.CLASSES), threads=threads, progress=progress)
    return scenes.mean_iou(scenes.confusion(classes.astype(np.uint8), data.seg))


def depth_rmse(model: Path, data: scenes.SceneSet, *, threads: int = 0, progress: bool = False) -> float:
    """RMSE over all pixels of a depth model, in metres."""
    return scenes.rmse(predict(model, data.images, 1, threads=threads, progress=progress), data.depth)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.m3vit_evaluate",
        description="Float mean IoU and depth RMSE of two ONNX models on test scenes, by onnxruntime.",
    )
    parser.add_argument("seg", type=Path, metavar="SEG.onnx")
    parser.add_argument("depth", type=Path, metavar="DEPTH.onnx")
    add_data_argument(parser)
    parser.add_argument(
        "--count", type=int, default=2048, help="test scenes to compose, default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=scenes.TEST_SEED, help="of the scenes, default: %(default)s"
    )
    parser.add_argument(
        "--subset", type=Path, metavar="FILE.npz", help="measure these scenes too (see scenes)"
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE.json", help="write the figures into this file")
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime, default: all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    args = parser.parse_args(argv)
    for name in ("threads", "seed"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name} must be at least 0, not {getattr(args, name)}")
    require("onnxruntime", "pip install onnxruntime")
    sets = {"onnx": scenes.compose(scenes.items(args.data, "test"), args.count, args.seed)}
    if args.subset:
        sets["subset"] = scenes.load_scenes(args.subset)
    figures: dict[str, Any] = {}
    for name, data in sets.items():
        figures[f"{name}_miou"] = seg_miou(args.seg, data, threads=args.threads, progress=True)
        figures[f"{name}_depth_rmse_m"] = depth_rmse(args.depth, data, threads=args.threads, progress=True)
        figures[f"{name}_scenes"] = len(data)
    if args.metrics:
        merge_json(args.metrics, figures)
    if args.json:
        print(json.dumps(figures))
    else:
        for name in sets:
            print(
                f"mIoU {figures[f'{name}_miou']:.4f}, depth RMSE {figures[f'{name}_depth_rmse_m']:.4f} m on "
                f"{figures[f'{name}_scenes']} {'test scenes' if name == 'onnx' else f'scenes of {args.subset}'} "
                "(float, onnxruntime)"
            )
    return 0


if __name__ == "__main__":
    main_wrapper(main)
