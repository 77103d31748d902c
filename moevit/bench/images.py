"""Pictures from a seed: smooth as photographs are, so that neighbouring patches are alike and distant ones are not."""

import numpy as np
from numpy.typing import NDArray

GRIDS = (3, 6, 12, 24, 48)  #: random values across a picture, from coarse to fine


def smooth_images(shape: tuple[int, int, int], count: int, seed: int) -> NDArray[np.uint8]:
    """Random pictures [count, channels, height, width].

    Each is a sum of grids of normal random values, stretched bilinearly over the picture. A grid twice as fine weighs
    half as much, which is about the spectrum of photographs. The sum is scaled to 0 … 255 per picture.
    """
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    total = np.zeros((count, channels, height, width))
    for cells in GRIDS:
        grid = rng.normal(size=(count, channels, cells + 1, cells + 1))
        total += _stretch(height, cells) @ grid @ _stretch(width, cells).T / cells
    low = total.min(axis=(1, 2, 3), keepdims=True)
    high = total.max(axis=(1, 2, 3), keepdims=True)
    return np.round(255 * (total - low) / (high - low)).astype(np.uint8)


def _stretch(pixels: int, cells: int) -> NDArray[np.float64]:
    """Matrix [pixels, cells + 1] that interpolates between the corners of so many cells."""
    position = (np.arange(pixels) + 0.5) * cells / pixels
    left = position.astype(np.int64)
    matrix = np.zeros((pixels, cells + 1))
    matrix[np.arange(pixels), left] = 1 - (position - left)
    matrix[np.arange(pixels), left + 1] += position - left
    return matrix
