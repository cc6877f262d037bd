"""Row ranges of one kernel on as many threads as torch may use.

Plain threads over kernels that release the interpreter lock: no OpenMP region, hence no spinning
barriers beside torch's own and no trouble after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

_MIN_WORK = (
    1 << 16
)  # multiply-adds per thread below which starting a thread costs more than it saves

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


os.register_at_fork(after_in_child=_forget_pool)


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        if _pool is not None:
            _pool.shutdown(wait=True)
        _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="mmbench-kernel"), size
    return _pool


def split(
    n_rows: int, *, work: float, indptr: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Where the row range of each thread begins and ends.

    Args:
        n_rows: Number of rows, >= 0.
        work: Multiply-adds of the whole job; small jobs stay on one thread.
        indptr: Entries before each row, shape (n_rows + 1,): ranges then hold equal numbers of
            entries, not of rows.

    Returns:
        Ascending bounds, shape (n_threads + 1,), from 0 to `n_rows`; n_threads <= torch's own
        number of threads.
    """
    n_threads = max(1, min(torch.get_num_threads(), n_rows, int(work) // _MIN_WORK))
    shares = np.arange(n_threads + 1) / n_threads
    if indptr is None:
        return (shares * n_rows).astype(np.int64)
    bounds: NDArray[np.int64] = np.searchsorted(indptr, shares * indptr[-1]).astype(np.int64)
    bounds[0], bounds[-1] = 0, n_rows
    return bounds


def run(kernel: Callable[..., None], bounds: NDArray[np.int64], *arguments: object) -> None:
    """Call `kernel(lo, hi, *arguments)` for each range of `bounds`, and wait for all.

    The ranges must write to disjoint memory. An exception of any range is raised here.
    """
    ranges = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    if len(ranges) == 1:
        kernel(*ranges[0], *arguments)
        return
    executor = _executor(len(ranges) - 1)
    futures = [executor.submit(kernel, lo, hi, *arguments) for lo, hi in ranges[1:]]
    kernel(*ranges[0], *arguments)
    for future in futures:
        future.result()
