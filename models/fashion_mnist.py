"""Reads Fashion-MNIST from the IDX files it is distributed as."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.errors import InputError

__all__ = ["CLASSES", "ImageSet", "load", "read_idx"]

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_STEMS = {"train": "train", "test": "t10k"}
_HOW_TO_GET = (
    "Fashion-MNIST is the Debian package `dataset-fashion-mnist` (apt-get install dataset-fashion-mnist; it "
    "puts the files in /usr/share/datasets/fashion-mnist); elsewhere take the four *-ubyte.gz files from the "
    "GitHub project zalandoresearch/fashion-mnist (its folder data/fashion) and give their folder"
)
# More bytes than any file of the data set unpacks to (the largest has 47,040,016).
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images.

    Parameters
    ----------
    images
        uint8 ``[N, height, width]``.
    labels
        int64 ``[N]``, indices into `CLASSES`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Parameters
    ----------
    path
        The file.
    dims
        Number of dimensions it must have.

    Raises
    ------
    InputError
        The file is not readable, not gzip data, not IDX, of other element type or dimensions, or not of the
        length its header states.
    """
    where = str(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"cannot be read ({error})", where=where, mend=f"fetch it again: {_HOW_TO_GET}"
        ) from error
    if len(data) > _MAX_BYTES:
        raise InputError(
            f"holds more than {_MAX_BYTES >> 20} MiB, so it is not of Fashion-MNIST", where=where
        )
    header_bytes = 4 + 4 * dims
    if len(data) < header_bytes or data[:2] != b"\0\0":
        raise InputError(f"is not an IDX file (it begins with {data[:4].hex(' ') or 'nothing'})", where=where)
    if data[2] != 0x08:
        raise InputError(f"element type must be 0x08 (unsigned byte), not {data[2]:#04x}", where=where)
    if data[3] != dims:
        raise InputError(f"must have {dims} dimension{'s' * (dims > 1)}, not {data[3]}", where=where)
    shape = struct.unpack(f">{dims}I", data[4:header_bytes])
    if len(data) - header_bytes != math.prod(shape):
        raise InputError(
            f"its header says {'x'.join(map(str, shape))} = {math.prod(shape)} bytes of data, but it holds "
            f"{len(data) - header_bytes}",
            where=where,
            mend="fetch it again",
        )
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape).copy()


def load(folder: str | Path, split: str) -> ImageSet:
    """Read the ``train`` (60,000 images) or ``test`` (10,000 images) part.

    Parameters
    ----------
    folder
        Folder of ``train-images-idx3-ubyte.gz`` and its three companions, gzipped or unpacked.
    split
        ``train`` or ``test``.

    Raises
    ------
    InputError
        A file is missing or damaged, or images and labels do not belong together.
    """
    if split not in _STEMS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), mend=_HOW_TO_GET)
    images_path = _find(folder, f"{_STEMS[split]}-images-idx3-ubyte")
    labels_path = _find(folder, f"{_STEMS[split]}-labels-idx1-ubyte")
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"has {len(images)} images, but {labels_path.name} has {len(labels)} labels",
                         where=str(images_path))  # fmt: skip
    if not len(labels):
        raise InputError("holds no image", where=str(images_path))
    if images.shape[1:] != (28, 28):
        raise InputError(
            f"images must be 28x28, not {images.shape[1]}x{images.shape[2]}", where=str(images_path)
        )
    if labels.max() >= len(CLASSES):
        raise InputError(
            f"labels must be 0 to {len(CLASSES) - 1}, not {labels.max()}", where=str(labels_path)
        )
    return ImageSet(images=images, labels=labels)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise InputError(f"has neither {name}.gz nor {name}", where=str(folder), mend=_HOW_TO_GET)
