"""Proposing settings to try: at random, or where earlier trials did well (TPE). Proposals follow from seed and results alone.

The n-th proposal depends on the seed, n, and the settings and validation values of the trials
before, not on a process that went on from one to the next: a search that was killed proposes what
it would have proposed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmbench.config import Range, Recipe, Search, make_settings
from mmbench.core.rng import derive, numpy_rng
from mmbench.errors import UsageError

Trial = tuple[Mapping[str, Any], float]
"""Settings that were tried and the validation value they came to."""

_ATTEMPTS = 20
_STARTUP = 5


def propose(search: Search, seed: int, past: Sequence[Trial]) -> dict[str, Any]:
    """The settings of the next trial; not one that was tried, unless the space has no other.

    Args:
        search: Space and sampler, as `typed` gives them.
        seed: The recipe's seed.
        past: The trials so far, in order.

    Returns:
        A value for each name of the space.

    Raises:
        UsageError: The sampler needs optuna, which is not installed.
    """
    tried = [dict(values) for values, _ in past]
    proposal: dict[str, Any] = {}
    for attempt in range(_ATTEMPTS):
        random = search.sampler == "random" or len(past) < _STARTUP or attempt >= _ATTEMPTS // 2
        proposal = (
            _random(search, seed, len(past), attempt)
            if random
            else _tpe(search, seed, past, attempt)
        )
        if proposal not in tried:
            return proposal
    if len(tried) < size(search) < math.inf:  # few are left, and chance did not hit one
        untried = [values for values in _all(search) if values not in tried]
        return untried[int(numpy_rng(seed, "search", len(past), _ATTEMPTS).integers(len(untried)))]
    return proposal


def size(search: Search) -> float:
    """How many different proposals there are; infinite where a range is not of whole numbers."""
    out: float = 1
    for domain in search.space.values():
        if not isinstance(domain, Range):
            out *= sum(value not in domain[:place] for place, value in enumerate(domain))
        else:
            out *= int(domain.high) - int(domain.low) + 1 if domain.integer else math.inf
    return out


def typed(recipe: Recipe) -> Search | None:
    """A recipe's search with the values to choose from as settings hold them: a list as a tuple, `1` as `1.0`."""
    if recipe.search is None:
        return None
    given = recipe.settings.model_dump()
    space = {
        name: domain
        if isinstance(domain, Range)
        else tuple(
            getattr(make_settings(recipe.model, {**given, name: value}), name) for value in domain
        )
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
        warnings.simplefilter("ignore")  # of optuna's own experimental features
        sampler = optuna.samplers.TPESampler(
            seed=derive(seed, "tpe", len(past), attempt) % 2**32,
            multivariate=True,
            n_startup_trials=1,
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    domains = {name: _distribution(optuna, domain) for name, domain in search.space.items()}
    for values, outcome in past:
        codes = {name: _code(search.space[name], value) for name, value in values.items()}
        study.add_trial(
            optuna.trial.create_trial(params=codes, distributions=domains, value=outcome)
        )
    asked = study.ask(domains).params
    return {name: _value(search.space[name], asked[name]) for name in search.space}


def require_optuna() -> Any:
    """The package optuna.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "--sampler tpe: needs the package optuna; pip install 'mmx-mmbench[tune]', or use "
            "--sampler random"
        ) from error
    return optuna


def _distribution(optuna: Any, domain: tuple[Any, ...] | Range) -> Any:
    if not isinstance(domain, Range):  # by place: choices may be of any type
        return optuna.distributions.CategoricalDistribution(range(len(domain)))
    if domain.integer:
        return optuna.distributions.IntDistribution(int(domain.low), int(domain.high))
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _code(domain: tuple[Any, ...] | Range, value: Any) -> Any:
    return value if isinstance(domain, Range) else domain.index(value)


def _value(domain: tuple[Any, ...] | Range, code: Any) -> Any:
    return code if isinstance(domain, Range) else domain[code]
