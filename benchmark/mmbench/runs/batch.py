"""Several runs: an executor does the missing trainings, then each run is finished in its turn.

A training is a work item, a `Job`. It leaves in its folder what it would have left there on its
own, up to rounding that depends on the number of threads; a run finds it there, whoever trained.
An executor needs `at_once`, `map`, and a file system that its workers share with this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmbase.progress import Progress, Series, Silent
from mmbench.config import Recipe, write_recipe
from mmbench.errors import DataError, Diverged, SomeFailed
from mmbench.models import model_class
from mmbench.runs.fit import as_begun
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, Loader, remember, require_modalities, same_data
from mmbench.runs.run import Result, check_data, fit, locked, run, run_folder
from mmbench.runs.search import count_trials, fit_trial, values_in_words


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
            TrainingError: A training was killed. What is finished is kept.
        """


_load = Loader(Silent())  # a worker's next job may be on the same data


def train(job: Job, progress: Progress) -> RunFolder:
    """Do one training and return the folder in which it is; where it diverged, that says so.

    Raises:
        DataError: The data have changed since the job was made.
    """
    recipe, inputs = _load(job.recipe) if job.inputs is None else (job.recipe, job.inputs)
    if run_folder(job.folder.parent, recipe, inputs).path != job.folder:
        changed = "interactions or features have changed since this command began"
        raise DataError(f"{recipe.data}: {changed}; start it again")
    folder, setting = RunFolder(job.folder), inputs.setting_of(recipe)
    with as_begun(folder), suppress(Diverged):
        if job.trial is None:
            return fit(recipe, setting, folder, progress, jobs=job.at_once)[1]
        trial, folder = recipe.trials()[job.trial], folder.trial(job.trial)
        fit_trial(trial, setting, folder, progress, jobs=job.at_once)
    return folder


@dataclass(frozen=True)
class InProcess:
    """Trains one job after the other in this process, with all threads."""

    progress: Progress
    at_once: int = 1

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        """See `Executor.map`."""
        return ((job, train(job, self.progress)) for job in jobs)


def local_executor(jobs: int, progress: Progress) -> Executor:
    """Return the executor of trainings for `--jobs`: this process, or several others."""
    if jobs == 1:
        return InProcess(progress)
    from mmbench.runs.executors import ProcessExecutor

    return ProcessExecutor(jobs, progress)


_NAMED = 5  # failed trainings that a message lists


