"""Choose among the trials of a grid or search by validation; one that diverges is passed over."""

from __future__ import annotations

from typing import Any

from mmbase.progress import Progress
from mmbench.config import Recipe, read_recipe, write_recipe
from mmbench.errors import Diverged
from mmbench.evaluation.protocol import Setting
from mmbench.runs.fit import fit_one, in_words
from mmbench.runs.folder import RunFolder
from mmbench.runs.search import Trial, propose, size, typed


def fit(
    recipe: Recipe,
    setting: Setting,
    folder: RunFolder,
    progress: Progress,
    *,
    jobs: int = 1,
) -> tuple[Recipe, RunFolder]:
    """Train the recipe, or each trial of its grid or search.

    Trainings that are finished in the folder are read, not repeated, and a search ends when its
    space is exhausted. `jobs`: how many trainings run on this machine at once, for the record.

    Returns:
        The chosen recipe and the folder of its checkpoint.

    Raises:
        Diverged: The training did, or every trial.
    """
    if not recipe.searched:
        fit_one(recipe, setting, folder, progress, jobs=jobs)
        return recipe, folder
    search = typed(recipe)
    grid = recipe.trials() if search is None else []
    n_trials = len(grid) if search is None else int(min(search.budget, size(search)))
    past: list[Trial] = []
    reasons: list[str] = []
    best: tuple[float, Recipe, RunFolder] | None = None
    for number in range(n_trials):
        trial_folder = folder.trial(number)
        if search is None:
            trial = grid[number]
        elif trial_folder.recipe_path.is_file():
            # Begun before: a newer sampler might propose something else.
            trial = recipe.trial(read_recipe(trial_folder.recipe_path).settings.model_dump())
        else:
            # Depends on the results so far alone, so a killed search goes on as it would have.
            trial = recipe.trial(propose(search, recipe.seed, past))
        label = f"trial {number + 1}/{n_trials} {values_in_words(recipe, trial)}"
        value, known = None, trial_folder.failure
        try:
            value = fit_trial(trial, setting, trial_folder, progress, label=label, jobs=jobs)
        except Diverged as error:
            reasons.append(str(error))
            if not known:
                progress.warn(f"{recipe.model} seed {recipe.seed}, {label}: failed: {error}")
        past.append((_values(recipe, trial), value))
        if value is not None and (best is None or value > best[0]):
            best = (value, trial, trial_folder)
    if best is None:
        raise Diverged(f"all {n_trials} trials failed, the first one: {reasons[0]}")
    return best[1], best[2]


def fit_trial(
    trial: Recipe,
    setting: Setting,
    folder: RunFolder,
    progress: Progress,
    *,
    label: str = "",
    jobs: int = 1,
) -> float:
    """Train one trial in its own folder, recipe beside it; return its validation value."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_recipe(folder.recipe_path, trial)
    return fit_one(trial, setting, folder, progress, label=label, jobs=jobs)


def _values(recipe: Recipe, trial: Recipe) -> dict[str, Any]:
    return {name: getattr(trial.settings, name) for name in recipe.searched}


def trials_of(recipe: Recipe, folder: RunFolder) -> list[dict[str, Any]]:
    """Return what each trial of a finished search came to, for the run's record.

    Its `settings`, and `value` and `best_epoch`, or `failed`: the reason.
    """
    told: list[dict[str, Any]] = []
    while (one := folder.trial(len(told))).recipe_path.is_file():
        settings = read_recipe(one.recipe_path).settings.model_dump(mode="json")
        outcome = {"failed": one.failure}
        if one.trained:
            trained = one.read_json("trained.json")
            outcome = {"value": trained["value"], "best_epoch": trained["best_epoch"]}
        told.append({"settings": {name: settings[name] for name in recipe.searched}, **outcome})
    return told


def values_in_words(recipe: Recipe, trial: Recipe) -> str:
    """Name the values of a trial: `lr=0.001, reg_weight=0.1`."""
    return ", ".join(
        f"{name}={in_words(getattr(trial.settings, name))}" for name in recipe.searched
    )
