"""How kernels are compiled: without the interpreter lock, cached on disk where a cache can be written.

To numba a plain 0 or 1 is an int64, and an int64 with a float32 makes a float64: a sum that starts
with such a 0 runs in double precision, at half the speed. Kernels take their constants from an
array's dtype instead: `x.dtype.type(0)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _compile(function: Kernel, *, fastmath: bool | set[str], forceinline: bool = False) -> Kernel:
    # "numpy": a division by zero gives inf, as in torch; numba's default raises and thereby
    # prevents vectorisation.
    options = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": fastmath,
        "forceinline": forceinline,
    }
    try:
        compiled: Kernel = numba.njit(cache=True, **options)(function)
    except (
        RuntimeError
    ):  # numba found no writable folder for its cache: compile anew in each process
        compiled = numba.njit(**options)(function)
    return compiled


def kernel(function: Kernel) -> Kernel:
    """Compile an element-wise kernel: IEEE arithmetic in the written order, no fused multiply-add."""
    return _compile(function, fastmath=False)


def reduction(function: Kernel) -> Kernel:
    """Compile a kernel with inner products: sums may be reassociated and fused, the same way in each call."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"})


def inlined_reduction(function: Kernel) -> Kernel:
    """Compile a part of reductions: as `reduction`, but without calls, which pass some thirty values for three arrays."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
