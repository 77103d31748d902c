"""Exact integer matrix products at BLAS speed."""

import numpy as np
from numpy.typing import NDArray

_EXACT_F32 = 1 << 24  # every integer up to here is a float32


def int_matmul(a: NDArray, b: NDArray, a_max: int = 255, b_max: int = 128) -> NDArray[np.int64]:
    """``a @ b`` for 8-bit integers, exact. ``a`` is [..., M, K], ``b`` is [..., K, N]; returns int64.

    A float32 product is exact while every partial sum stays below 2**24, whatever order BLAS adds in; K is
    cut into blocks for which that holds. ``a_max`` and ``b_max`` bound the magnitudes.
    """
    block = max(1, _EXACT_F32 // (a_max * b_max))
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    k = a.shape[-1]
    if k <= block:
        return (a32 @ b32).astype(np.int64)
    total = np.zeros((), np.int64)
    for i in range(0, k, block):
        total = total + (a32[..., i : i + block] @ b32[..., i : i + block, :]).astype(np.int64)
    return total
