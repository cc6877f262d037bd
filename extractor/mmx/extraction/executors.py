"""Where windows are encoded: executors take the pending windows and yield results in order.

An executor decides where the steps of `mmx.extraction.window` run and never what they compute;
`LocalExecutor` uses the threads of this process, `SerialExecutor` none. The feature files stay with
the thread that reads the results.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from mmx.extraction.window import (
    Batch,
    LoadedSpan,
    Rows,
    Segments,
    Task,
    Turn,
    WindowResult,
    batches_of,
    encode_batch,
    encode_window,
    load,
    span_rows,
    spans,
)

HELD_BYTES = 1 << 28
"""Loaded items that wait for the encoder: above this size each worker loads one span at most."""

PASSES_ON_GPU = 2
"""Concurrent forward passes on a GPU: while one computes, the next batch is put together."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Executor(Protocol):
    """Encodes windows, anywhere.

    Attributes:
        workers: How many loads may run at once, for the summary.
    """

    workers: int

    def run(
        self,
        tasks: Sequence[Task],
        windows: Iterable[Sequence[Rows]],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[int, WindowResult], None, None]:
        """Yield results in the order of the windows, a bounded number of windows ahead.

        A window may come in several results; together they are what `encode_window` returns for
        each task. Before an error is raised, what was computed until then is yielded.

        Args:
            tasks: Encoders whose plans share contents, batch size and window.
            windows: For each window the wanted rows of every task, of which some may have none;
                consumed lazily.
            stopping: Asked after every batch: whether to yield what is under way and end.

        Yields:
            The task's place in `tasks`, and a result.
        """
        ...


class SerialExecutor:
    """Encodes one window after the other in the calling thread."""

    workers = 1

    def run(
        self,
        tasks: Sequence[Task],
        windows: Iterable[Sequence[Rows]],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[int, WindowResult], None, None]:
        """Yield one result for each window and task with wanted rows."""
        for wanted in windows:
            for place, (task, rows) in enumerate(zip(tasks, wanted, strict=True)):
                if len(rows):
                    yield place, encode_window(*task, rows)
                if stopping():
                    return


