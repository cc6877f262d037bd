"""Where windows are encoded: executors take the pending windows and yield results in order.

An executor decides where the steps of `mmx.extraction.window` run and never what they compute;
`LocalExecutor` uses the threads of this process, `SerialExecutor` none. The feature files stay with
the thread that reads the results.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from mmbase.process import available_cpus
from mmx.extraction.passes import Rows, Turn, WindowResult, encode_batch
from mmx.extraction.window import (
    LoadedSpan,
    Segments,
    Task,
    batches_of,
    encode_window,
    load,
    span_rows,
    spans,
)

HELD_BYTES = 1 << 28
"""Loaded items that wait for the encoder: above this size each worker loads one span at most."""

PASSES_ON_GPU = 2
"""Concurrent forward passes on a GPU: while one computes, the next batch is put together."""

Windows = Iterable[Sequence[Rows]]
"""For each window the wanted rows of every task, of which some may have none."""
Results = Generator[tuple[int, WindowResult], None, None]
"""The place of a task and a result of it."""
Condition = Callable[[], bool]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Executor(Protocol):
    """Encodes windows somewhere; `workers` is how many loads may run at once, for the summary."""

    workers: int

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Yield results in the order of the windows, a bounded number of windows ahead.

        A window may come in several results, which together are what `encode_window` returns for
        each task. Before an error is raised, what was computed until then is yielded.

        Args:
            tasks: Encoders whose plans share contents, batch size and window.
            windows: Consumed lazily.
            stopping: Whether to yield what is under way and end; asked after every result.
        """
        ...


class SerialExecutor:
    """Encodes one window after the other in the calling thread."""

    workers = 1

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
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
    encoders that are `concurrent`; on a GPU passes have threads of their own. Other encoders run in
    the calling thread. Threads and not processes: decoders and kernels release the interpreter
    lock, all share one copy of the weights, and no feature file is inherited by a fork.

    Args:
        workers: Number of loading threads; None: one per available processor.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cpus()

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Yield results batch by batch; see `Executor.run`."""
        turn = Turns().taken
        # A pass on a GPU keeps its thread waiting, which should not be one of those that load.
        with WorkerPool(self.workers) as cpu, WorkerPool(PASSES_ON_GPU, "mmx-encode") as gpu:
            pools = [cpu if task.plan.device == "cpu" else gpu for task in tasks]
            streams = [_Stream(k, tasks[k], pool, turn) for k, pool in enumerate(pools)]
            try:
                for part, waited_s in self._load_ahead(cpu, tasks, windows):
                    for stream in streams:
                        for result in stream.results(part, waited_s):
                            yield stream.place, result
                            if stopping():
                                yield from _under_way(streams)
                                return
                for stream in streams:
                    for result in stream.finished(n_left=0):
                        yield stream.place, result
            except Exception:
                yield from _under_way(streams)
                raise

    def _load_ahead(
        self, pool: WorkerPool, tasks: Sequence[Task], windows: Windows
    ) -> Iterator[tuple[LoadedSpan, float]]:
        """Yield the loaded rows of all windows in order, and the seconds they were awaited."""
        plan, workers = tasks[0].plan, self.workers
        parts = pool.map_ahead(
            lambda span: load(tasks, span),
            (span for wanted in windows for span in spans(plan, wanted, workers)),
            # Two windows ahead keep the workers busy while the encoder computes; more would only
            # cost memory.
            ahead=2 * -(-plan.window // span_rows(plan, workers)) + workers,
            n_bytes=lambda part: sum(part.held_bytes),
        )
        began = time.perf_counter()
        for part in parts:
            yield part, time.perf_counter() - began
            began = time.perf_counter()


class _Stream:
    """The way of one task through the windows: an incomplete segment, and passes under way."""

    def __init__(self, place: int, task: Task, pool: WorkerPool, turn: Turn) -> None:
        self.place, self.task, self.pool, self.turn = place, task, pool, turn
        self.segments = Segments()
        self.passes: deque[Future[WindowResult]] = deque()

    def results(self, part: LoadedSpan, waited_s: float) -> Iterator[WindowResult]:
        """Take loaded rows; yield what loading cost, and what has been computed since."""
        if part.items[self.place] is None:
            return
        yield part.result(self.place, waited_s)
        for start, items in self.segments.take(part, self.place):
            unusable, batches = batches_of(self.task, start, items, part.span.wanted[self.place])
            yield unusable
            for batch in batches:
                if self.task.encoder.concurrent:
                    arguments = self.task.encoder, batch, self.turn
                    self.passes.append(self.pool.submit(encode_batch, *arguments))
                    # One pass more than there are workers is under way before this waits for one.
                    yield from self.finished(n_left=self.pool.workers)
                else:
                    yield encode_batch(self.task.encoder, batch, self.turn)

    def finished(self, n_left: int) -> Iterator[WindowResult]:
        """Yield results in order until no more than `n_left` passes are under way."""
        while len(self.passes) > n_left:
            began = time.perf_counter()
            result = self.passes.popleft().result()
            result.costs.encode_wait_s = time.perf_counter() - began
            yield result


def _under_way(streams: Sequence[_Stream]) -> Results:
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


class WorkerPool(ThreadPoolExecutor):
    """Threads on each of which torch computes alone; the caller's setting comes back at the end.

    Args:
        workers: Number of threads.
        name: Prefix of their names.
    """

    def __init__(self, workers: int, name: str = "mmx-load") -> None:
        super().__init__(workers, thread_name_prefix=name, initializer=_compute_on_one_thread)
        self.workers = workers
        torch = sys.modules.get("torch")
        self._torch_threads = torch.get_num_threads() if torch is not None else None

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)
        if self._torch_threads is not None:
            sys.modules["torch"].set_num_threads(self._torch_threads)

    def map_ahead(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        *,
        ahead: int,
        n_bytes: Callable[[Result], int] = lambda result: 0,
    ) -> Iterator[Result]:
        """Yield `function` of each argument, in order, computed ahead of the reader.

        Args:
            function: Runs in a worker thread.
            arguments: Consumed lazily.
            ahead: At most this many calls are under way or waiting to be read; with more than
                `HELD_BYTES` waiting, only as many as there are workers.
            n_bytes: Size of a result.

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
                waiting.append(self.submit(call, argument))
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
