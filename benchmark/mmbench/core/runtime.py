"""The process's own settings: devices, threads, the allocator."""

from __future__ import annotations

import ctypes
import os
import sys


def tune_process() -> None:
    """Make repeated large allocations cheap, and waiting threads quiet. Called once, before torch is imported.

    glibc returns every large buffer to the kernel and faults it in again at the next step, which costs dense training steps up
    to half of their CPU time; here buffers stay with the process. OpenMP threads that wait for each other spin by default,
    which slows every process on a machine that is not idle. Variables that the user has set are left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            m_trim_threshold, m_mmap_max = -1, -4
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)


def peak_memory_bytes() -> int | None:
    """The largest resident size of this process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    times = os.times()
    return times.user + times.system
