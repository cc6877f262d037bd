"""Grids and searches: propose settings, train a trial with each, choose by validation.

Proposals are random, or follow earlier trials that did well (TPE).

The n-th proposal depends on the seed, n, and the settings and validation values of the trials
before, and on no state of a process: a search that was killed goes on as it would have. A trial
that diverges is passed over.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmbase.errors import install_extra
from mmbase.progress import Progress
from mmbench.config import Range, Recipe, Search, make_settings, read_recipe, write_recipe
from mmbench.core.sampling import derive, numpy_rng
from mmbench.errors import Diverged, UsageError
from mmbench.evaluation.protocol import Setting
from mmbench.runs.fit import fit_one, in_words
from mmbench.runs.folder import RunFolder

Trial = tuple[Mapping[str, Any], float | None]
"""Settings that were tried, and their validation value; None for a trial that failed."""

_ATTEMPTS = 20  # at a proposal that was not tried before; the second half are random
_STARTUP = 5  # random trials before TPE


def propose(search: Search, seed: int, past: Sequence[Trial]) -> dict[str, Any]:
    """Return the settings of the next trial: new ones, unless the space is exhausted.

    Args:
        search: Space and sampler, as `typed` gives them.
        seed: The recipe's seed.
        past: The trials so far, in order.

    Raises:
        UsageError: The sampler needs optuna, which is not installed.
    """
    tried = [dict(values) for values, _ in past]
    proposal: dict[str, Any] = {}
    for attempt in range(_ATTEMPTS):
        if search.sampler == "random" or len(past) < _STARTUP or attempt >= _ATTEMPTS // 2:
            proposal = _random(search, seed, len(past), attempt)
        else:
            proposal = _tpe(search, seed, past, attempt)
        if proposal not in tried:
            return proposal
    # Few are left, and chance did not hit one: enumerate them.
    if len(tried) < size(search) < math.inf:
        untried = [values for values in _all(search) if values not in tried]
        return untried[int(numpy_rng(seed, "search", len(past), _ATTEMPTS).integers(len(untried)))]
    return proposal


def size(search: Search) -> float:
    """Return the number of different proposals; infinite if a range is not of whole numbers."""
    out: float = 1
    for domain in search.space.values():
        if not isinstance(domain, Range):
            out *= sum(value not in domain[:place] for place, value in enumerate(domain))
        else:
            out *= int(domain.high) - int(domain.low) + 1 if domain.integer else math.inf
    return out


def typed(recipe: Recipe) -> Search | None:
    """Return a recipe's search, its choices typed like settings: a list as a tuple, 1 as 1.0."""
    if recipe.search is None:
        return None
    given = recipe.settings.model_dump()

    def held(name: str, value: Any) -> Any:
        return getattr(make_settings(recipe.model, {**given, name: value}), name)

    space = {
        name: domain if isinstance(domain, Range) else tuple(held(name, one) for one in domain)
        for name, domain in recipe.search.space.items()
    }
    return recipe.search.model_copy(update={"space": space})


def _all(search: Search) -> Iterator[dict[str, Any]]:
    domains = (
        range(int(domain.low), int(domain.high) + 1) if isinstance(domain, Range) else domain
        for domain in search.space.values()
    )
    return (dict(zip(search.space, values, strict=True)) for values in itertools.product(*domains))


def _random(search: Search, seed: int, number: int, attempt: int) -> dict[str, Any]:
    rng = numpy_rng(seed, "search", number, attempt)
    return {name: _draw(rng, domain) for name, domain in search.space.items()}


def _draw(rng: np.random.Generator, domain: tuple[Any, ...] | Range) -> Any:
    if not isinstance(domain, Range):
        return domain[int(rng.integers(len(domain)))]
    if domain.integer:
        return int(rng.integers(int(domain.low), int(domain.high) + 1))
    if domain.log:
        return float(math.exp(rng.uniform(math.log(domain.low), math.log(domain.high))))
    return float(rng.uniform(domain.low, domain.high))


def _tpe(search: Search, seed: int, past: Sequence[Trial], attempt: int) -> dict[str, Any]:
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optuna's own experimental features
        sampler = optuna.samplers.TPESampler(
            seed=derive(seed, "tpe", len(past), attempt) % 2**32,
            multivariate=True,
            n_startup_trials=1,
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    domains = {name: _distribution(optuna, domain) for name, domain in search.space.items()}
    for values, outcome in past:
        codes = {name: _code(search.space[name], value) for name, value in values.items()}
        states = optuna.trial.TrialState
        state = states.FAIL if outcome is None else states.COMPLETE
        trial = optuna.trial.create_trial(
            state=state, params=codes, distributions=domains, value=outcome
        )
        study.add_trial(trial)
    asked = study.ask(domains).params
    return {
        name: asked[name] if isinstance(domain, Range) else domain[asked[name]]
        for name, domain in search.space.items()
    }


def require_optuna() -> Any:
    """Import optuna.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"--sampler tpe: needs the package optuna: {install_extra('tune')}; or use --sampler "
            "random"
        ) from error
    return optuna


def _code(domain: tuple[Any, ...] | Range, value: Any) -> Any:
    # Choices may be of any type: optuna is told their places.
    return value if isinstance(domain, Range) else domain.index(value)


def _distribution(optuna: Any, domain: tuple[Any, ...] | Range) -> Any:
    if not isinstance(domain, Range):
        return optuna.distributions.CategoricalDistribution(range(len(domain)))
    if domain.integer:
        return optuna.distributions.IntDistribution(int(domain.low), int(domain.high))
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


# ------------------------------------------------------------------------------------------------
# trials


def count_trials(recipe: Recipe) -> int:
    """Return how many trials a recipe has: 1 where nothing is searched."""
    search = typed(recipe)
    return len(recipe.trials()) if search is None else int(min(search.budget, size(search)))


def fit_trials(
    recipe: Recipe,
    setting: Setting,
    folder: RunFolder,
    progress: Progress,
    *,
    jobs: int = 1,
) -> tuple[Recipe, RunFolder]:
    """Train each trial of a grid or search and choose the best one by validation.

    Trials that are finished in the folder are read, not repeated, and a search ends when its space
    is exhausted.

    Args:
        recipe: Has a grid or a search.
        setting: Training and validation data, and the evaluation.
        folder: The run's folder; trials go below it.
        progress: Progress reporter.
        jobs: Trainings that run on this machine at once, for the record.

    Returns:
        The chosen recipe and the folder of its checkpoint.

    Raises:
        Diverged: Every trial did.
    """
    search, n_trials = typed(recipe), count_trials(recipe)
    grid = recipe.trials() if search is None else []
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
    """Return the outcome of each trial of a finished search, for the run's record.

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
