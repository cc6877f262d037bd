"""Where windows are encoded: executors take the pending windows and yield results in order.

An executor decides where the steps of `mmx.extraction.window` run and never what they compute;
`LocalExecutor` uses threads and processes of this machine, `SerialExecutor` none. The feature files
stay with the thread that reads the results.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from mmbase.process import available_cpus
from mmx.encoders import Encoder
from mmx.extraction.passes import PassClock, Rows, WindowResult, encode_batch, is_on_cpu
from mmx.extraction.processes import (
    LIGHT_PROCESS_BYTES,
    PROCESS_BYTES,
    Processes,
    affordable,
    impossible,
    loaders_of,
    portable,
)
from mmx.extraction.summary import LoadingReport
from mmx.extraction.tuning import Setting, Tuner, Wish
from mmx.extraction.window import (
    LoadedSpan,
    ReadElsewhere,
    Segments,
    Span,
    Task,
    batches_of,
    encode_window,
    load,
    span_rows,
    spans,
)

HELD_BYTES = 1 << 28
"""Loaded items that wait for the encoder: above this size each worker loads one span at most."""

MANY_ROWS = 1024
"""Fewer contents are loaded by threads, unless they are measured to be in each other's way."""

PASSES_ON_GPU, PASSES_ON_LARGE_GPU = 2, 3
"""Concurrent forward passes on a GPU: while one computes, the next batch is made and copied.

Each has a thread of its own, and with it a CUDA stream and memory of its own.
"""

LARGE_GPU_BYTES = 40 << 30
"""Memory of a GPU that takes one pass more."""

Windows = Iterable[Sequence[Rows]]
"""For each window the wanted rows of every task, of which some may have none."""
Results = Generator[tuple[int, WindowResult], None, None]
"""The place of a task and a result of it."""
Condition = Callable[[], bool]
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Executor(Protocol):
    """Encodes windows somewhere.

    Attributes:
        workers: How many loads may run at once, for the summary.
        report: How contents are loaded; complete once the run has ended.
    """

    workers: int

    @property
    def report(self) -> LoadingReport:
        """How contents are loaded, and how that was found."""
        ...

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Yield results in the order of the windows, a bounded number of windows ahead.

        Those of several devices come as they are there. A window may come in several results, which
        together are what `encode_window` returns for each task. Before an error is raised, what was
        computed until then is yielded.

        Args:
            tasks: Encoders whose plans share contents, batch size and window.
            windows: Consumed lazily.
            stopping: Whether to yield what is under way and end; asked after every result.
        """
        ...


class SerialExecutor:
    """Encodes one window after the other in the calling thread."""

    workers = 1
    report = LoadingReport("threads", 1, "one item after the other")

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Yield one result for each window and task with wanted rows."""
        for wanted in windows:
            for place, (task, rows) in enumerate(zip(tasks, wanted, strict=True)):
                if len(rows):
                    yield place, encode_window(task.plan, task.encoder_of(int(rows[0])), rows)
                if stopping():
                    return


