"""Several runs, one after the other or side by side; what they share is loaded once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmbase.progress import Progress
from mmbench.config import Recipe
from mmbench.runs.inputs import Loader, same_data
from mmbench.runs.parallel_training import train_ahead
from mmbench.runs.run import Result, run, run_folder


def run_series(
    recipes: Iterable[Recipe],
    out: Path,
    *,
    progress: Progress,
    jobs: int = 1,
    restart: bool = False,
) -> list[Result]:
    """The results of some recipes, in order; finished runs are read, not repeated.

    Args:
        recipes: What to run. The inputs of neighbours on the same data are loaded once, and held
            until other data's turn.
        out: Where run folders go.
        progress: Where to report to.
        jobs: Trainings at once, see `mmbench.runs.parallel_training`.
        restart: Train anew even what is finished.

    Raises:
        DataError: Dataset or features are absent or unreadable.
        TrainingError: A training diverged, or another process is writing one of the runs.
    """
    results: list[Result] = []
    load = Loader(progress)
    for group in _grouped(recipes):
        planned = [load(recipe) for recipe in group]
        if jobs > 1:
            train_ahead(planned, out, jobs=jobs, progress=progress, restart=restart)
        anew = restart and jobs == 1
        for recipe, loaded in planned:
            folder = run_folder(out, recipe, loaded)
            results.append(run(recipe, loaded, folder, progress=progress, restart=anew))
    return results


def _grouped(recipes: Iterable[Recipe]) -> list[list[Recipe]]:
    groups: list[list[Recipe]] = []
    for recipe in recipes:
        if groups and all(same_data(other, recipe) for other in groups[-1]):
            groups[-1].append(recipe)
        else:
            groups.append([recipe])
    return groups
