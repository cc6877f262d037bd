"""Trainings as work items, and where they run: in this process, or several at once in processes.

A training leaves in its folder what it would have left there on its own, up to rounding that
depends on the number of threads; a run finds it there, whoever trained. Another executor, say for a
cluster, needs `at_once`, `map`, and a file system that its workers share with this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from mmbase.process import tune_process
from mmbench.config import Recipe
from mmbench.errors import DataError, TrainingError
from mmbench.progress import Progress, Silent
from mmbench.runs.fit import fit, fit_trial, values_in_words
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, Loader
from mmbench.runs.run import run_folder


@dataclass(frozen=True)
class Job:
    """One training: a whole run, or one trial of its grid. It can be pickled.

    Attributes:
        recipe: The run's recipe, resolved by `load_inputs`.
        folder: The run's folder.
        trial: Number of the trial; None for all that the recipe asks for.
        at_once: Trainings on the machine at once, for the record.
        inputs: What this process has loaded of the recipe; not pickled, other processes load it.
    """

    recipe: Recipe
    folder: Path
    trial: int | None = None
    at_once: int = 1
    inputs: Inputs | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "inputs": None}

    @property
    def label(self) -> str:
        """Model, seed and what the trial tries."""
        name = f"{self.recipe.model} seed {self.recipe.seed}"
        if self.trial is None:
            return name
        return f"{name}, {values_in_words(self.recipe, self.recipe.trials()[self.trial])}"


Train = Callable[[Job, Progress], RunFolder]
"""The type of `train`, which executors get as an argument."""


class Executor(Protocol):
    """Where trainings run."""

    @property
    def at_once(self) -> int:
        """How many trainings it can run at once, >= 1."""

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        """Train every job; yield each with its folder, in any order, when it is finished.

        Raises:
            TrainingError: A training diverged or was killed. What is finished is kept.
        """


_load = Loader(Silent())  # a worker's next job may be on the same data


def train(job: Job, progress: Progress) -> RunFolder:
    """Do one training and return the folder in which it is.

    Raises:
        DataError: The data have changed since the job was made.
        TrainingError: The training diverged.
    """
    recipe, inputs = _load(job.recipe) if job.inputs is None else (job.recipe, job.inputs)
    if run_folder(job.folder.parent, recipe, inputs).path != job.folder:
        changed = "interactions or features have changed since this command began"
        raise DataError(f"{recipe.data}: {changed}; start it again")
    folder, training = RunFolder(job.folder), inputs.split.training
    if job.trial is None:
        return fit(recipe, training, inputs.features, folder, progress, jobs=job.at_once)[1]
    trial, folder = recipe.trials()[job.trial], folder.trial(job.trial)
    fit_trial(trial, training, inputs.features, folder, progress, jobs=job.at_once)
    return folder


@dataclass(frozen=True)
class InProcess:
    """Trains one job after the other in this process, with all threads."""

    progress: Progress
    at_once: int = 1

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        """See `Executor.map`."""
        return ((job, train(job, self.progress)) for job in jobs)


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
                    futures = {pool.submit(train, job, Silent()): job for job in jobs}
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


def local_executor(at_once: int, progress: Progress) -> Executor:
    """Return the executor for this machine: this process, or `at_once` > 1 others."""
    return ProcessExecutor(at_once, progress) if at_once > 1 else InProcess(progress)


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
