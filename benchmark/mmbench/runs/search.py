"""Grids and searches: propose settings, train a trial with each, choose by validation.

Proposals are random, or follow earlier trials that did well (TPE).

The n-th proposal depends on the seed, n, and the settings and validation values of the trials
before, and on no state of a process; whether a trial is ended early depends on these values and on
its own. So a search that was killed goes on as it would have. A trial that diverges is passed over.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbase.errors import install_extra
from mmbase.progress import Progress
from mmbench.config import Range, Recipe, Search, make_settings, read_recipe, write_recipe
from mmbench.core.sampling import derive, numpy_rng
from mmbench.errors import Diverged, UsageError
from mmbench.evaluation.protocol import Setting
from mmbench.runs.fit import best_values, fit_one, in_words
from mmbench.runs.folder import RunFolder


@dataclass(frozen=True)
class Trial:
    """What an earlier trial tried, and what came of it.

    Attributes:
        values: The settings.
        value: The best validation value; None for a trial that failed.
        course: The best value so far after each validation, where a pruner is asked.
        pruned: Whether it was ended early.
    """

    values: Mapping[str, Any]
    value: float | None
    course: Sequence[float] = ()
    pruned: bool = False


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
    tried = [dict(trial.values) for trial in past]
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
    optuna = require_optuna("--sampler tpe", "--sampler random")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optuna's own experimental features
        sampler = optuna.samplers.TPESampler(
            seed=derive(seed, "tpe", len(past), attempt) % 2**32,
            multivariate=True,
            n_startup_trials=1,
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    domains = {name: _distribution(optuna, domain) for name, domain in search.space.items()}
    for trial in past:
        codes = {name: _code(search.space[name], value) for name, value in trial.values.items()}
        study.add_trial(
            optuna.trial.create_trial(
                state=_state(optuna, trial),
                params=codes,
                distributions=domains,
                value=trial.value,
                intermediate_values=dict(enumerate(trial.course, 1)) if trial.pruned else None,
            )
        )
    asked = study.ask(domains).params
    return {
        name: asked[name] if isinstance(domain, Range) else domain[asked[name]]
        for name, domain in search.space.items()
    }


def pruning(search: Search, epochs: int, every: int, past: Sequence[Trial]) -> Pruner | None:
    """Return what says whether the next trial is hopeless; None: all trials are trained fully.

    The decisions are those of optuna's pruners, whose steps are validations. `median`: below the
    median of the complete trials at the same validation, once there are five of them. `halving`:
    not among the best quarter of the trials that came to the 1st, 4th, 16th, … validation.
    `hyperband`: such a halving (by three) that begins later for some of the trials. The value that
    counts is the best one so far, with which the trial would end: so a trial is ended only where
    another one, which was not, has a better value, and the best of all trials is a complete one.

    Args:
        search: Says which pruner.
        epochs: Epochs of the trial.
        every: Epochs between validations.
        past: The trials so far, in order, each with its course.

    Raises:
        UsageError: optuna is not installed.
    """
    if search.pruner == "none":
        return None
    optuna = require_optuna(f"--pruner {search.pruner}", "--pruner none")
    pruners = optuna.pruners
    if search.pruner == "median":
        pruner = pruners.MedianPruner()
    elif search.pruner == "halving":
        pruner = pruners.SuccessiveHalvingPruner(min_resource=1)
    else:
        pruner = pruners.HyperbandPruner(max_resource=max(1, math.ceil(epochs / every)))
    # A fixed name: by it and the trial's number hyperband decides where the halving begins.
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="search")
    for trial in past:
        if trial.value is not None:  # a value that ended in a failure is no one's rival
            asked = study.ask()
            for step, value in enumerate(trial.course, 1):
                asked.report(value, step)
                asked.should_prune()  # where the pruner notes how far the trial came
            study.tell(asked, None if trial.pruned else trial.value, _state(optuna, trial))
    return Pruner(study.ask())


class Pruner:
    """Says of one trial, validation by validation, whether it is hopeless."""

    def __init__(self, trial: Any) -> None:
        self._trial, self._step = trial, 0

    def __call__(self, best: float) -> bool:
        """Return whether to end the trial; `best` is its best value so far."""
        self._step += 1
        self._trial.report(best, self._step)
        return bool(self._trial.should_prune())


def _state(optuna: Any, trial: Trial) -> Any:
    states = optuna.trial.TrialState
    if trial.value is None:
        return states.FAIL
    return states.PRUNED if trial.pruned else states.COMPLETE


def require_optuna(option: str, instead: str) -> Any:
    """Import optuna, which an option needs that has an alternative.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"{option}: needs the package optuna: {install_extra('tune')}; or use {instead}"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
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
    """Return how many trials a recipe with a grid or search has."""
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
        every, begun = setting.evaluation.every, trial_folder.trained or bool(known)
        hopeless = (
            None if search is None or begun else pruning(search, trial.settings.epochs, every, past)
        )
        try:
            value = fit_trial(
                trial, setting, trial_folder, progress, label=label, jobs=jobs, hopeless=hopeless
            )
        except Diverged as error:
            reasons.append(str(error))
            if not known:
                progress.warn(f"{recipe.model} seed {recipe.seed}, {label}: failed: {error}")
        past.append(_outcome(recipe, trial, trial_folder, value))
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
    hopeless: Callable[[float], bool] | None = None,
) -> float:
    """Train one trial in its own folder, recipe beside it; return its validation value.

    See `fit_one`.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    write_recipe(folder.recipe_path, trial)
    return fit_one(trial, setting, folder, progress, label=label, jobs=jobs, hopeless=hopeless)


def _outcome(recipe: Recipe, trial: Recipe, folder: RunFolder, value: float | None) -> Trial:
    values = {name: getattr(trial.settings, name) for name in recipe.searched}
    if value is None or recipe.search is None or recipe.search.pruner == "none":
        return Trial(values, value)
    trained = folder.read_json("trained.json")
    course = [best for _, best in best_values(folder, trained["metric"])]
    return Trial(values, value, course, trained.get("pruned", False))


def trials_of(recipe: Recipe, folder: RunFolder) -> list[dict[str, Any]]:
    """Return the outcome of each trial of a finished search, for the run's record.

    Its `settings`, and `value` and `best_epoch`, or `failed`: the reason; of a trial that was ended
    early `pruned`: after which epoch.
    """
    told: list[dict[str, Any]] = []
    while (one := folder.trial(len(told))).recipe_path.is_file():
        settings = read_recipe(one.recipe_path).settings.model_dump(mode="json")
        outcome = {"failed": one.failure}
        if one.trained:
            trained = one.read_json("trained.json")
            outcome = {"value": trained["value"], "best_epoch": trained["best_epoch"]}
            if trained.get("pruned"):
                outcome["pruned"] = trained["epochs"]
        told.append({"settings": {name: settings[name] for name in recipe.searched}, **outcome})
    return told


def values_in_words(recipe: Recipe, trial: Recipe) -> str:
    """Name the values of a trial: `lr=0.001, reg_weight=0.1`."""
    return ", ".join(
        f"{name}={in_words(getattr(trial.settings, name))}" for name in recipe.searched
    )
