"""Work on this machine: threads load contents ahead of the encoder, in the order of the items, and run forward passes.

Threads and not processes: decoders, resizing and the kernels of a forward pass leave the
interpreter lock, all threads share one copy of the weights, nothing has to be copied between
processes, and the feature file is never inherited by a fork. The one writer stays in the thread
that calls.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from mmbase.process import available_cpus

Task = TypeVar("Task")
Result = TypeVar("Result")


def busy_and_queued_s() -> tuple[float, float]:
    """Seconds for which the calling thread has computed, and for which it was ready but got no processor.

    What is left of the wall time it was blocked, usually by a disk. The second figure is 0 where
    the system keeps none.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as stream:  # noqa: PTH123 - a few times faster than Path
            busy, queued, _ = stream.read().split()
    except (OSError, ValueError):
        return time.thread_time(), 0.0
    return int(busy) / 1e9, int(queued) / 1e9


def _one_thread_each() -> None:
    """Each worker computes on one thread of its own: as many workers as processors leave none for more."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


class Turns:
    """Who may use a memory that all share: as many as like at once, or one that has to be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = 0  # by those who are alone, or wait for it

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Go in, as soon as nobody is inside if `alone`, and otherwise as soon as nobody is alone or wants to be."""
        with self._changed:
            self._closed += alone
            self._changed.wait_for(lambda: not (self._inside if alone else self._closed))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._closed -= alone
                self._inside -= 1
                self._changed.notify_all()


class LocalExecutor:
    """A pool of threads that runs a function over tasks, in order, a bounded distance ahead of the reader.

    While it is entered, torch computes on one thread in each worker; the caller's own setting comes
    back at the end.

    Args:
        workers: Number of threads; None takes one per available processor.
        name: Of the threads.
    """

    def __init__(self, workers: int | None = None, name: str = "mmx-load") -> None:
        self.workers = workers or available_cpus()
        self._pool = ThreadPoolExecutor(
            self.workers, thread_name_prefix=name, initializer=_one_thread_each
        )
        self._torch_threads: int | None = None

    def __enter__(self) -> Self:
        if (torch := sys.modules.get("torch")) is not None:
            self._torch_threads = torch.get_num_threads()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._torch_threads is not None:
            sys.modules["torch"].set_num_threads(self._torch_threads)

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Has `function(task)` computed by the next thread that is free."""
        return self._pool.submit(function, task)

    def map_ahead(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        ahead: int,
        full: Callable[[], bool] = lambda: False,
    ) -> Iterator[Result]:
        """The results of `function` over `tasks`, in their order.

        Args:
            function: Runs in a worker thread.
            tasks: Consumed lazily.
            ahead: At most so many tasks are under way or waiting to be read, which bounds the
                memory.
            full: Whether the results that wait to be read are too large for more tasks than the
                workers can do at once.

        Raises:
            Whatever `function` raised, when its turn comes.
        """
        remaining = iter(tasks)
        waiting: deque[Future[Result]] = deque()
        try:
            for task in remaining:
                waiting.append(self._pool.submit(function, task))
                while len(waiting) >= ahead or (len(waiting) > self.workers and full()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
