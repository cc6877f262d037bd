"""How kernels are compiled: without the interpreter lock, cached on disk where a cache can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _compile(function: Kernel, *, fastmath: bool | set[str]) -> Kernel:
    # "numpy": a division by zero gives inf, as in torch; numba's default raises and thereby prevents vectorisation.
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        compiled: Kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable folder for its cache: compile anew in each process
        compiled = numba.njit(**options)(function)
    return compiled


def kernel(function: Kernel) -> Kernel:
    """Compile an element-wise kernel: IEEE arithmetic in the written order, no fused multiply-add."""
    return _compile(function, fastmath=False)


def reduction(function: Kernel) -> Kernel:
    """Compile a kernel with inner products: sums may be reassociated and fused, the same way in each call."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"})