class LocalExecutor:
    """Encodes with the threads of this process, on one device or several.

    Threads load contents ahead of the encoders, or see to it that processes do; on a processor they
    run the forward passes of encoders that are `concurrent`, too. On a GPU passes have threads of
    their own. Other encoders run in the calling thread. All passes of a device share one copy of
    the weights, and no feature file is inherited by a fork.

    Args:
        workers: Contents to load at a time; None: one per available processor on a processor, and
            on a GPU what was measured to be fastest.
        loading: `threads`, `processes`, or what was measured to be faster.
        elsewhere: Loads contents for the threads, on other machines, say.
    """

    def __init__(
        self,
        workers: int | None = None,
        loading: Wish = "auto",
        elsewhere: ReadElsewhere | None = None,
    ) -> None:
        self.workers = workers or available_cpus()
        self._given, self._wish, self._elsewhere = workers, loading, elsewhere
        self.report = LoadingReport("threads", self.workers)

    def run(self, tasks: Sequence[Task], windows: Windows, stopping: Condition) -> Results:
        """Yield results batch by batch; see `Executor.run`."""
        with ExitStack() as stack:
            loading = _Loading(tasks, self._given, self._wish, self._elsewhere)
            stack.callback(self._close, loading)
            # The pools end before the processes that their threads wait for.
            loaders = stack.enter_context(WorkerPool(loading.most_workers))
            passes = loaders
            if loading.in_processes:
                passes = stack.enter_context(WorkerPool(loading.most_workers, "mmx-encode"))
            # A pass on a GPU keeps its thread waiting, which should not be one of those that load.
            n_devices = 1 + max(len(task.others) for task in tasks)
            gpus = [
                stack.enter_context(WorkerPool(_passes_on_gpu(), "mmx-encode"))
                for _ in range(n_devices)
            ]
            turns = [Turns() for _ in range(n_devices)]
            streams = [
                _Stream(place, task, _lanes(task, passes, gpus, turns))
                for place, task in enumerate(tasks)
            ]
            try:
                for part, waited_s, workers in self._load_ahead(loaders, loading, tasks, windows):
                    for stream in streams:
                        for result in stream.results(part, waited_s, workers):
                            if result.costs.device_busy_s:
                                loading.tuner.observe_device(result.costs.device_busy_s)
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

    def _close(self, loading: _Loading) -> None:
        self.report = loading.close()

    def _load_ahead(
        self, pool: WorkerPool, loading: _Loading, tasks: Sequence[Task], windows: Windows
    ) -> Iterator[tuple[LoadedSpan, float, int]]:
        """Yield the loaded rows of all windows in order.

        With them the seconds they were awaited, and how many contents were loaded at a time.
        """
        plan, workers = tasks[0].plan, loading.most_workers
        n_devices = 1 + max(len(task.others) for task in tasks)
        # Two windows ahead keep the workers busy while the encoder computes; more would only cost
        # memory. Each device has windows of its own.
        ahead = 2 * n_devices * -(-plan.window // span_rows(plan, workers)) + workers
        if plan.device != "cpu":  # a late span keeps no other loader waiting
            ahead += workers
        loading.tuner.n_ahead = ahead
        parts = pool.map_ahead(
            loading.load,
            (span for wanted in windows for span in spans(plan, wanted, workers)),
            ahead=ahead,
            n_bytes=lambda part: sum(part[0].held_bytes),
        )
        began = time.perf_counter()
        for part, setting, taken_s in parts:
            yield part, time.perf_counter() - began, setting.workers
            began = time.perf_counter()
            loading.observe(part, setting, taken_s)


class _Loading:
    """Loads spans as its tuner says, which it tells what came of it.

    Args:
        tasks: Encoders that share contents.
        workers: Contents to load at a time; None: found by measuring.
        wish: What the user asked for.
        elsewhere: Loads contents for the threads.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        workers: int | None,
        wish: Wish,
        elsewhere: ReadElsewhere | None = None,
    ) -> None:
        self._tasks, self._elsewhere = tasks, elsewhere
        self._processes: Processes | None = None
        self._told = False
        self._ending: threading.Thread | None = None
        self._began = self._settled_at = self._last = time.perf_counter()
        self._n_since = 0  # rows that came through since nothing is tried any more
        self._gate = _Gate()
        plan = tasks[0].plan
        on_cpu = all(task.plan.device == "cpu" for task in tasks)
        self._n_rows = len(plan.items)
        self._portable = b""
        unfit, light = impossible(), False
        processors = available_cpus()
        if wish == "auto" and plan.config.modality == "textual":
            # Tokenizers hold no lock, so that there is nothing to find out.
            wish, workers = "threads", workers or processors
        elif wish != "threads" and not (unfit or (wish == "auto" and on_cpu)):
            loaders, light = loaders_of([task.encoder for task in tasks])
            try:
                self._portable = portable(loaders, plan.config.background)
            except ValueError as error:
                unfit, light = str(error), False
        each_bytes = LIGHT_PROCESS_BYTES if light else PROCESS_BYTES
        self.tuner = Tuner(
            wish, workers, processors, on_cpu=on_cpu, unfit=unfit,
            most_processes=affordable(processors, each_bytes),
            at_once=light and self._n_rows >= MANY_ROWS,
        )  # fmt: skip
        self.most_workers = self.tuner.most_workers
        self.in_processes = self.tuner.setting.how == "processes"
        self._follow()

    def load(self, span: Span) -> tuple[LoadedSpan, Setting, float]:
        """Load a span, once the setting allows another one; safe to call from any thread.

        Returns:
            The rows, by which setting they were loaded, and the seconds for which that took one of
            its places.
        """
        with self._gate.passed() as setting:
            processes = self._processes if setting.how == "processes" else None
            elsewhere = processes.read if processes is not None else self._elsewhere
            began = time.perf_counter()
            part = load(self._tasks, span, elsewhere)
            return part, setting, time.perf_counter() - began

    def observe(self, part: LoadedSpan, setting: Setting, taken_s: float) -> None:
        """Tell the tuner about a span that was awaited and taken; called by one thread."""
        if self._processes is not None and not self._told and self._processes.started:
            self._told = True
            self.tuner.processes_started(self._processes.n_ready, self._processes.failure)
        span, self._last = part.span, time.perf_counter()
        n_items, n_left = span.stop - span.start, self._n_rows - span.stop
        if self.tuner.settled:
            self._n_since += n_items
        else:
            self._settled_at = self._last
            load_s = taken_s if setting.how == "processes" else part.wall_s - part.blocked_s
            self.tuner.observe(setting, n_items, part.cpu_s, load_s, n_left)
        self._follow()

    def close(self) -> LoadingReport:
        """End the processes; return how contents were loaded."""
        n_replaced = 0
        if self._processes is not None:
            n_replaced = self._processes.n_replaced
            self._processes.close()
        if self._ending is not None:
            self._ending.join()
        report, since_s = self.tuner.report(n_replaced), self._last - self._settled_at
        if not report.rates or since_s <= 0:
            return report
        return replace(
            report,
            settled_after_s=self._settled_at - self._began,
            items_per_s=self._n_since / since_s,
        )

    def _follow(self) -> None:
        """Do what the tuner says."""
        tuner = self.tuner
        if tuner.wanted_processes and self._processes is None:
            self._processes = Processes(self._portable, tuner.wanted_processes)
        self._gate.change(tuner.setting)
        if tuner.settled and self._told and self._ending is None and self._processes is not None:
            # What is not used any more ends in the background, for it may have to finish a span.
            count = tuner.setting.workers if tuner.setting.how == "processes" else 0
            self._ending = threading.Thread(target=self._processes.keep, args=(count,))
            self._ending.start()


def _passes_on_gpu() -> int:
    """Return how many passes run at a time on each GPU; GPUs of one run are of one kind."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return PASSES_ON_GPU
    _, n_bytes = torch.cuda.mem_get_info()
    return PASSES_ON_LARGE_GPU if n_bytes >= LARGE_GPU_BYTES else PASSES_ON_GPU


class _Gate:
    """Lets as many threads through at a time as the setting says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._setting: Setting | None = None
        self._inside = 0

    def change(self, setting: Setting) -> None:
        """Let threads through by another setting from now on."""
        if setting != self._setting:
            with self._changed:
                self._setting = setting
                self._changed.notify_all()

    @contextmanager
    def passed(self) -> Iterator[Setting]:
        """Wait for a place; yield the setting by which it was given."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._setting is not None and self._inside < self._setting.workers
            )
            setting = self._setting
            assert setting is not None  # for mypy
            self._inside += 1
        try:
            yield setting
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify()


