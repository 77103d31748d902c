"""What POST's softmax sends to the probability buffer, from ``numerics.softmax``."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.numerics import softmax


class StagedRow(NamedTuple):
    """One transfer of ``StagedSignature``."""

    row: int
    tile: int
    data: int
    maximum: int
    last: bool


def staged_rows(scores: NDArray[Any], config: AcceleratorConfig) -> list[StagedRow]:
    """The transfers of one unit, in order, for int16 scores [rows, keys]."""
    rows, keys = scores.shape
    running = np.full(rows, softmax.MAX_EMPTY, np.int64)
    out = []
    tiles = -(-keys // config.columns)
    for tile in range(tiles):
        part = scores[:, tile * config.columns : (tile + 1) * config.columns]
        running = np.maximum(running, softmax.tile_maximum(part))
        lanes = np.zeros((rows, config.columns), np.uint8)
        lanes[:, : part.shape[1]] = softmax.probability(part, running[:, None])
        out += [
            StagedRow(
                row,
                tile,
                int.from_bytes(lanes[row].tobytes(), "little"),
                int(running[row]),
                tile == tiles - 1 and row == rows - 1,
            )
            for row in range(rows)
        ]
    return out


def tile_and_scales(
    scores: NDArray[Any], config: AcceleratorConfig, mult: int, shift: int
) -> tuple[dict[tuple[int, int], bytes], list[tuple[int, int]]]:
    """A-tile words {(row, word): bytes} and rows' (mult, shift) that the context loader makes of a unit."""
    probabilities, sums = softmax.softmax(scores, config.columns)
    rows, keys = scores.shape
    words = -(-keys // config.columns)
    padded = np.zeros((rows, words * config.columns), np.uint8)
    padded[:, :keys] = probabilities
    tile = {
        (r, w): padded[r, w * config.columns : (w + 1) * config.columns].tobytes()
        for r in range(rows)
        for w in range(words)
    }
    mults, shifts = softmax.row_scale(sums, mult, shift)
    return tile, list(zip(mults.tolist(), shifts.tolist(), strict=True))


def random_scores(rng: np.random.Generator, rows: int, keys: int) -> NDArray[np.int64]:
    """Scores whose maximum grows slowly, at once or never, depending on the row."""
    spread = rng.choice([100, 1000, 32767], size=(rows, 1))
    return np.clip(rng.normal(0, spread, (rows, keys)).astype(np.int64), -32768, 32767)
