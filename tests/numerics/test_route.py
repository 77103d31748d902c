"""The gate's integer arithmetic against a float softmax: the bounds that docs/numerics.md states."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moevit.numerics.route import (
    LOGIT_FRACTION,
    MAX_EXPERTS,
    MAX_TOP_K,
    SCORE_FRACTION,
    TABLE_FRACTION,
    RouteOrder,
    apply_score,
    exponential,
    route,
    select,
)

ORDERS = [RouteOrder.SOFTMAX_TOPK, RouteOrder.TOPK_SOFTMAX]
LOWEST, HIGHEST = -(1 << 19), (1 << 19) - 1

logit_rows = st.integers(1, MAX_EXPERTS).flatmap(
    lambda n: st.lists(st.integers(LOWEST, HIGHEST) | st.integers(-3, 3), min_size=n, max_size=n)
)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = 2.0 ** ((logits - logits.max(-1, keepdims=True)) / (1 << LOGIT_FRACTION))
    return powers / powers.sum(-1, keepdims=True)


def ideal(logits: np.ndarray, k: int, order: RouteOrder) -> np.ndarray:
    """Float scores, with the same selection."""
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, select(logits, k), True, -1)
    if order == RouteOrder.SOFTMAX_TOPK:
        return np.where(chosen, softmax(logits), 0)
    return softmax(np.where(chosen, logits, -(1 << 40)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("experts", [1, 2, 3, 8, 16, 33, 64])
def test_score_error(experts: int, order: RouteOrder) -> None:
    rng = np.random.default_rng(experts)
    spread = rng.choice([100, 1000, 4000, 30_000, 1 << 19], (6000, 1))
    logits = np.clip(rng.normal(0, spread, (6000, experts)).astype(np.int64), LOWEST, HIGHEST)
    for k in range(1, min(experts, MAX_TOP_K) + 1):
        real = ideal(logits, k, order)
        error = np.abs(route(logits, k, order) / (1 << SCORE_FRACTION) - real)
        assert error.max() <= 1e-3
        large = real > 0.01
        assert (error[large] / real[large]).max() <= 6e-3


def test_exponential_error() -> None:
    """Of all distances: half a step of the table's argument and half one of its entries."""
    distance = np.arange(1 << 20)
    real = 2.0 ** (TABLE_FRACTION - distance / (1 << LOGIT_FRACTION))
    got = exponential(distance)
    assert (np.abs(got - real) <= real * (math.log(2) / 256 + 1e-4) + 1).all()
    assert got[0] == 1 << TABLE_FRACTION
    assert got[-1] == 0
    assert (np.diff(got) <= 0).all()


@given(logit_rows, st.integers(1, MAX_TOP_K), st.sampled_from(ORDERS), st.integers(0, 65535))
def test_selection_and_threshold(row: list[int], k: int, order: RouteOrder, threshold: int) -> None:
    """The k largest, of equal ones the first; what is kept does not depend on the threshold."""
    k = min(k, len(row))
    wanted = sorted(range(len(row)), key=lambda e: (-row[e], e))[:k]
    assert select(row, k).tolist() == wanted
    scores = route(row, k, order)
    assert set(np.flatnonzero(scores)) <= set(wanted)
    assert scores[wanted[0]] > 0
    assert (np.diff(scores[wanted]) <= 0).all()
    assert scores.min() >= 0 and scores.max() < 1 << 16
    kept = route(row, k, order, threshold)
    assert kept.tolist() == np.where(scores >= threshold, scores, 0).tolist()


@given(logit_rows, st.sampled_from(ORDERS), st.integers(-1000, 1000))
def test_only_differences_count(row: list[int], order: RouteOrder, offset: int) -> None:
    logits = np.array(row)
    assert (route(logits, 1, order) == route(logits + offset, 1, order)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_saturated_and_tied(order: RouteOrder) -> None:
    """Equal logits share equally, wherever they lie; what is far below gets nothing."""
    for value in (LOWEST, 0, HIGHEST):
        for experts, k in ((1, 1), (4, 4), (64, 2)):
            scores = route(np.full(experts, value), k, order)
            share = experts if order == RouteOrder.SOFTMAX_TOPK else k
            assert scores.tolist()[k:] == [0] * (experts - k)
            assert np.abs(scores[:k] - min(65536 / share, 65535)).max() <= 16
    first, best, last = route([LOWEST, HIGHEST, LOWEST], 2, order)
    assert first == last == 0 and best >= 65535 - 8


def test_whole_batches_and_scores() -> None:
    logits = np.random.default_rng(0).integers(LOWEST, HIGHEST, (3, 5, 9)) >> 6
    batch = route(logits, 3, RouteOrder.SOFTMAX_TOPK, 100)
    assert all((batch[i, j] == route(logits[i, j], 3, RouteOrder.SOFTMAX_TOPK, 100)).all()
               for i in range(3) for j in range(5))  # fmt: skip
    assert apply_score([1000, -1000, 3], [65535, 32768, 32768]).tolist() == [1000, -500, 2]
