"""numpy's matrix products on one thread, so that the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Sums split over threads round otherwise, and rounding weights turns that into other bits.

    How many threads a process has depends on where and how it was started.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