class LocalExecutor:
    """Encodes with the threads of this process.

    Threads load contents ahead of the encoders, and on a processor they run the forward passes of
    encoders that are `concurrent`. On a GPU passes have threads of their own; an encoder that
    forbids threads runs in the calling one. Threads and not processes: decoders and kernels leave
    the interpreter lock, all share one copy of the weights, and no feature file is inherited.

    Args:
        workers: Number of loading threads; None: one per available processor.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cpus()

    def run(
        self,
        tasks: Sequence[Task],
        windows: Iterable[Sequence[Rows]],
        stopping: Callable[[], bool],
    ) -> Generator[tuple[int, WindowResult], None, None]:
        """Yield results batch by batch; see `Executor.run`."""
        turn = Turns().taken
        # A pass on a GPU keeps its thread waiting, which should not be one of those that load.
        with WorkerPool(self.workers) as cpu, WorkerPool(PASSES_ON_GPU, "mmx-encode") as gpu:
            streams = [
                _Stream(place, task, cpu if task.plan.device == "cpu" else gpu, turn)
                for place, task in enumerate(tasks)
            ]
            try:
                for part, waited_s in self._load_ahead(cpu, tasks, windows):
                    for stream in streams:
                        for result in stream.results(part, waited_s):
                            yield stream.place, result
                            if stopping():
                                yield from _under_way(streams)
                                return
                for stream in streams:
                    for result in stream.finish(n_left=0):
                        yield stream.place, result
            except Exception:
                yield from _under_way(streams)
                raise

    def _load_ahead(
        self, pool: WorkerPool, tasks: Sequence[Task], windows: Iterable[Sequence[Rows]]
    ) -> Iterator[tuple[LoadedSpan, float]]:
        """Yield the loaded rows of all windows in order, and the seconds they were awaited."""
        plan = tasks[0].plan
        size = span_rows(plan, self.workers)
        parts = pool.map_ahead(
            lambda span: load(tasks, span),
            (span for wanted in windows for span in spans(plan, wanted, size)),
            # Two windows ahead keep the workers busy while the encoder computes; more would only
            # cost memory.
            ahead=2 * -(-plan.window // size) + self.workers,
            n_bytes=lambda part: sum(part.held_bytes),
        )
        began = time.perf_counter()
        for part in parts:
            yield part, time.perf_counter() - began
            began = time.perf_counter()


class _Stream:
    """The way of one task through the windows: an incomplete segment, and passes under way."""

    def __init__(self, place: int, task: Task, pool: WorkerPool, turn: Turn) -> None:
        self.place, self.task, self.turn = place, task, turn
        self.pool = pool if task.encoder.concurrent else None
        self.segments = Segments()
        self.passes: deque[Future[WindowResult]] = deque()

    def results(self, part: LoadedSpan, waited_s: float) -> Iterator[WindowResult]:
        """Take loaded rows; yield their costs and what has been computed since."""
        if part.items[self.place] is None:
            return
        yield WindowResult(costs=part.costs(waited_s))
        for start, items in self.segments.take(part, self.place):
            unusable, batches = batches_of(self.task, start, items, part.span.wanted[self.place])
            yield unusable
            for batch in batches:
                yield from self._encode(batch)

    def _encode(self, batch: Batch) -> Iterator[WindowResult]:
        if self.pool is None:
            result = encode_batch(self.task.encoder, batch, self.turn)
            result.costs.encode_wait_s = result.costs.encode_s
            yield result
        else:
            self.passes.append(self.pool.submit(encode_batch, self.task.encoder, batch, self.turn))
            # As many passes as workers, so that the next batch is ready when one of them ends.
            yield from self.finish(n_left=self.pool.workers)

    def finish(self, n_left: int) -> Iterator[WindowResult]:
        """Yield results in order until no more than `n_left` passes are under way."""
        while len(self.passes) > n_left:
            began = time.perf_counter()
            result = self.passes.popleft().result()
            result.costs.encode_wait_s = time.perf_counter() - began
            yield result


def _under_way(streams: Sequence[_Stream]) -> Iterator[tuple[int, WindowResult]]:
    """Cancel the passes that have not begun; yield the results of those that succeed."""
    for stream in streams:
        for future in stream.passes:
            if not future.cancel() and future.exception() is None:
                yield stream.place, future.result()


class Turns:
    """Access to a memory that all share: any number of passes at once, or one that is alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = 0  # by those who are alone, or wait for it

    @contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        """Enter once nobody is inside if `alone`, or else once nobody is alone or wants to be."""
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


class WorkerPool:
    """Threads that compute in order, a bounded distance ahead of the reader.

    While it is entered, torch computes on one thread in each of them; the caller's own setting
    comes back at the end.

    Args:
        workers: Number of threads.
        name: Prefix of their names.
    """

    def __init__(self, workers: int, name: str = "mmx-load") -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix=name, initializer=_compute_on_one_thread
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

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have `function(*arguments)` computed by the next free thread."""
        return self._pool.submit(function, *arguments)

    def map_ahead(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        *,
        ahead: int,
        n_bytes: Callable[[Result], int] = lambda result: 0,
    ) -> Iterator[Result]:
        """Yield `function` of each argument, in order.

        Args:
            function: Runs in a worker thread.
            arguments: Consumed lazily.
            ahead: At most this many calls are under way or waiting to be read.
            n_bytes: Size of a result. While results larger than `HELD_BYTES` wait to be read, only
                as many calls are under way as there are workers.

        Raises:
            Exception: Whatever `function` raised, when its turn comes.
        """
        held, lock = 0, threading.Lock()
        waiting: deque[Future[Result]] = deque()

        def call(argument: Argument) -> Result:
            nonlocal held
            result = function(argument)
            with lock:
                held += n_bytes(result)
            return result

        def first() -> Result:
            nonlocal held
            result = waiting.popleft().result()
            with lock:
                held -= n_bytes(result)
            return result

        try:
            for argument in arguments:
                waiting.append(self._pool.submit(call, argument))
                while len(waiting) >= ahead or (len(waiting) > self.workers and held > HELD_BYTES):
                    yield first()
            while waiting:
                yield first()
        finally:
            for future in waiting:
                future.cancel()


def _compute_on_one_thread() -> None:
    # As many workers as processors leave none for more threads.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def available_cpus() -> int:
    """Return how many processors this process may use, which containers and taskset can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
