"""What hand-written operations share: compiled CPU kernels, their threads, their place in autograd.

A kernel is a loop over rows `lo … hi-1`, so that `run` may split the rows over threads: plain
threads over kernels that release the interpreter lock, no OpenMP region, hence no spinning barriers
beside torch's own and no trouble after a fork. The kernels are in the modules of this folder, which
are imported when first needed, and numba with them; each has a plain torch path beside its caller.

To numba a plain 0 or 1 is an int64, and an int64 with a float32 makes a float64: a sum that starts
with such a 0 runs in double precision, at half the speed. Kernels take their constants from an
array's dtype instead: `x.dtype.type(0)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Multiply-adds per thread below which starting a thread costs more than it saves.
_MIN_WORK = 1 << 16

_observer: Callable[[float], None] | None = None
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """`function.apply(…)` of a function with one result, typed."""
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


def array(tensor: Tensor) -> Any:
    """The memory of a CPU tensor as a C-contiguous array; a copy only if it is strided."""
    return tensor.detach().contiguous().numpy()


def observe(observer: Callable[[float], None] | None) -> None:
    """Tell `observer` the multiply-adds of each job from now on; None: nobody."""
    global _observer
    _observer = observer


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
        Ascending bounds, shape (n_threads + 1,), from 0 to `n_rows`; n_threads <= torch's own.
    """
    if _observer is not None:
        _observer(work)
    n_threads = max(1, min(torch.get_num_threads(), n_rows, int(work) // _MIN_WORK))
    # Thread t ends at the share (t + 1) / n_threads of the rows, or of their entries.
    shares = np.arange(n_threads + 1) / n_threads
    if indptr is None:
        return (shares * n_rows).astype(np.int64)
    bounds: NDArray[np.int64] = np.searchsorted(indptr, shares * indptr[-1]).astype(np.int64)
    # Rows without entries at the end belong to the last thread.
    bounds[0], bounds[-1] = 0, n_rows
    return bounds


def run(kernel: Callable[..., None], bounds: NDArray[np.int64], *arguments: object) -> None:
    """Call `kernel(lo, hi, *arguments)` for each range of `bounds`, and wait for all.

    The ranges must write to disjoint memory. An exception of any range is raised here.
    """
    ranges = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    futures = [_threads(len(ranges) - 1).submit(kernel, *each, *arguments) for each in ranges[1:]]
    kernel(*ranges[0], *arguments)  # this thread works too
    for future in futures:
        future.result()


def _threads(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        if _pool is not None:
            _pool.shutdown(wait=True)
        _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="mmbench-kernel"), size
    return _pool


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


# A forked child inherits the pool but not its threads.
os.register_at_fork(after_in_child=_forget_pool)


def _compile(function: Kernel, *, fastmath: bool | set[str], forceinline: bool = False) -> Kernel:
    import numba

    # error_model "numpy": a division by zero gives inf, as in torch; numba's default raises and
    # thereby prevents vectorisation.
    options = {"nogil": True, "error_model": "numpy"}
    options |= {"fastmath": fastmath, "forceinline": forceinline}
    try:
        return cast(Kernel, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no writable folder for numba's cache: compile anew in each process
        return cast(Kernel, numba.njit(**options)(function))


def kernel(function: Kernel) -> Kernel:
    """Compile an element-wise kernel: IEEE arithmetic as written, no fused multiply-add."""
    return _compile(function, fastmath=False)


def reduction(function: Kernel) -> Kernel:
    """Compile a kernel with inner products: sums may be reassociated, the same way in each call."""
    # reassoc lets a sum use vector lanes, contract fused multiply-adds; NaN and infinity keep their
    # meaning.
    return _compile(function, fastmath={"reassoc", "contract", "nsz"})


def inlined_reduction(function: Kernel) -> Kernel:
    """As `reduction`, without calls, which pass some thirty values for three arrays."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
