"""Scenes of several Fashion-MNIST items that hide one another: segmentation and depth on real pixels.

A scene is a 64x64 grey picture. Two to four items stand on different ones of five layers, from far to near,
in front of a smooth background of up to middle grey. Layer k is `DISTANCES[k]` metres away; an item that is
`d` metres away is ``64 / d`` pixels wide, as in a pinhole camera with a focal length of 64 pixels that looks
at items one metre wide. So there are two cues to the distance, as in a street: the size, and what hides what.
The background is `BACKGROUND_DISTANCE` metres away.

An item's picture is enlarged or reduced bilinearly and is opaque where the result is at least 24 of 255; its
class is then the pixel's label (`CLASSES`, 0 is the background) and its distance the pixel's depth. Up to a
quarter of an item may lie outside the picture at each side.

Everything is computed in integers from one seed, so a scene is the same on every machine.
``python -m moevit.models.scenes`` writes such scenes as an npz file.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.errors import InputError

from . import fashion_mnist
from ._cli import add_data_argument, main_wrapper

__all__ = [
    "BACKGROUND_DISTANCE",
    "CLASSES",
    "DISTANCES",
    "M3VIT",
    "SIDE",
    "TEST_SEED",
    "VALIDATION_ITEMS",
    "SceneSet",
    "compose",
    "confusion",
    "item_pixels",
    "items",
    "load_scenes",
    "m3vit_path",
    "main",
    "mean_iou",
    "rmse",
    "save_scenes",
]

#: Folder of the shipped model.
M3VIT = Path(__file__).resolve().parent / "m3vit"

#: Height and width of a scene in pixels.
SIDE = 64

#: Classes of a pixel: the background and the classes of Fashion-MNIST.
CLASSES = ("background", *fashion_mnist.CLASSES)

#: Distance of each layer in metres, the nearest first.
DISTANCES = (1.6, 2.0, 2.4, 2.8, 3.2)

#: Distance of what is behind all items, in metres.
BACKGROUND_DISTANCE = 4.0

#: The last training images, which the split ``validation`` takes and ``train`` leaves.
VALIDATION_ITEMS = 5000

#: Seed of the test scenes that the stated figures are of.
TEST_SEED = 2

_SPLITS = ("train", "validation", "test")
_OPAQUE = 24
_BRIGHTEST_BACKGROUND = 96
_ITEM_SIDE = 28


def m3vit_path(name: str = "seg.onnx") -> Path:
    """Return the path of one file of the shipped two-task model.

    Parameters
    ----------
    name
        ``seg.onnx``, ``depth.onnx``, ``test_scenes.npz``, ``calib_scenes.npz``, ``metrics.json`` or
        ``train_log.csv``.

    Raises
    ------
    FileNotFoundError
        The shipped model has no such file.
    """
    path = M3VIT / name
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in M3VIT.glob("*"))) or "nothing"
        raise FileNotFoundError(f"the shipped model has no file {name!r}; it has: {have}")
    return path


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """Scenes and what is right for each pixel.

    Parameters
    ----------
    images
        uint8 ``[N, 1, 64, 64]``.
    seg
        uint8 ``[N, 64, 64]``, indices into `CLASSES`.
    depth
        float32 ``[N, 64, 64]``, metres.
    """

    images: NDArray[np.uint8]
    seg: NDArray[np.uint8]
    depth: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)


def items(folder: str | Path, split: str) -> fashion_mnist.ImageSet:
    """Read the items that scenes of `split` consist of.

    Parameters
    ----------
    folder
        Folder of Fashion-MNIST's files.
    split
        ``test`` for the test images, ``validation`` for the last `VALIDATION_ITEMS` training images and
        ``train`` for the others (so no split sees another's items).

    Raises
    ------
    InputError
        A file is missing or damaged, or too few training images are left.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, not {split!r}")
    if split == "test":
        return fashion_mnist.load(folder, "test")
    whole = fashion_mnist.load(folder, "train")
    if len(whole) < 2 * VALIDATION_ITEMS:
        held = len(whole) // 2
    else:
        held = VALIDATION_ITEMS
    part = slice(-held, None) if split == "validation" else slice(None, -held)
    return fashion_mnist.ImageSet(images=whole.images[part], labels=whole.labels[part])


def item_pixels(distance: float) -> int:
    """Width and height of an item that is `distance` metres away, in pixels."""
    return round(SIDE / distance)


def _bilinear(side: int) -> NDArray[np.float64]:
    """Matrix ``[side, 28]`` of 1/256 that resamples one axis; each row sums to 256."""
    matrix = np.zeros((side, _ITEM_SIDE), np.int64)
    for row in range(side):
        # Source position of the pixel's centre, in 1/256, kept inside the item.
        position = ((2 * row + 1) * _ITEM_SIDE * 128) // side - 128
        position = min(max(position, 0), (_ITEM_SIDE - 1) * 256)
        left, part = divmod(position, 256)
        matrix[row, left] += 256 - part
        if part:
            matrix[row, left + 1] += part
    return matrix.astype(np.float64)


def _resample(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resample ``[N, 28, 28]`` to ``[N, side, side]``; float64 holds these integers exactly."""
    matrix = _bilinear(side)
    scaled = matrix @ images.astype(np.float64) @ matrix.T
    return ((scaled.astype(np.int64) + (1 << 15)) >> 16).astype(np.uint8)


def compose(source: fashion_mnist.ImageSet, count: int, seed: int | tuple[int, ...]) -> SceneSet:
    """Compose scenes of the items of `source`.

    Parameters
    ----------
    source
        Items and their labels.
    count
        Number of scenes.
    seed
        Seeds everything: the items, their layers and places, and the background.

    Raises
    ------
    InputError
        `count` is not positive.
    """
    if count < 1:
        raise InputError(f"the number of scenes must be at least 1, not {count}")
    rng = np.random.default_rng(seed)
    layers = len(DISTANCES)
    number = rng.integers(2, 5, count)
    # The layers of a scene in random order; the first `number` of them hold an item.
    order = rng.integers(0, 1 << 32, (count, layers)).argsort(1, kind="stable")
    item = rng.integers(0, len(source), (count, layers))
    place = rng.integers(0, 1 << 16, (count, layers, 2))
    corners = rng.integers(0, _BRIGHTEST_BACKGROUND + 1, (count, 2, 2))

    ramp = np.stack((np.arange(SIDE - 1, -1, -1), np.arange(SIDE)), 1)  # [64, 2], each row sums to 63
    background = np.einsum("yi,nij,xj->nyx", ramp, corners, ramp) // (SIDE - 1) ** 2
    margin = SIDE  # so that an item may reach over the edge
    shape = (count, SIDE + 2 * margin, SIDE + 2 * margin)
    inside = slice(margin, margin + SIDE)
    image, seg, layer_map = (np.zeros(shape, np.uint8) for _ in range(3))
    image[:, inside, inside] = background
    layer_map[:] = layers
    for layer in reversed(range(layers)):
        slot = np.argmax(order == layer, axis=1)
        scene = np.flatnonzero(slot < number)
        chosen = item[scene, layer]
        side = item_pixels(DISTANCES[layer])
        free = SIDE - side + 2 * (side // 4)  # how far an item can move
        corner = margin - side // 4 + place[scene, layer] % (free + 1)
        pixels = _resample(source.images[chosen], side)
        at = (
            scene[:, None, None],
            corner[:, 0, None, None] + np.arange(side)[:, None],
            corner[:, 1, None, None] + np.arange(side),
        )
        opaque = pixels >= _OPAQUE
        image[at] = np.where(opaque, pixels, image[at])
        seg[at] = np.where(opaque, (source.labels[chosen] + 1)[:, None, None], seg[at])
        layer_map[at] = np.where(opaque, layer, layer_map[at])
    metres = np.array((*DISTANCES, BACKGROUND_DISTANCE), np.float32)
    return SceneSet(
        images=image[:, None, inside, inside].copy(),
        seg=seg[:, inside, inside].copy(),
        depth=metres[layer_map[:, inside, inside]],
    )


def save_scenes(scenes: SceneSet, path: Path) -> None:
    """Write ``images``, ``seg`` and ``depth`` as `SceneSet` describes them."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, images=scenes.images, seg=scenes.seg, depth=scenes.depth)
    os.replace(temporary, path)


def load_scenes(path: Path) -> SceneSet:
    """Read what `save_scenes` wrote.

    Raises
    ------
    InputError
        The file is no npz file, or its arrays are missing or of another type or shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "seg", "depth")}
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except Exception as error:  # numpy raises whatever a damaged archive makes it
        raise InputError(
            f"is not an npz file with 'images', 'seg' and 'depth' ({error})", where=str(path),
            mend="make one with python -m moevit.models.scenes",
        ) from error  # fmt: skip
    images, seg, depth = arrays.values()
    if images.dtype != np.uint8 or images.shape[1:] != (1, SIDE, SIDE) or not len(images):
        raise InputError(
            f"images must be uint8 [N, 1, {SIDE}, {SIDE}], not {images.dtype} {images.shape}", where=str(path)
        )
    for name, dtype in (("seg", np.uint8), ("depth", np.float32)):
        array, shape = arrays[name], (len(images), SIDE, SIDE)
        if array.dtype != dtype or array.shape != shape:
            raise InputError(
                f"{name} must be {np.dtype(dtype)} {list(shape)}, not {array.dtype} {list(array.shape)}",
                where=str(path),
            )
    if seg.max() >= len(CLASSES):
        raise InputError(f"classes must be 0 to {len(CLASSES) - 1}, not {seg.max()}", where=str(path))
    return SceneSet(images=images, seg=seg, depth=depth)


def confusion(predicted: NDArray[np.integer], true: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count pixels: int64 ``[true class, predicted class]``; add those of several batches."""
    if predicted.shape != true.shape:
        raise ValueError(f"predicted must be of the shape {true.shape} of true, not {predicted.shape}")
    n = len(CLASSES)
    cells = true.astype(np.int64).ravel() * n + predicted.astype(np.int64).ravel()
    return np.bincount(cells, minlength=n * n).reshape(n, n)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean over the classes of intersection / union, from what `confusion` counted.

    All pixels of all scenes are counted together; a class that is neither true nor predicted anywhere is left
    out of the mean.
    """
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def rmse(predicted: NDArray[np.floating], true: NDArray[np.floating]) -> float:
    """Root of the mean square difference over all pixels."""
    if predicted.shape != true.shape:
        raise ValueError(f"predicted must be of the shape {true.shape} of true, not {predicted.shape}")
    return float(np.sqrt(np.square(predicted.astype(np.float64) - true).mean()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.scenes",
        description="Write scenes of several Fashion-MNIST items as an npz file: `images` uint8 "
        "[N, 1, 64, 64], `seg` uint8 [N, 64, 64] (0 background, then the ten classes) and `depth` float32 "
        "[N, 64, 64] in metres.",
    )
    add_data_argument(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.npz")
    parser.add_argument("--count", type=int, default=256, help="number of scenes, default: %(default)s")
    parser.add_argument("--split", choices=_SPLITS, default="test",
                        help="whose items; calibration must use train; default: %(default)s")  # fmt: skip
    parser.add_argument("--seed", type=int, default=TEST_SEED, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, not {args.seed}")
    save_scenes(compose(items(args.data, args.split), args.count, args.seed), args.output)
    print(f"{args.output}: {args.count} {args.split} scenes, {args.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
