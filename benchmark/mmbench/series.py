"""Several runs, one after the other or side by side; what they share is loaded once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmbench.ahead import same_data, train_ahead
from mmbench.config import Recipe
from mmbench.experiment import Result, load_inputs, run, run_folder
from mmbench.progress import Progress
from mmbench.record import Inputs, coverage


def run_series(
    recipes: Iterable[Recipe], out: Path, *, progress: Progress, jobs: int = 1, restart: bool = False
) -> list[Result]:
    """The results of some recipes, in order; finished runs are read, not repeated.

    Args:
        recipes: What to run. The inputs of neighbours on the same data are loaded once, and held until other data's turn.
        out: Where run folders go.
        progress: Where to report to.
        jobs: Trainings at once, see `mmbench.ahead`.
        restart: Train anew even what is finished.

    Raises:
        DataError: Dataset or features are absent or unreadable.
        TrainingError: A training diverged, or another process is writing one of the runs.
    """
    results: list[Result] = []
    said: set[str] = set()
    for group in _grouped(recipes):
        planned: list[tuple[Recipe, Inputs]] = []
        inputs: Inputs | None = None
        for recipe in group:
            resolved, inputs = load_inputs(recipe, inputs)
            for line in coverage(inputs):
                if line not in said:
                    progress.note(line)
                    said.add(line)
            planned.append((resolved, inputs))
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
