"""Several trainings at once on this machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch

from mmbase.process import tune_process
from mmbase.progress import Progress, Silent
from mmbench.errors import TrainingError
from mmbench.runs.batch import InProcess, Job, Train
from mmbench.runs.folder import RunFolder


@dataclass(frozen=True)
class ProcessExecutor:
    """Trains in `at_once` processes of its own, among which torch's threads are divided.

    Every process loads the data itself: memory is that of one training times `at_once`. Folders are
    handed on when all trainings are over, so that no evaluation is timed beside a training.
    """

    at_once: int
    progress: Progress

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        """See `Executor.map`; a single job is done in this process, with all threads."""
        if len(jobs) < 2:
            alone = [replace(job, at_once=1) for job in jobs]
            return InProcess(self.progress).map(train, alone)
        return iter(self._map(train, jobs, min(self.at_once, len(jobs))))

    def _map(
        self, train: Train, jobs: Sequence[Job], processes: int
    ) -> list[tuple[Job, RunFolder]]:
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // processes)
        # Nobody writes to the pipe: it is closed below, or by the end of this process.
        listen, held = context.Pipe(duplex=False)
        finished: list[tuple[Job, RunFolder]] = []
        with (
            self.progress.task(f"{processes} trainings at once", len(jobs)) as task,
            ProcessPoolExecutor(processes, context, _start_worker, (listen, threads)) as pool,
        ):
            try:
                with _interrupts_blocked():  # processes start in here
                    # As many share the machine, and a GPU's memory, as there are processes.
                    futures = {
                        pool.submit(train, replace(job, at_once=processes), Silent()): job
                        for job in jobs
                    }
                for future in as_completed(futures):
                    finished.append((futures[future], future.result()))
                    task.advance(1, futures[future].label)
            except BrokenProcessPool as error:
                raise TrainingError(
                    "a training process was killed, perhaps for want of memory; fewer --jobs than "
                    f"{processes} need less. What is finished is kept: the same command goes on"
                ) from error
            finally:
                held.close()
                pool.shutdown(cancel_futures=True)
        return finished


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never see it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(listen: Connection, threads: int) -> None:
    """Prepare a process that ends with its parent, however that ended, and leaves Ctrl-C to it."""
    tune_process()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        listen.poll(None)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
