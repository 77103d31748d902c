"""Draw a small labelled subset of Fashion-MNIST's real images into an npz file."""

import argparse
import os
from pathlib import Path

import numpy as np

from moevit.errors import InputError

from ._cli import add_data_argument, main_wrapper
from .fashion_mnist import CLASSES, ImageSet, load

__all__ = ["draw", "load_subset", "main", "save_subset"]


def draw(whole: ImageSet, count: int, seed: int) -> ImageSet:
    """Draw `count` images, as many of each class as can be, in mixed order.

    Parameters
    ----------
    whole
        What to draw from.
    count
        How many.
    seed
        Seeds the choice and the order.

    Raises
    ------
    InputError
        `count` is not positive, or a class has fewer images than its share.
    """
    if count < 1:
        raise InputError(f"the number of images must be at least 1, not {count}")
    rng = np.random.default_rng(seed)
    chosen = []
    for label, name in enumerate(CLASSES):
        share = count // len(CLASSES) + (label < count % len(CLASSES))
        of_class = np.flatnonzero(whole.labels == label)
        if len(of_class) < share:
            raise InputError(
                f"{share} images of class {label} ({name}) asked for, but there are {len(of_class)}"
            )
        chosen.append(rng.choice(of_class, share, replace=False))
    index = rng.permutation(np.concatenate(chosen))
    return ImageSet(images=whole.images[index], labels=whole.labels[index])


def save_subset(subset: ImageSet, path: Path) -> None:
    """Write ``images`` (uint8 ``[N, 28, 28]``) and ``labels`` (int64 ``[N]``)."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, images=subset.images, labels=subset.labels)
    os.replace(temporary, path)


def load_subset(path: Path) -> ImageSet:
    """Read what `save_subset` wrote.

    Raises
    ------
    InputError
        The file is no npz file, or its arrays are missing or of another type or shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except Exception as error:  # numpy raises whatever a damaged archive makes it
        raise InputError(
            f"is not an npz file with 'images' and 'labels' ({error})", where=str(path),
            mend="make one with python -m moevit.models.subset",
        ) from error  # fmt: skip
    if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
        raise InputError(
            f"images must be uint8 [N, 28, 28], not {images.dtype} {images.shape}", where=str(path)
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels must be int64 [{len(images)}], not {labels.dtype} {labels.shape}", where=str(path)
        )
    return ImageSet(images=images, labels=labels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.subset",
        description="Write some real images as an npz file: `images` uint8 [N, 28, 28] and `labels` int64 "
        "[N], the same number of each class, in mixed order.",
    )
    add_data_argument(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.npz")
    parser.add_argument("--count", type=int, default=500, help="number of images, default: %(default)s")
    parser.add_argument("--split", choices=("test", "train"), default="test",
                        help="which images; calibration must use train; default: %(default)s")  # fmt: skip
    parser.add_argument("--seed", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args(argv)
    save_subset(draw(load(args.data, args.split), args.count, args.seed), args.output)
    print(f"{args.output}: {args.count} {args.split} images, {args.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
