"""Work on this machine: contents are loaded by threads, ahead of the encoder, in the order of the items.

Threads and not processes: image and audio decoders and the resizing between them leave the interpreter lock, nothing
has to be copied between processes, and the feature file is never inherited by a fork. The encoder and the one writer
stay in the thread that calls.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from mmx.errors import UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cpus() -> int:
    """The number of processors that this process may use (which a container or taskset can limit)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """A pool of threads that runs a function over tasks, in order, a bounded distance ahead of the reader.

    Args:
        workers: Number of threads; None takes one per available processor.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cpus()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="mmx-load")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map_ahead(self, function: Callable[[Task], Result], tasks: Iterable[Task], *, ahead: int) -> Iterator[Result]:
        """The results of `function` over `tasks`, in their order.

        Args:
            function: Runs in a worker thread.
            tasks: Consumed lazily.
            ahead: At most so many tasks are under way or waiting to be read, which bounds the memory.

        Raises:
            Whatever `function` raised, when its turn comes.
        """
        remaining = iter(tasks)
        waiting: deque[Future[Result]] = deque()
        try:
            for task in remaining:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def resolve_device(device: str) -> str:
    """The device behind `auto`: CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        UsageError: the device that was asked for is not there.
    """
    if device == "cpu":
        return device
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = device.partition(":")
    here = {"cuda": torch.cuda.device_count() if cuda else 0, "mps": 1 if mps else 0}[kind]
    if here <= int(index or 0):
        raise UsageError(
            f"--device {device}: not on this machine ({here} {kind} devices found); --device auto takes what is there"
        )
    return device