class Batch:
    """Runs in one folder; what neighbours on the same data need is loaded once.

    Args:
        out: Where run folders go; finished runs there are read, not repeated.
        executor: Where trainings run.
        progress: Where to report to.

    Attributes:
        failures: Trainings that failed: which, and why.
    """

    def __init__(self, out: Path, executor: Executor, progress: Progress) -> None:
        self._out, self._executor, self._progress = out, executor, progress
        self._load = Loader(progress)
        self.failures: list[tuple[str, str]] = []
        self._series = Series(0)
        self._diverged: list[Diverged] = []
        self._said: set[str] = set()

    def train_ahead(self, recipes: Iterable[Recipe]) -> None:
        """Train what `run` would train later, if more than one training can run at once."""
        if self._executor.at_once > 1:
            planned = [self._load(recipe) for recipe in recipes]
            self._check(planned)
            self._train(planned)

    def run(self, recipes: Iterable[Recipe], *, restart: bool = False) -> list[Result]:
        """Do what is left of the runs and return their results, in order.

        Like `outcomes`, without the runs that diverged.

        Raises:
            Diverged: All runs did; else see `outcomes`.
        """
        before = len(self._diverged)
        results = [one for one in self.outcomes(recipes, restart=restart) if one is not None]
        if self._diverged[before:] and not results:
            raise self._diverged[before]
        return results

    def outcomes(self, recipes: Iterable[Recipe], *, restart: bool = False) -> list[Result | None]:
        """Do what is left of the runs and return a result each, in order; None where one diverged.

        A run that diverges does not keep others from running; nor does a trial. `failures` has
        both, see `raise_failures`.

        Args:
            recipes: What to run; the inputs of neighbours on the same data are held together.
            restart: Train anew even what is finished.

        Raises:
            DataError: Dataset or features are absent or unreadable.
            TrainingError: Another process is writing one of the runs.
        """
        results: list[Result | None] = []
        recipes = list(recipes)
        require_modalities(recipes)
        self._series = Series(sum(map(_trainings, recipes)))
        ended = 0  # trainings of the runs so far
        for group in _by_data(recipes):
            planned = [self._load(recipe) for recipe in group]
            self._check(planned, restart=restart)  # now, and not after some trainings
            for asked, (loaded, _) in zip(group, planned, strict=True):
                remember(asked, loaded)
            # One at a time, a run is finished before the next one begins: its result is kept
            # whatever happens to those after it.
            waves = [planned] if self._executor.at_once > 1 else [[one] for one in planned]
            for wave in waves:
                self._series.finished = ended
                self._train(wave, restart=restart)
                ended += sum(_trainings(recipe) for recipe, _ in wave)
                for recipe, inputs in wave:
                    label = Job(recipe, self._out).label
                    try:
                        result = self._finish(recipe, inputs)
                    except Diverged as error:
                        self._progress.warn(f"{label}: failed: {error}")
                        self.failures.append((label, str(error)))
                        self._diverged.append(error)
                        results.append(None)
                        continue
                    results.append(result)
                    self.failures += [(f"{label}, {told}", why) for told, why in result.failed]
        return results

    def raise_failures(self) -> None:
        """Raise `SomeFailed` with the list if trainings failed."""
        raise_failures(self.failures)

    def _check(self, planned: Sequence[tuple[Recipe, Inputs]], *, restart: bool = False) -> None:
        """Refuse data that runs can't be made on; say once what a check has to say."""
        for recipe, inputs in planned:
            if restart or not run_folder(self._out, recipe, inputs).complete:
                line = check_data(recipe, inputs)
                if line and line not in self._said:
                    self._progress.note(line)
                    self._said.add(line)

    def _finish(self, recipe: Recipe, inputs: Inputs) -> Result:
        folder = run_folder(self._out, recipe, inputs)
        return run(recipe, inputs, folder, progress=self._progress)

    def _train(self, planned: Sequence[tuple[Recipe, Inputs]], *, restart: bool = False) -> None:
        """Do the trainings that runs still lack."""
        with ExitStack() as locks:
            locked_runs: list[tuple[Recipe, Inputs, RunFolder]] = []
            for recipe, inputs in planned:
                folder = run_folder(self._out, recipe, inputs)
                if restart or not folder.complete:  # a finished run may be in an archive: no lock
                    locks.enter_context(locked(folder))
                    locked_runs.append((recipe, inputs, folder))
            # All are locked: nothing is removed if another process is writing one of them.
            jobs: list[Job] = []
            for recipe, inputs, folder in locked_runs:
                if restart:
                    folder.clear()
                if not folder.complete and model_class(recipe.model).trained:
                    write_recipe(folder.recipe_path, recipe)
                    jobs += self._missing(recipe, inputs, folder)
            # Several at once are a task of their own, which counts them.
            counts = self._executor.at_once == 1 and self._series.total > 1
            if jobs:
                deque(self._executor.map(self._counted if counts else train, jobs), maxlen=0)

    def _counted(self, job: Job, progress: Progress) -> RunFolder:
        """Do one training that says how many there are, and which of them it is."""
        trials = (RunFolder(job.folder).trial(n) for n in range(_trainings(job.recipe)))
        self._series.finished += sum(one.trained or bool(one.failure) for one in trials)
        return train(job, self._series.through(progress))

    def _missing(self, recipe: Recipe, inputs: Inputs, folder: RunFolder) -> list[Job]:
        """The trainings that a run lacks: the trials of a grid one by one if that gains time."""
        at_once = self._executor.at_once
        trials: list[int | None] = [] if folder.trained or folder.failure else [None]
        # The trials of a search are one job: each is proposed by the results before it.
        if recipe.grid and at_once > 1:
            folders = [folder.trial(number) for number in range(len(recipe.trials()))]
            trials = [n for n, one in enumerate(folders) if not (one.trained or one.failure)]
        return [Job(recipe, folder.path, trial, at_once, inputs) for trial in trials]


def raise_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Raise `SomeFailed` if trainings failed; `failures` has which, and why."""
    if failures:
        told = "; ".join(f"{label}: {reason}" for label, reason in failures[:_NAMED])
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        number = "1 training" if len(failures) == 1 else f"{len(failures)} trainings"
        raise SomeFailed(f"{number} failed, all others are finished: {told}{more}")


def _trainings(recipe: Recipe) -> int:
    if not model_class(recipe.model).trained:
        return 0
    return count_trials(recipe) if recipe.searched else 1


def _by_data(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """Group neighbours on the same data, whose inputs are held at the same time."""
    groups: list[list[Recipe]] = []
    for recipe in recipes:
        if groups and all(same_data(other, recipe) for other in groups[-1]):
            groups[-1].append(recipe)
        else:
            groups.append([recipe])
    return groups
