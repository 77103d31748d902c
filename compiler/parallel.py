"""Several images at a time, each in a thread of its own.

That takes BLAS with one thread, or its threads and these wait for each other: on small products, as a transformer has
many, BLAS's own threads cost ten times the work even when nothing else runs.
"""

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, wraps
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

#: Decorates a function during which BLAS uses one thread.
one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")

F = TypeVar("F", bound=Callable[..., NDArray[np.float32]])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="images")


def by_images(function: F) -> F:
    """Compute ``function(op, *arrays)`` for each image by itself: along the first axis of all arrays and the result.

    However many threads there are, the same products are computed, so calibration gives the same on every machine.
    """

    @wraps(function)
    def each(op: object, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(arrays[0]) < 2:
            return function(op, *arrays)

        def start(image: int) -> Future[NDArray[np.float32]]:
            # How numpy treats an overflow is a matter of the context.
            run = contextvars.copy_context().run
            return _pool().submit(run, function, op, *(a[image : image + 1] for a in arrays))

        return np.concatenate([f.result() for f in [start(image) for image in range(len(arrays[0]))]])

    return cast(F, each)
