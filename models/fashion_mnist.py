"""Reads Fashion-MNIST from the IDX files it is distributed as."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "DatasetError", "ImageSet", "load", "read_idx"]

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_STEMS = {"train": "train", "test": "t10k"}
_HOW_TO_GET = (
    "Fashion-MNIST is the Debian package `dataset-fashion-mnist` (apt-get install dataset-fashion-mnist; it puts the "
    "files in /usr/share/datasets/fashion-mnist); elsewhere take the four *-ubyte.gz files from the GitHub project "
    "zalandoresearch/fashion-mnist (its folder data/fashion) and give their folder"
)
# More bytes than any file of the data set unpacks to (the largest has 47,040,016).
_MAX_BYTES = 64 << 20


class DatasetError(ValueError):
    """The data set is missing, incomplete or damaged; the message names the file and the way out."""


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
    DatasetError
        The file is not readable, not gzip data, not IDX, of other element type or dimensions, or not of the length its
        header states.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); download it again. {_HOW_TO_GET}") from error
    if len(data) > _MAX_BYTES:
        raise DatasetError(f"{path}: holds more than {_MAX_BYTES >> 20} MiB; this is not a Fashion-MNIST file")
    header_bytes = 4 + 4 * dims
    if len(data) < header_bytes or data[:2] != b"\0\0":
        raise DatasetError(f"{path}: is not an IDX file (it begins with {data[:4].hex(' ') or 'nothing'})")
    if data[2] != 0x08:
        raise DatasetError(f"{path}: element type must be 0x08 (unsigned byte), not {data[2]:#04x}")
    if data[3] != dims:
        raise DatasetError(f"{path}: must have {dims} dimension(s), not {data[3]}")
    shape = struct.unpack(f">{dims}I", data[4:header_bytes])
    want = 1
    for size in shape:
        want *= size
    if len(data) - header_bytes != want:
        raise DatasetError(
            f"{path}: its header says {'x'.join(map(str, shape))} = {want} bytes of data but it holds "
            f"{len(data) - header_bytes}; download it again"
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
    DatasetError
        A file is missing or damaged, or images and labels do not belong together.
    """
    if split not in _STEMS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder. {_HOW_TO_GET}")
    images_path = _find(folder, f"{_STEMS[split]}-images-idx3-ubyte")
    labels_path = _find(folder, f"{_STEMS[split]}-labels-idx1-ubyte")
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise DatasetError(f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels")
    if not len(labels):
        raise DatasetError(f"{images_path}: holds no image")
    if images.shape[1:] != (28, 28):
        raise DatasetError(f"{images_path}: images must be 28x28, not {images.shape[1]}x{images.shape[2]}")
    if labels.max() >= len(CLASSES):
        raise DatasetError(f"{labels_path}: labels must be 0 to {len(CLASSES) - 1}, not {labels.max()}")
    return ImageSet(images=images, labels=labels)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"{folder}: has neither {name}.gz nor {name}. {_HOW_TO_GET}")
