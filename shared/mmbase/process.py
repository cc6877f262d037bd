"""The process's own settings: devices, threads, the allocator."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tune_process(*, one_arena: bool = False) -> None:
    """Make repeated large allocations cheap and waiting threads quiet; call it before torch.

    glibc returns every large buffer to the kernel and faults it in again at the next step, which
    costs dense training steps up to half of their CPU time; here buffers stay with the process.
    OpenMP threads that wait for each other spin by default, which slows every process on a machine
    that is not idle. Variables that the user has set are left alone. Python's garbage collector
    runs after every 700 new objects, and importing torch makes 160,000 that stay: every 10,000 are
    enough. `one_arena` makes what one thread has freed serve the others.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(10_000)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # glibc's malloc.h
            if one_arena:
                mallopt(m_arena_max, 1)
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until it is convenient.

    An exception that comes up in the middle of a backward or of a compiled loop can end the process
    from within C++. Here the first SIGINT is only remembered; the second one acts as it always
    does.

    Yields:
        A function that raises KeyboardInterrupt if one was held back. Does nothing outside the main
        thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        held.set()
        signal.signal(signal.SIGINT, before)

    def let_through() -> None:
        if held.is_set():
            held.clear()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before)
    let_through()


def forget_peak_memory() -> None:
    """Let the peaks of memory begin anew, so that one run's is not reported for those after it; the process's on Linux only."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # what is free and kept counts as used otherwise
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_memory_bytes() -> int | None:
    """The largest resident size of this process so far, or since `forget_peak_memory`; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_memory_bytes(device: torch.device) -> int | None:
    """The most memory that tensors had on a CUDA device so far, or since `forget_peak_memory`; None for other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def gpu_uuid(device: torch.device) -> str | None:
    """What the driver calls a CUDA device, `GPU-…`, whatever `CUDA_VISIBLE_DEVICES` makes of its number; None for others."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of the machine or of a device."""
    if isinstance(error, MemoryError):
        return True
    known = (
        "out of memory",
        "can't allocate memory",
        "_STATUS_ALLOC_FAILED",
    )  # of a GPU, the CPU, a library on a GPU
    return isinstance(error, RuntimeError) and any(text in str(error) for text in known)


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    times = os.times()
    return times.user + times.system
