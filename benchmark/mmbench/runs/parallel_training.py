"""Several trainings at once, each in a process of its own: the trials of grids, models, seeds.

A training leaves in its folder what it would have left there had it run alone, up to rounding that
depends on the number of threads. So nothing else has to know: `experiment.run` finds finished
trainings, chooses by validation and scores test once. Every process loads the data itself; memory
is that of one training times the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mmbase.process import tune_process
from mmbench.config import Recipe, write_recipe
from mmbench.errors import DataError, TrainingError
from mmbench.models import model_class
from mmbench.progress import Progress, Silent
from mmbench.runs.fit import fit, fit_trial, values_in_words
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, Loader
from mmbench.runs.run import locked, run_folder


@dataclass(frozen=True)
class _Job:
    """One training: a recipe, or one trial of its grid."""

    recipe: Recipe
    trial: int | None
    folder: Path
    jobs: int

    @property
    def label(self) -> str:
        one = self.recipe if self.trial is None else self.recipe.trials()[self.trial]
        tried = "" if self.trial is None else f", {values_in_words(self.recipe, one)}"
        return f"{self.recipe.model} seed {self.recipe.seed}{tried}"


def train_ahead(
    planned: Sequence[tuple[Recipe, Inputs]],
    out: Path,
    *,
    jobs: int,
    progress: Progress,
    restart: bool = False,
) -> None:
    """Do the trainings that runs still lack, `jobs` at a time; the runs themselves are finished by `experiment.run`.

    The trials of a search, each of which is proposed by the results before it, are one training.

    Args:
        planned: Recipes with their inputs, as `load_inputs` gives them.
        out: Where run folders are.
        jobs: Processes, >= 1; torch's threads are divided among them.
        progress: Where to report to.
        restart: Remove what earlier runs left first.

    Raises:
        TrainingError: A training diverged, was killed, or another process is writing one of the
            runs.
    """
    with ExitStack() as held:
        mine: list[tuple[Recipe, RunFolder]] = []
        for recipe, inputs in planned:
            folder = run_folder(out, recipe, inputs)
            if (
                restart or not folder.complete
            ):  # else, as in `experiment.run`, nothing is written, not even a lock
                held.enter_context(locked(folder))
                mine.append((recipe, folder))
        todo: list[_Job] = []
        for (
            recipe,
            folder,
        ) in mine:  # all are held: nothing is removed where another process would stop this one
            if restart:
                folder.clear()
            if not folder.complete and model_class(recipe.model).sampler is not None:
                write_recipe(folder.recipe_path, recipe)
                todo += [
                    _Job(recipe, trial, folder.path, jobs) for trial in _missing(recipe, folder)
                ]
        if len(todo) > 1:  # one alone is better off with all threads
            _run(todo, min(jobs, len(todo)), progress)


def _missing(recipe: Recipe, folder: RunFolder) -> list[int | None]:
    """Which trials of a run have not been trained; [None] for the whole of a run that has no grid."""
    if not recipe.grid:
        return [] if folder.trained else [None]
    return [number for number in range(len(recipe.trials())) if not folder.trial(number).trained]


def _run(todo: Sequence[_Job], jobs: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    listen, held = context.Pipe(
        duplex=False
    )  # nobody writes: it is closed here, or by the end of this process
    with (
        progress.task(f"{jobs} trainings at once", len(todo)) as task,
        ProcessPoolExecutor(jobs, context, _start, (listen, threads)) as pool,
    ):
        try:
            with _interrupts_blocked():  # here processes are started
                futures: dict[Future[None], _Job] = {pool.submit(_train, job): job for job in todo}
            for future in as_completed(futures):
                future.result()
                task.advance(1, futures[future].label)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a training process was killed, perhaps for want of memory; fewer --jobs than "
                f"{jobs} need less. "
                "What is finished is kept: the same command goes on"
            ) from error
        finally:
            held.close()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C waits until this is over; processes started meanwhile do not see it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(listen: Connection, threads: int) -> None:
    """Prepare a process. It ends with its parent, however that ended, and leaves Ctrl-C to it."""
    tune_process()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        listen.poll(None)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


_load = Loader(Silent())  # in a training process: the job before may be on the same data


def _train(job: _Job) -> None:
    """Do one training, in a training process."""
    recipe, inputs = _load(job.recipe)
    if run_folder(job.folder.parent, recipe, inputs).path != job.folder:
        raise DataError(
            f"{recipe.data}: interactions or features have changed since this command began; start "
            "it again"
        )
    folder, setting = RunFolder(job.folder), inputs.setting(recipe.evaluation)
    if job.trial is None:
        fit(recipe, setting, folder, Silent(), jobs=job.jobs)
    else:
        trial = recipe.trials()[job.trial]
        fit_trial(trial, setting, folder.trial(job.trial), Silent(), jobs=job.jobs)