class _Lane(NamedTuple):
    """One device: the encoder there, the threads that run its passes, and those under way."""

    encoder: Encoder
    pool: WorkerPool
    turns: Turns
    clock: PassClock
    passes: deque[Future[WindowResult]]


def _lanes(
    task: Task, pool: WorkerPool, gpus: Sequence[WorkerPool], turns: Sequence[Turns]
) -> list[_Lane]:
    """Return the devices of a task; `pool` runs the passes on a processor, the others on GPUs."""
    encoders = (task.encoder, *task.others)
    if task.plan.device == "cpu":
        n_passes = min(pool.workers, available_cpus()) if task.encoder.concurrent else 1
        gpus = [pool] * len(encoders)
    else:
        n_passes = len(encoders)
    return [
        _Lane(encoder, of_device, turn, PassClock(n_passes), deque())
        for encoder, of_device, turn in zip(encoders, gpus, turns, strict=False)
    ]


class _Stream:
    """The way of one task through the windows: an incomplete segment, and passes under way."""

    def __init__(self, place: int, task: Task, lanes: list[_Lane]) -> None:
        self.place, self.task, self.lanes = place, task, lanes
        self.segments = Segments()
        self._on_cpu = is_on_cpu(task.encoder)

    @property
    def passes(self) -> list[Future[WindowResult]]:
        """All passes that are under way."""
        return [future for lane in self.lanes for future in lane.passes]

    def results(self, part: LoadedSpan, waited_s: float, workers: int) -> Iterator[WindowResult]:
        """Take loaded rows; yield what loading cost, and what has been computed since."""
        if part.items[self.place] is None:
            return
        yield part.result(self.place, waited_s, workers, on_cpu=self._on_cpu)
        for start, items in self.segments.take(part, self.place):
            unusable, batches = batches_of(self.task, start, items, part.span.wanted[self.place])
            yield unusable
            lane = self.lanes[start // self.task.plan.window % len(self.lanes)]
            # One pass more than there are workers is under way before this waits for one. Where
            # other devices wait for the next window, all of this one go ahead.
            n_left = lane.pool.workers
            if len(self.lanes) > 1:
                n_left = max(n_left, len(batches))
            for batch in batches:
                arguments = lane.encoder, batch, lane.turns.taken, lane.clock
                if lane.encoder.concurrent:
                    lane.passes.append(lane.pool.submit(encode_batch, *arguments))
                    yield from _finished(lane, n_left)
                else:
                    yield encode_batch(*arguments)

    def finished(self, n_left: int) -> Iterator[WindowResult]:
        """Yield results until no more than `n_left` passes are under way on each device."""
        for lane in self.lanes:
            yield from _finished(lane, n_left)


def _finished(lane: _Lane, n_left: int) -> Iterator[WindowResult]:
    while len(lane.passes) > n_left:
        began = time.perf_counter()
        result = lane.passes.popleft().result()
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
