"""Train models: from plain arguments or recipes to finished runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, Unpack

from mmbase.parameters import split_list
from mmbase.progress import Progress
from mmbench.config import (
    Evaluation,
    Range,
    Recipe,
    Search,
    for_model,
    make_evaluation,
    make_recipe,
    make_settings,
)  # fmt: skip
from mmbench.data.missing import policy_of
from mmbench.errors import SomeFailed, UsageError
from mmbench.interface.choices import (
    Choices,
    Place,
    of,
    reporter,
    require_count,
    require_known,
    require_mappings,
    run_folder,
    several,
)  # fmt: skip
from mmbench.interface.demo import make_demo
from mmbench.interface.process import as_found
from mmbench.interface.results import Dataset, Runs
from mmbench.models import model_class, model_name
from mmbench.models.start import StartFrom
from mmbench.runs.batch import Batch, Executor, local_executor
from mmbench.runs.recipe_lists import read_plan
from mmbench.runs.search import require_optuna
from mmbench.runs.start import with_digest
from mmbench.runs.trackers import tracking

Models: TypeAlias = str | Sequence[str]
Grid: TypeAlias = Mapping[str, Sequence[Any]]
Space: TypeAlias = Mapping[str, Range | Sequence[Any]]


def train(
    model: Models | Recipe | Sequence[Recipe] | PathLike[str],
    data: Place | Dataset | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    out: Place = "runs",
    jobs: int = 1,
    executor: Executor | None = None,
    restart: bool = False,
    track: str | Sequence[str] = (),
    progress: Progress | bool = False,
    **choices: Unpack[Choices],
) -> Runs:
    """Train models, score each once on test, and return the finished runs, as `mmbench train` does.

    A run is a folder under `out`, named after everything that decides its numbers: the same call
    again reads a finished run, and continues an unfinished one.

    Args:
        model: Names of models, `"vbpr"`, `"vbpr,bpr-mf"` or a list; or recipes of `recipes`; or the
            `Path` of a recipe file, as of `mmbench run`. With recipes there are no other choices,
            with a file `data` and `seed` take the place of its own.
        data: A dataset folder, or a `Dataset`, whose split and columns are taken, too. None: the
            demonstration catalogue `data/demo`, which is made if it is absent.
        seed: One run per seed; 123 if None.
        settings: Settings of the models that have them: `{"lr": 0.001, "vbpr.reg_weight": 0.01}`.
        grid: Values to try, from which validation chooses: `{"lr": [0.0005, 0.001]}`.
        out: The folder of run folders.
        jobs: Trainings at once, each in a process of its own.
        executor: Where trainings run, in place of `jobs`; see `mmbench.runs.batch.Executor`.
        restart: Train anew even what is finished.
        track: `"tensorboard"`, `"mlflow"` or `"wandb"`, each perhaps with a place,
            `"tensorboard:logs"`, one or several; needs the extra `track`.
        progress: True: notes and bars on stderr, as on the command line.
        choices: Keys of a recipe, and of its evaluation: `Choices` lists them.

    Returns:
        A result per model and seed, in order.

    Raises:
        UsageError: A name or value that does not exist; all are checked before anything is trained.
        DataError: The dataset or the features lack what is needed.
        TrainingError: Another process is writing one of the runs.
        Diverged: All trainings did.
        SomeFailed: Some trainings failed; the attribute `finished` has the runs that did not.
    """
    told = reporter(progress)
    require_count("jobs", jobs)
    asked = _asked(model, data, seed, settings, grid, told, choices)
    with as_found(), tracking(several(track), told):
        batch = Batch(Path(out), executor or local_executor(jobs, told), told)
        runs = Runs(tuple(batch.run(asked, restart=restart)))
    try:
        batch.raise_failures()
    except SomeFailed as error:
        error.finished = runs
        raise
    return runs


def tune(
    model: Models,
    data: Place | Dataset | None = None,
    *,
    search: Space,
    sampler: Literal["tpe", "random"] = "tpe",
    pruner: Literal["none", "median", "halving", "hyperband"] = "none",
    budget: int = 12,
    seed: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Place = "runs",
    jobs: int = 1,
    progress: Progress | bool = False,
    **choices: Unpack[Choices],
) -> Runs:
    """Search settings on validation, with equally many trials for every model; score test once.

    Args:
        model: Names of models; see `train`.
        data: See `train`.
        search: Setting to `Range` or to values: `{"lr": Range(low=1e-4, high=1e-2, log=True)}`.
        sampler: Proposals where earlier trials did well (extra `tune`), or at random.
        pruner: How trials that do worse than others did are ended early (extra `tune`).
        budget: Trials of each model, 1 to 100,000.
        seed: See `train`; the proposals depend on it, too.
        settings: Settings that are not searched.
        out: The folder of run folders.
        jobs: Trainings at once.
        progress: See `train`.
        choices: See `train`.

    Returns:
        A result per model and seed, with the settings that validation chose.

    Raises:
        UsageError: As `train`; or optuna, of the extra `tune`, is not installed.
        ToolError: As `train`.
    """
    told = reporter(progress)
    how = {"sampler": sampler, "pruner": pruner, "budget": budget}
    given: Any = {"seed": seed, "settings": settings, "progress": told}
    asked = recipes(model, data, search=search, how=how, **given, **choices)
    return train(asked, out=out, jobs=jobs, progress=told)


def recipes(
    model: Models,
    data: Place | Dataset | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    search: Space | None = None,
    how: Mapping[str, Any] | None = None,
    progress: Progress | bool = False,
    **choices: Unpack[Choices],
) -> list[Recipe]:
    """Return a recipe for each model and seed, and train nothing.

    Settings, grids and searches apply to the models that have them; a model without randomness has
    one recipe, whatever the seeds.

    Args:
        model: See `train`.
        data: See `train`.
        seed: See `train`.
        settings: See `train`.
        grid: See `train`.
        search: See `tune`.
        how: `sampler`, `pruner` and `budget` of the search.
        progress: Told if the demonstration catalogue has to be made.
        choices: See `train`.

    Raises:
        UsageError: A value is not allowed.
        DataError: The run that the models start from is not finished.
    """
    require_known(choices, Choices)
    require_mappings('{"lr": 0.001}', settings=settings)
    require_mappings('{"lr": [0.001, 0.01]}', grid=grid, search=search)
    names = list(dict.fromkeys(map(model_name, split_list(several(model)))))
    if not names:
        raise UsageError("--model is missing; e.g. --model vbpr,bpr-mf (see `mmbench models`)")
    shared = of(Recipe, {**choices}) | {"evaluation": make_evaluation(**of(Evaluation, choices))}
    grid, space, how = _grid(grid), dict(search or {}), dict(how or {})
    if space:
        if how.get("sampler") != "random":
            require_optuna("--sampler tpe", "--sampler random")  # now, and not after some trials
        if how.get("pruner", "none") != "none":
            require_optuna(f"--pruner {how['pruner']}", "--pruner none")
    models = {name: model_class(name) for name in names}
    policy = policy_of(shared.get("missing", "mean"))
    drops = policy.DROPS
    needs_features = drops or any(one.uses_features for one in models.values())
    _require_content(shared, needs_features=needs_features, draws=policy.DRAWS)
    if "start_from" in shared:  # now, and not after a catalogue was made
        start = str(run_folder(shared["start_from"]))
        shared["start_from"] = with_digest(StartFrom(run=start))
    if isinstance(data, Dataset):
        shared = {"split": data.training.split, "columns": dict(data.columns), **shared}
        data = data.path
    if data is None:
        data = make_demo(needs_features=needs_features, progress=reporter(progress))
    seeds = dict.fromkeys(several(Recipe.model_fields["seed"].default if seed is None else seed))
    found = []
    for name, one in models.items():
        own_space = for_model(name, space, names)
        own = {
            **shared,
            "data": str(data),
            "model": name,
            "features": shared.get("features", {}) if one.uses_features or drops else {},
            "settings": make_settings(name, for_model(name, settings or {}, names)),
            "grid": for_model(name, grid, names),
            "search": Search(space=own_space, **how) if own_space else None,
        }
        for number in seeds if one.uses_seed else list(seeds)[:1]:
            recipe = make_recipe(**own, seed=number)
            recipe.trials()  # every combination is checked before the first one is trained
            found.append(recipe)
    return found


def read_recipes(paths: Iterable[Path], progress: Progress, **instead: object) -> list[Recipe]:
    """Return the distinct runs that recipe files ask for, in order; see `read_plan`."""
    given = {key: value for key, value in instead.items() if value is not None}
    planned = [one for path in paths for one in read_plan(path, progress.note, **given)]
    return [recipe for number, recipe in enumerate(planned) if recipe not in planned[:number]]


def _asked(
    model: Models | Recipe | Sequence[Recipe] | PathLike[str],
    data: Place | Dataset | None,
    seed: int | Sequence[int] | None,
    settings: Mapping[str, Any] | None,
    grid: Grid | None,
    progress: Progress,
    choices: Choices,
) -> list[Recipe]:
    """Return the recipes of a call of `train`."""
    models: Sequence[Any] = [model] if isinstance(model, Recipe | PathLike) else several(model)
    if all(isinstance(one, str) for one in models):
        plain: Any = {"seed": seed, "settings": settings, "grid": grid, "progress": progress}
        return recipes(model, data, **plain, **choices)  # type: ignore[arg-type]
    given = {"settings": settings, "grid": grid, **choices}
    whose = "file"
    if not isinstance(model, PathLike):
        given, whose = {"data": data, "seed": seed, **given}, "recipes"
    if typed := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{', '.join(typed)}: the {whose} say{'s' * (whose == 'file')} it")
    if isinstance(model, PathLike):
        place = data.path if isinstance(data, Dataset) else data
        seeds = None if seed is None else list(several(seed))
        given = {"data": None if place is None else str(place), "seed": seeds}
        return read_recipes([Path(model)], progress, **given)
    return list(models)


def _grid(grid: Grid | None) -> dict[str, tuple[Any, ...]]:
    for name, values in (grid or {}).items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UsageError(f"grid: {name} = {values!r}: expected a list of values to try")
        if not len(values):
            raise UsageError(f"grid: {name}: has no values to try")
    return {name: tuple(values) for name, values in (grid or {}).items()}


def _require_content(choices: Mapping[str, Any], *, needs_features: bool, draws: bool) -> None:
    """Refuse choices on content that would change nothing.

    Args:
        choices: Those that were made.
        needs_features: Whether one of the models uses content, or the policy drops items.
        draws: Whether the policy depends on a seed.

    Raises:
        UsageError: There is one.
    """
    treated = [name for name in ("mask", "control") if choices.get(name)]
    if treated and not needs_features:
        raise UsageError(f"--{treated[0]}: none of these models uses content")
    if choices.get("pattern") and not choices.get("mask"):
        raise UsageError("--pattern: there is no mask that has one; e.g. --mask visual=0.3")
    if choices.get("mask_seed") is not None and not (treated or draws):
        raise UsageError("--mask-seed: nothing is drawn; it is of --mask, --control and random")
