"""How long files keep their readers waiting: measured around the reads themselves.

A thread that waits can wait for a disk, for the interpreter lock or for a processor, and only the
first says anything about the disk. So some files are read once before they are decoded, which then
finds them in the memory of the system. A file that is there already costs nothing; the wait in the
reads of others counts, less what an empty call waits at the same time. Waiting for a processor is
left out, where the system keeps count of it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

ALL_OF_THE_FIRST, ONE_IN = 32, 8
"""Files that are measured: the first ones of a process, then some, each counted for the others.

Where the system remembers no files, a measured one is read from the disk twice.
"""

MAX_BYTES = 1 << 28  # of a file, that are read to measure it
_BUFFER_BYTES = 1 << 18


class _Thread(threading.local):
    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER_BYTES)


class Disk:
    """The waits of one process for its files; safe to use from any thread."""

    def __init__(self) -> None:
        self._thread = _Thread()
        self._n_files = 0

    def wait_s(self, path: Path) -> float:
        """Return the seconds for which reading a file blocks this thread; 0 for most files.

        The sum over many files is an estimate for all of them. A single value may be negative,
        because it is what is left of a difference. A file that can't be read waits for nothing.
        """
        number, self._n_files = self._n_files, self._n_files + 1  # a race costs a sample
        if number < ALL_OF_THE_FIRST:
            return self._measured(path)
        return 0.0 if number % ONE_IN else ONE_IN * self._measured(path)

    def _measured(self, path: Path) -> float:
        empty, reads = _Wait(), _Wait()
        n_calls, n_bytes, buffer = 1, 0, self._thread.buffer
        with empty:
            _lets_others_run()
        try:
            with reads:
                file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                if _is_in_memory(file, buffer):
                    return 0.0
                with reads:
                    while n_bytes < MAX_BYTES:
                        n_calls += 1
                        n_read = _read_into(file, buffer)
                        n_bytes += n_read
                        if n_read < _BUFFER_BYTES:
                            break
            finally:
                os.close(file)
        except OSError:
            return 0.0
        return reads.seconds - n_calls * empty.seconds


def _is_in_memory(file: int, buffer: bytearray) -> bool:
    """Whether the system can give the file without reading it from anywhere; no, if it won't say.

    At most `MAX_BYTES` of it are looked at.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    place = 0
    try:
        while place < MAX_BYTES:
            n_read = os.preadv(file, [buffer], place, os.RWF_NOWAIT)
            place += n_read
            if n_read < _BUFFER_BYTES:  # the end, or the first part that is not there
                return place >= os.fstat(file).st_size
    except OSError:
        return False
    return True


def _read_into(file: int, buffer: bytearray) -> int:
    return os.readv(file, [buffer])


def _lets_others_run() -> None:
    os.stat(os.sep)  # noqa: PTH116 - as short as a read can be


class _Wait:
    """Seconds for which this thread neither computes in the blocks nor is ready to."""

    seconds = 0.0

    def __enter__(self) -> None:
        _, self._queued_s = busy_and_queued_s()
        self._began, self._busy_s = time.perf_counter(), time.thread_time()

    def __exit__(self, *error: object) -> None:
        wall_s, busy_s = time.perf_counter() - self._began, time.thread_time() - self._busy_s
        _, queued_s = busy_and_queued_s()
        self.seconds += wall_s - busy_s - (queued_s - self._queued_s)


def busy_and_queued_s() -> tuple[float, float]:
    """Return the seconds for which this thread has computed, and waited for a processor.

    The second figure is 0 where the system keeps none.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as stream:  # noqa: PTH123 - faster than Path
            busy, queued, _ = stream.read().split()
    except (OSError, ValueError):
        return time.thread_time(), 0.0
    return int(busy) / 1e9, int(queued) / 1e9


disk = Disk()
"""Of this process."""
