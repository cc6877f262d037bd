"""The process's own settings: the allocator, waiting threads."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def tune_process() -> None:
    """Make repeated large allocations cheap, and waiting threads quiet. Called once, before torch is imported.

    glibc returns every large buffer to the kernel and faults it in again at the next batch, which
    costs a forward pass up to half of its CPU time; here buffers stay with the process, in one
    arena, so that what one thread has freed serves the others. OpenMP threads that wait for each
    other spin by default, which slows every process on a machine that is not idle. Variables that
    the user has set (`MALLOC_*`, `OMP_*`) are left alone. Python's garbage collector runs after
    every 700 new objects, and importing torch makes 160,000 that stay: every 10,000 are enough.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(10_000)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
