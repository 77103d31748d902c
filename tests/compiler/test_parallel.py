"""Images in threads: the same values as one by one, and errors and numpy's settings as without threads."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from moevit.compiler.parallel import by_images, one_blas_thread


@by_images
def product(op: object, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_image_is_computed_by_itself(count: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(count, 64, 64)).astype(np.float32) for _ in range(2))
    want = np.stack([product(None, x[None], y[None])[0] for x, y in zip(a, b, strict=True)])
    np.testing.assert_array_equal(product(None, a, b), want)


def test_errors_and_settings_reach_the_threads() -> None:
    @by_images
    def overflow(op: object, a: np.ndarray) -> np.ndarray:
        return a * np.float32(1e38)

    large = np.full((3, 4), 1e38, np.float32)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        overflow(None, large)
    with np.errstate(over="ignore"):
        assert np.isinf(overflow(None, large)).all()


def test_blas_has_one_thread() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        assert one_blas_thread(threads)() == {1}
        assert threads() == {2}
