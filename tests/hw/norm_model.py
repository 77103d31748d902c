"""LayerNorm rows and parameters for the loader's tests, in the machine's layouts."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moevit.isa.formats import NormMode
from moevit.numerics import layernorm


class Norm(NamedTuple):
    """One LayerNorm or affine transform over rows of ``length`` elements."""

    mode: NormMode
    constants: layernorm.RowConstants
    gamma: NDArray[Any]
    beta: NDArray[Any]
    signed: bool

    def apply(self, x: NDArray[Any]) -> NDArray[np.int64]:
        if self.mode == NormMode.AFFINE:
            return layernorm.affine(x, self.gamma, self.beta, self.constants.output_shift, self.signed)
        return layernorm.layernorm(x, self.gamma, self.beta, self.constants, self.signed)

    def words(self, columns: int) -> list[int]:
        """The norm words: C lanes of gamma and beta each."""
        count = -(-len(self.gamma) // columns)
        lanes = np.zeros((count * columns, 2), "<i2")
        lanes[: len(self.gamma), 0], lanes[: len(self.gamma), 1] = self.gamma, self.beta
        return [int.from_bytes(w.tobytes(), "little") for w in lanes.reshape(count, columns, 2)]


def random_norm(rng: np.random.Generator, mode: NormMode, length: int, signed: bool) -> Norm:
    """Parameters that use the whole range of the outputs, and some that saturate."""
    eps, scale = 1e-6, float(rng.choice([1.0, 1e-2, 1e-3]))
    gamma = rng.normal(0.5, 0.3, length) * (1.0 if mode == NormMode.LAYERNORM else 0.02)
    gamma_int, beta_int, shift = layernorm.quantise_affine(gamma, rng.normal(0, 0.5, length), 1 / 50)
    beta_int[rng.random(length) < 0.05] = -32768
    constants = layernorm.RowConstants.of(length, eps, scale, shift)
    return Norm(mode, constants, gamma_int, beta_int, signed)


def random_rows(rng: np.random.Generator, count: int, length: int) -> NDArray[np.int64]:
    """int16 rows: ordinary ones, and in turn constant, extreme and outlier rows."""
    rows = np.clip(
        rng.normal(rng.normal(0, 500, (count, 1)), rng.choice([3, 300, 9000], (count, 1)), (count, length)),
        -32768,
        32767,
    ).astype(np.int64)
    for i in range(0, count, 3):
        kind = rng.integers(0, 5)
        if kind == 0:
            rows[i] = rng.integers(-32768, 32768)
        elif kind == 1:
            rows[i] = -32768
        elif kind == 2:
            rows[i] = rng.choice([-32768, 32767], length)
        elif kind == 3:
            rows[i, rng.integers(0, length)] = 32767
    return rows


def pair_words(row: NDArray[Any], columns: int, rng: np.random.Generator) -> list[int]:
    """A 16-bit row as pairs of words: low bytes below high bytes; lanes past the end hold anything."""
    count = -(-len(row) // columns)
    padded = rng.integers(-32768, 32768, count * columns).astype("<i2")
    padded[: len(row)] = row
    lanes = padded.reshape(count, columns).view(np.uint8).reshape(count, columns, 2)
    return [
        int.from_bytes(lanes[i, :, 0].tobytes() + lanes[i, :, 1].tobytes(), "little") for i in range(count)
    ]
