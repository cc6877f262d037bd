"""How long files keep their readers waiting: measured around the reads themselves.

A thread that waits can wait for a disk, for the interpreter lock or for a processor, and only the
first says anything about the disk. So some files are read once before they are decoded, which then
finds them in the memory of the system, and the wait in these reads counts, less what an empty call
waits at the same time. Waiting for a processor is left out, where the system keeps count of it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

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
        n_calls, n_bytes = 1, 0
        empty, reads = _Wait(), _Wait()
        with empty:
            _lets_others_run()
        try:
            with reads, path.open("rb", buffering=0) as stream:
                while n_bytes < MAX_BYTES:
                    n_calls += 1
                    n_read = _read_into(stream, self._thread.buffer)
                    n_bytes += n_read
                    if n_read < _BUFFER_BYTES:
                        break
        except OSError:
            return 0.0
        return reads.seconds - n_calls * empty.seconds


def _read_into(stream: BinaryIO, buffer: bytearray) -> int:
    return stream.readinto(buffer) or 0  # type: ignore[attr-defined]  # FileIO has it


def _lets_others_run() -> None:
    os.stat(os.sep)  # noqa: PTH116 - as short as a read can be


class _Wait:
    """Seconds for which this thread neither computes in the block nor is ready to."""

    seconds = 0.0

    def __enter__(self) -> None:
        _, self._queued_s = busy_and_queued_s()
        self._began, self._busy_s = time.perf_counter(), time.thread_time()

    def __exit__(self, *error: object) -> None:
        wall_s, busy_s = time.perf_counter() - self._began, time.thread_time() - self._busy_s
        _, queued_s = busy_and_queued_s()
        self.seconds = wall_s - busy_s - (queued_s - self._queued_s)


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
