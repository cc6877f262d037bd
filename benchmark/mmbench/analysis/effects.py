"""Effects of factors: paired differences of runs that are equal in everything else.

For a level L and the reference R of a factor, a *cell* c is a combination of all other factors and
the model in which both were run, at the same seeds s. With m the metric,

    D[c, s] = m(L, c, s) - m(R, c, s)         the effect is the mean of D over cells and seeds.

Cells are fixed: the effect is that on these models and settings, not on others. What varies by
chance is the seed, over whose means D[., s] an interval and a paired t-test are taken, and the
users, over whose means of D the test of `mmbench compare` is. A level is better if both reject.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbench.analysis import statistics
from mmbench.errors import DataError
from mmbench.metrics import sign

Outcome = Literal["better", "worse", "higher", "lower", "none", "unresolved", "incomparable"]
"""What is known of an effect; `higher` and `lower` where a metric has no better side."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The outcome of one run.

    Attributes:
        levels: Its levels by factor, the model among them, the seed not.
        seed: Its seed; None for a model without randomness, whose one run stands for every seed.
        values: Metrics over all users.
        users: The values behind them: user id to value by metric; metrics may be absent.
        comparable: Facts that two runs must share to be compared: test rows, candidates and so on.
    """

    levels: Mapping[str, Any]
    seed: int | None
    values: Mapping[str, float | None]
    users: Mapping[str, pd.Series] = field(default_factory=dict)
    comparable: str = ""


@dataclass(frozen=True)
class Contrast:
    """A level of a factor against its reference, perhaps among some cells only.

    Attributes:
        where: Levels that all runs of the comparison have.
    """

    factor: str
    level: Any
    reference: Any
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """What a level of a factor does to a metric.

    Attributes:
        base: Mean of the metric at the reference, over the same cells and seeds.
        difference: The effect, level minus reference.
        interval: 95 % t-interval over seeds; None with one seed, or without randomness.
        interval_users: 95 % bootstrap interval over users; None if the metric has no user values.
        p: Of the paired randomisation test over users, or, if the metric has no user values, over
            seeds; corrected for all effects of the call. None where neither can be tested.
        p_seeds: Of the paired t-test over seeds, not corrected; None where `interval` is.
        ahead: In how many of `pairs` pairs of runs the level is the better (or higher) one.
        n_cells: Combinations of all else in which both were run.
        left_out: Cells that lack a run at some seed.
        n_seeds: Seeds; 1 if no model has randomness.
        one_seed: Whether a model with randomness has one seed only, so that how much trainings vary
            is unknown.
        outcome: What is known.
    """

    contrast: Contrast
    metric: str
    base: float
    difference: float
    interval: tuple[float, float] | None
    interval_users: tuple[float, float] | None
    p: float | None
    p_seeds: float | None
    ahead: int
    pairs: int
    n_cells: int
    left_out: int
    n_seeds: int
    n_users: int
    one_seed: bool = False
    outcome: Outcome = "unresolved"


def effects(
    observed: Sequence[Observation],
    contrasts: Sequence[Contrast],
    metrics: Sequence[str],
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
) -> list[Effect]:
    """Return the effect of each contrast on each metric; contrasts without a pair are left out.

    Args:
        observed: The runs.
        contrasts: The comparisons that are wanted.
        metrics: Names with cut-off.
        margin: An effect is none if its intervals, over seeds and over users, lie within this share
            of the reference's value on either side of zero.
        alpha: Level of the tests, after Holm's correction for all effects of the call.
    """
    found = [
        one
        for metric in metrics
        for contrast in contrasts
        if (one := _effect(observed, contrast, metric)) is not None
    ]
    tested = [number for number, one in enumerate(found) if one.p is not None]
    corrected = statistics.holm([found[number].p or 0.0 for number in tested])
    for number, p in zip(tested, corrected, strict=True):
        found[number] = replace(found[number], p=p)
    return [replace(one, outcome=_outcome(one, margin, alpha)) for one in found]


def _effect(observed: Sequence[Observation], contrast: Contrast, metric: str) -> Effect | None:
    """Return one effect, its p not corrected yet; None if no cell has both levels."""
    cells, left_out = _cells(observed, contrast, metric)
    if not cells:
        return None
    towards = sign(metric) or 1
    pairs = [pair for cell in cells for pair in cell]
    values = np.array([[one.values[metric] for one in pair] for pair in pairs], np.float64)
    d = (values[:, 0] - values[:, 1]).reshape(len(cells), -1)  # (cells, seeds)
    random = any(one.seed is not None for pair in pairs for one in pair)
    by_seed = d.mean(0)
    over_seeds = random and by_seed.size > 1
    users = _user_differences(pairs, metric)
    p_seeds = statistics.paired_t(by_seed) if over_seeds else None
    by_users = users.size > 1
    same = all(a.comparable == b.comparable for a, b in pairs)
    return Effect(
        contrast=contrast,
        metric=metric,
        base=float(values[:, 1].mean()),
        difference=float(d.mean()),
        interval=statistics.t_interval(by_seed) if over_seeds else None,
        interval_users=statistics.bootstrap_interval(users) if by_users else None,
        p=statistics.randomisation(users) if by_users else p_seeds,
        p_seeds=p_seeds,
        ahead=int(np.count_nonzero(towards * d > 0)),
        pairs=d.size,
        n_cells=len(cells),
        left_out=left_out,
        n_seeds=d.shape[1],
        n_users=int(users.size),
        one_seed=random and not over_seeds,
        outcome="unresolved" if same else "incomparable",
    )


Pair = tuple[Observation, Observation]


def _cells(
    observed: Sequence[Observation], contrast: Contrast, metric: str
) -> tuple[list[list[Pair]], int]:
    """Return the pairs of each complete cell, by seed, and the number of incomplete cells.

    A run without a value of the metric does not count.
    """
    seeds = sorted({one.seed for one in observed if one.seed is not None})
    sides: dict[str, dict[bool, dict[int | None, Observation]]] = {}
    for one in observed:
        if contrast.factor not in one.levels or one.values.get(metric) is None:
            continue
        if any(key_of(one.levels.get(n)) != key_of(level) for n, level in contrast.where.items()):
            continue
        level = key_of(one.levels[contrast.factor])
        if level in (key_of(contrast.level), key_of(contrast.reference)):
            rest = {name: v for name, v in one.levels.items() if name != contrast.factor}
            mine = sides.setdefault(key_of(rest), {True: {}, False: {}})
            mine[level == key_of(contrast.level)][one.seed] = one
    both = [cell for cell in sides.values() if cell[True] and cell[False]]
    cells = [list(_by_seed(cell[True], cell[False], seeds or [None])) for cell in both]
    complete = [pairs for pairs in cells if len(pairs) == len(seeds or [None])]
    return complete, len(both) - len(complete)


def _by_seed(
    level: Mapping[int | None, Observation],
    reference: Mapping[int | None, Observation],
    seeds: Sequence[int | None],
) -> Iterator[Pair]:
    for seed in seeds:
        a, b = (side.get(None) or side.get(seed) for side in (level, reference))
        if a is not None and b is not None:
            yield a, b


def _user_differences(pairs: Sequence[Pair], metric: str) -> NDArray[np.float64]:
    """Return each user's mean difference over the pairs, of the users that have a value in all."""
    total: pd.Series | None = None
    for a, b in pairs:
        if metric not in a.users or metric not in b.users:
            return np.empty(0)
        d = a.users[metric] - b.users[metric]  # joined by user id
        total = d if total is None else total + d
    return (total.dropna() / len(pairs)).to_numpy(np.float64) if total is not None else np.empty(0)


