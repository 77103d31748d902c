"""Reads what users give as inputs, and turns it into the bytes that the machine reads."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.errors import InputError
from moevit.layout import pack_rows
from moevit.program import DTYPES, Task

IMAGE_KEY = "images"  #: the array of a .npz that holds a model's only input as uint8
PICTURES = (".png", ".jpg", ".jpeg")
_DAMAGED = (zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Inputs:
    """N inputs of a model, kept as they were read; :meth:`floats` gives them as the model takes them.

    ``arrays`` holds [N, *shape] by input name, float or uint8 (which stands for 0 … 1 in steps of 1/255);
    ``extra`` the other arrays of the files whose first dimension is N, such as labels.
    """

    arrays: dict[str, NDArray]
    extra: dict[str, NDArray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def floats(self, first: int = 0, end: int | None = None) -> dict[str, NDArray[np.float32]]:
        """Inputs ``first`` … ``end - 1`` as float32 [n, *shape]. Raises InputError for values that are not finite."""
        out = {}
        for name, array in self.arrays.items():
            part = array[first:end]
            out[name] = part.astype(np.float32)
            if part.dtype == np.uint8:
                out[name] /= np.float32(255)
            elif not np.isfinite(out[name]).all():
                raise InputError("holds values that are not finite", where=f"input '{name}'")
        return out

    def limited(self, limit: int | None) -> "Inputs":
        """The first ``limit`` of them."""
        if limit is None:
            return self
        return Inputs(*({k: v[:limit] for k, v in d.items()} for d in (self.arrays, self.extra)))


def read_inputs(shapes: Shapes, sources: Sequence[Path]) -> Inputs:
    """The inputs in files and folders.

    Parameters
    ----------
    shapes : the model's inputs: name to shape, without the batch
    sources : ``.npz`` files with an array [N, *shape] per input, float, or uint8 which is scaled by 1/255; for a
        model with one input its array may be called ``images``. Or PNG and JPEG pictures of the model's size, or
        folders of them, for a model with one input [C, H, W]

    Raises
    ------
    InputError : a file cannot be read, or holds something else; says what is expected
    """
    files = [f for source in sources for f in _files(Path(source))]
    if not files:
        raise InputError("no input given", mend=f"give {_expected(shapes)}")
    read = [_read_npz(shapes, f) if f.suffix == ".npz" else _read_picture(shapes, f) for f in files]
    arrays = {name: np.concatenate([part.arrays[name] for part in read]) for name in shapes}
    common = set.intersection(*(set(part.extra) for part in read))
    extra = {name: np.concatenate([part.extra[name] for part in read]) for name in sorted(common)}
    return Inputs(arrays, extra)


def quantise(task: Task, values: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray]:
    """Float inputs [B, *shape] as the integers that the machine reads: q = round(x / scale) + zero_point, saturated.

    An image keeps its shape, a matrix is [B, rows, channels].
    """
    out = {}
    for entry in task.inputs:
        x = values[entry.name].astype(np.float64)
        low, high = (np.iinfo(entry.dtype).min, np.iinfo(entry.dtype).max)
        q = np.clip(np.rint(x / entry.scale) + entry.zero_point, low, high).astype(entry.dtype)
        out[entry.name] = q.reshape(len(q), entry.rows, entry.channels) if entry.channels else q
    return out


def pack(config: AcceleratorConfig, task: Task, quantised: Mapping[str, NDArray]) -> NDArray[np.uint8]:
    """The input buffers [B, input bytes] that hold quantised inputs."""
    batch = len(next(iter(quantised.values())))
    buffer = np.zeros((batch, task.input_bytes), np.uint8)
    for entry in task.inputs:
        values = quantised[entry.name]
        if entry.channels:
            values = pack_rows(values, config.columns, DTYPES[entry.dtype][0])
        flat = values.reshape(batch, -1)
        buffer[:, entry.offset : entry.offset + flat.shape[1]] = flat
    return buffer


def _size(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _expected(shapes: Shapes) -> str:
    """What a model takes, for messages."""
    arrays = ", ".join(f"'{name}' float32 {_size(('N', *shape))}" for name, shape in shapes.items())  # type: ignore[arg-type]
    pictures = f" (or '{IMAGE_KEY}' uint8, or pictures)" if len(shapes) == 1 else ""
    return f"a .npz with {arrays}{pictures}"


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        if source.suffix == ".npz" or source.suffix.lower() in PICTURES:
            return [source]
        raise InputError("is no .npz file and no picture", where=str(source), mend=f"give .npz, {', '.join(PICTURES)}")
    found = sorted(f for f in source.iterdir() if f.suffix == ".npz" or f.suffix.lower() in PICTURES)
    if not found:
        raise InputError("the folder holds no .npz file and no picture", where=str(source))
    return found


def _read_npz(shapes: Shapes, path: Path) -> Inputs:
    try:
        # Opened here: NumPy leaves a damaged file open.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, TypeError, EOFError, KeyError, *_DAMAGED) as error:
        raise InputError("not a .npz file of plain arrays, or damaged", where=str(path)) from error
    return from_arrays(shapes, arrays, str(path))


def from_arrays(shapes: Shapes, arrays: Mapping[str, NDArray], where: str = "inputs") -> Inputs:
    """The inputs in arrays, which are what :func:`read_inputs` accepts in a file; errors begin with ``where``."""
    taken = {}
    rest = dict(arrays)
    for name, shape in shapes.items():
        key = IMAGE_KEY if name not in arrays and len(shapes) == 1 else name
        if key not in arrays:
            have = ", ".join(f"'{n}' {a.dtype} {_size(a.shape)}" for n, a in arrays.items()) or "nothing"
            raise InputError(f"has no array '{name}', but {have}", where=where, mend=f"give {_expected(shapes)}")
        taken[name] = _fitted(np.asarray(rest.pop(key)), shape, f"{where}, array '{key}'")
    counts = {len(a) for a in taken.values()}
    if len(counts) > 1:
        raise InputError("its arrays hold different numbers of inputs", where=where)
    (count,) = counts
    if count == 0:
        raise InputError("holds no input", where=where)
    return Inputs(taken, {name: a for name, a in rest.items() if a.ndim > 0 and len(a) == count})


def _fitted(array: NDArray, shape: tuple[int, ...], where: str) -> NDArray:
    """An array as [N, *shape], if that is what it is."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"has type {array.dtype}", where=where, mend="give float32, or uint8 for pixels 0 … 255")
    if array.shape[1:] == shape:
        return array
    if array.dtype == np.uint8 and len(shape) == 3:
        channels, height, width = shape
        if channels == 1 and array.shape[1:] == (height, width):
            return array[:, None]
        if array.shape[1:] == (height, width, channels):
            return np.moveaxis(array, -1, 1)
    raise InputError(f"has shape {_size(array.shape)}, not {_size(('N', *shape))}", where=where)  # type: ignore[arg-type]


def _read_picture(shapes: Shapes, path: Path) -> Inputs:
    from PIL import Image, UnidentifiedImageError

    (name, shape), *more = shapes.items()
    if more or len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError("a picture is no input of this model", where=str(path), mend=f"give {_expected(shapes)}")
    channels, height, width = shape
    try:
        with Image.open(path) as picture:
            if picture.size != (width, height):
                raise InputError(
                    f"is {picture.width} x {picture.height}, the model takes {width} x {height}",
                    where=str(path), mend="resize it",
                )  # fmt: skip
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.uint8)
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError("not a picture, or damaged", where=str(path)) from error
    return Inputs({name: pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]}, {})
