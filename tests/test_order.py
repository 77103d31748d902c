"""Orders as walks: whatever goes in comes out, and what a reshape or transpose makes is one walk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moevit.order import Walk, indices, walks


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_any_order_comes_back(order: list[int]) -> None:
    parts = walks(np.array(order), len(order))
    if not parts:
        assert order == list(range(len(order)))
    else:
        assert indices(parts).tolist() == order
        assert min(w.bounds()[0] for w in parts) == min(order)
        assert max(w.bounds()[1] for w in parts) == max(order)
        assert sum(len(w) for w in parts) == len(order)


@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_a_transpose_is_one_walk(axes: list[int], shape: list[int]) -> None:
    order = np.arange(np.prod(shape)).reshape(shape).transpose(axes).reshape(-1)
    assert len(walks(order, len(order))) <= 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_natural_order_needs_no_walk(count: int) -> None:
    assert walks(np.arange(count), count) == ()


def test_the_first_values_of_more_are_a_walk() -> None:
    """Else an output that is a tensor's first tokens would be taken for all of it."""
    assert walks(np.arange(3), 12) == (Walk(0, (3,), (1,)),)


def test_tokens_to_pixels() -> None:
    """128 tokens of 16×16 pixels and 19 classes each, as an image of each class: 5 axes for 622,592 values."""
    order = np.arange(128 * 4864).reshape(8, 16, 16, 16, 19).transpose(4, 0, 2, 1, 3).reshape(-1)
    assert walks(order, len(order)) == (Walk(0, (19, 8, 16, 16, 16), (1, 77824, 304, 4864, 19)),)


def test_a_shifted_order_is_two_runs() -> None:
    order = np.concatenate([np.arange(10, 50), np.arange(10)])
    assert len(walks(order, len(order))) <= 3
    assert indices(walks(order, len(order))).tolist() == order.tolist()