def _outcome(one: Effect, margin: float, alpha: float) -> Outcome:
    if one.outcome == "incomparable":
        return one.outcome
    rejected = one.p is not None and one.p < alpha
    if rejected and (one.p_seeds is None or one.p_seeds < alpha):
        towards = sign(one.metric)
        up = one.difference > 0
        if towards is None:
            return "higher" if up else "lower"
        return "better" if up == (towards > 0) else "worse"
    known = [interval for interval in (one.interval, one.interval_users) if interval is not None]
    bound = margin * abs(one.base)
    if known and all(-bound <= low and high <= bound for low, high in known):
        return "none"
    return "unresolved"


def kept_of_gain(effect_of_level: Effect, effect_of_without: Effect) -> float | None:
    """Return the share of a gain that a level keeps, (m(L) - m(W)) / (m(R) - m(W)).

    R is the reference, W the level without what is gained, such as `absent` content. None if R is
    not resolved to be better than W: there is no gain to divide.

    Raises:
        DataError: The two effects are of other references or metrics.
    """
    a, b = effect_of_level, effect_of_without
    if (a.metric, key_of(a.contrast.reference)) != (b.metric, key_of(b.contrast.reference)):
        raise DataError("shares of a gain: the effects have different references or metrics")
    if b.outcome not in ("worse", "lower"):
        return None
    return 1 - a.difference / b.difference


def key_of(level: object) -> str:
    """Return a text that is equal for equal levels."""
    return json.dumps(level, sort_keys=True, default=str)
