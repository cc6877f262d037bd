"""Several runs: missing trainings go to an executor, then each run is finished in its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from mmbench.config import Recipe, write_recipe
from mmbench.models import model_class
from mmbench.progress import Progress
from mmbench.runs.executors import Executor, Job, train
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, Loader, same_data
from mmbench.runs.run import Result, locked, run, run_folder


class Batch:
    """Runs in one folder; what neighbours on the same data need is loaded once.

    Args:
        out: Where run folders go; finished runs there are read, not repeated.
        executor: Where trainings run.
        progress: Where to report to.
    """

    def __init__(self, out: Path, executor: Executor, progress: Progress) -> None:
        self._out, self._executor, self._progress = out, executor, progress
        self._load = Loader(progress)

    def train_ahead(self, recipes: Iterable[Recipe]) -> None:
        """Train what `run` would train later, if more than one training can run at once."""
        if self._executor.at_once > 1:
            self._train([self._load(recipe) for recipe in recipes])

    def run(self, recipes: Iterable[Recipe], *, restart: bool = False) -> list[Result]:
        """Do what is left of the runs and return their results, in order.

        Args:
            recipes: What to run; the inputs of neighbours on the same data are held together.
            restart: Train anew even what is finished.

        Raises:
            DataError: Dataset or features are absent or unreadable.
            TrainingError: A training diverged, or another process is writing one of the runs.
        """
        results: list[Result] = []
        for group in _by_data(recipes):
            planned = [self._load(recipe) for recipe in group]
            # One at a time, a run is finished before the next one begins: its result is kept
            # whatever happens to those after it.
            waves = [planned] if self._executor.at_once > 1 else [[one] for one in planned]
            for wave in waves:
                self._train(wave, restart=restart)
                results += [self._finish(recipe, inputs) for recipe, inputs in wave]
        return results

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
                if not folder.complete and model_class(recipe.model).sampler is not None:
                    write_recipe(folder.recipe_path, recipe)
                    jobs += self._missing(recipe, inputs, folder)
            if jobs:
                deque(self._executor.map(train, jobs), maxlen=0)

    def _missing(self, recipe: Recipe, inputs: Inputs, folder: RunFolder) -> list[Job]:
        """The trainings that a run lacks: the trials of a grid one by one if that gains time."""
        at_once = self._executor.at_once
        trials: list[int | None] = [] if folder.trained else [None]
        # The trials of a search are one job: each is proposed by the results before it.
        if recipe.grid and at_once > 1:
            trials = [n for n in range(len(recipe.trials())) if not folder.trial(n).trained]
        return [Job(recipe, folder.path, trial, at_once, inputs) for trial in trials]


def _by_data(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    """Group neighbours on the same data, whose inputs are held at the same time."""
    groups: list[list[Recipe]] = []
    for recipe in recipes:
        if groups and all(same_data(other, recipe) for other in groups[-1]):
            groups[-1].append(recipe)
        else:
            groups.append([recipe])
    return groups
