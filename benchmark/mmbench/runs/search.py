"""Proposals of settings to try: at random, or where earlier trials did well (TPE).

The n-th proposal depends on the seed, n, and the settings and validation values of the trials
before, and on no state of a process: a search that was killed goes on as it would have.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmbase.errors import install_extra
from mmbench.config import Range, Recipe, Search, make_settings
from mmbench.core.sampling import derive, numpy_rng
from mmbench.errors import UsageError

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
