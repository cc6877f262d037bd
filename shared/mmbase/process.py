"""Settings and measurements of this process: allocator, processors, signals, memory, time."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from mmbase.errors import UsageError

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA
    "can't allocate memory",  # torch on the CPU
    "could not create a memory object",  # oneDNN
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
)


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


class StopRequest:
    """Inside the `with` block the first signal sets `requested`; a second one stops at once.

    An exception in the middle of a backward pass or a compiled loop can end the process from within
    C++, and a file that is being written wants to be closed: the block checks `requested`, or calls
    `let_through`, at a safe moment. Handlers belong to the main thread; in others nothing changes.

    Args:
        signals: The signals to hold back; those of `ending_signals` if there are none.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.signals = signals or ending_signals()
        self.requested = False
        self._seen = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._hold) for number in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def let_through(self) -> None:
        """Raise KeyboardInterrupt for a request that was held back."""
        if self.requested:
            self.requested = False
            raise KeyboardInterrupt

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = self.requested = True


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and the other `ending_signals` back; yield the function that raises them.

    It also runs when the block ends.
    """
    with StopRequest() as request:
        yield request.let_through
    request.let_through()


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a process: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal.

    SIGHUP is left out where it is ignored (`nohup`) or doesn't exist.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hangup)


def sigterm_as_interrupt() -> None:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does, so that files are closed properly."""
    if threading.current_thread() is threading.main_thread():
        for number in ending_signals()[1:]:
            signal.signal(number, signal.default_int_handler)


def available_cpus() -> int:
    """Return how many processors this process may use; a container or taskset can limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_running(process: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def forget_peak_memory() -> None:
    """Reset the peaks of memory, so that each run reports its own; the process's on Linux only."""
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
    """Return the peak resident size since `forget_peak_memory`; None where it is unknown."""
    # On Linux the usage of resources begins with the peak of the process that started this one.
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_memory_bytes(device: torch.device) -> int | None:
    """Return the peak tensor memory of a CUDA device since `forget_peak_memory`; else None."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def gpu_uuid(device: torch.device) -> str | None:
    """Return the driver's unique name of a CUDA device, `GPU-…`; None for other devices."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, of the machine or of a device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def release_gpu_memory() -> None:
    """Give cached memory of the GPU back, after it ran out."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def cpu_seconds() -> float:
    """Return user and system time of this process so far."""
    times = os.times()
    return times.user + times.system


def resolve_device(device: str, automatic: Sequence[str] = ("cuda", "mps")) -> str:
    """Return the name of a device that computes, for `auto`, cpu, cuda, cuda:N or mps.

    `auto` takes the first of the GPU kinds `automatic` that is here; else, or if torch has no code
    for it, the CPU. A device that does not exist or does not compute raises `UsageError`.
    """
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    known = device in ("auto", "mps") or kind == "cuda"
    if not (known and (index or "0").isdecimal()):
        choices = "auto, cpu, cuda, cuda:0, ... or mps"
        raise UsageError(f"--device {device}: no such device; choose {choices}")
    import torch

    here = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind == "auto":
        device = next((name for name in automatic if here[name]), "cpu")
    elif here[kind] <= int(index or 0):
        found = f"{here[kind]} {kind} devices found"
        raise UsageError(f"--device {device}: not on this machine ({found}); try --device auto")
    try:
        torch.ones(1, device=device).item()  # a device that is listed may still refuse to compute
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if kind == "auto" and "no kernel image" in reason:
            return "cpu"
        what = f"--device {device}: it does not compute ({reason}); --device cpu does"
        raise UsageError(what) from error
    return device
