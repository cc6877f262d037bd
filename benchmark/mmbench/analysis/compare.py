"""Comparing systems: join by user id, test, correct, and put into words."""

from __future__ import annotations

import itertools
import math
import statistics as stdlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mmbase.layout import counted
from mmbench.analysis import statistics
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics import sign
from mmbench.runs.finished_runs import System


@dataclass(frozen=True)
class Comparison:
    """Two systems on one metric, over the users that have a value in both.

    Attributes:
        first: Label of the better one by mean, in the metric's own direction.
        second: Label of the other.
        difference: First minus second, means over seeds.
        interval: Bootstrap interval over users of that difference.
        p: Of the paired test over users, corrected for all comparisons of the call.
        p_seeds: Of Welch's test over seeds, not corrected; None with fewer than two seeds of a
            model with randomness, and if neither has any.
        effect: Cohen's d_z over users.
        superiority: Share of users for whom the first is better, ties half.
        ahead: In how many of `pairs` pairs of seeds the first is ahead.
        n_users: Users that have a value in both at every seed; all values here are about them.
        n_others: Users that are left out: the metric is defined for them in one system only, or
            not at every seed.
        one_seed: Whether a model with randomness has one seed only, so that the variation between
            trainings is unknown.
        better: Whether the first is better, or higher if the metric has no better side.
    """

    metric: str
    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_seeds: float | None
    effect: float
    superiority: float
    ahead: int
    pairs: int
    n_users: int
    n_others: int
    one_seed: bool
    better: bool = False

    @property
    def verdict(self) -> str:
        """The outcome as a sentence, with the number of users if some were left out."""
        text, users, others = f"{self.metric}: {self._outcome}", self.n_users, self.n_others
        left_out = f"; over the {users:,} users that have a value in both, {others:,} do not"
        return text + (left_out if others else "")

    @property
    def _outcome(self) -> str:
        first, second = self.first, self.second
        word = "higher" if sign(self.metric) is None else "better"
        order = f"{first} is ahead of {second} in {self.ahead} of {self.pairs} pairs of seeds"
        if self.better and self.one_seed:
            unknown = "how much training varies is unknown at one seed"
            return f"this run of {first} is {word} than this one of {second}; {unknown}"
        if self.better and self.p_seeds is None:
            return f"{first} is {word} than {second}; neither has any randomness"
        if self.better:
            return f"{first} is {word} than {second}; {order}"
        if self.pairs == 1:
            return f"no significant difference between {first} and {second}"
        return f"the order of {first} and {second} is not resolved at this number of seeds; {order}"


def compare(
    systems: Sequence[System],
    metrics: Sequence[str],
    *,
    split: str = "test",
    baseline: str | None = None,
    test: str = "randomisation",
    correction: str = "holm",
    alpha: float = 0.05,
) -> list[Comparison]:
    """Compare all pairs of systems, or all with one.

    A system is better if the paired test over users rejects at `alpha` after correction and, if
    both have two seeds or more, or no randomness, Welch's test over seeds rejects too: the first
    says that the difference is not due to the choice of users, the second that it is not due to the
    choice of seeds.

    Args:
        systems: At least two.
        metrics: Names with cut-off, of metrics that have per-user values.
        split: Name of the part whose metrics count.
        baseline: Label of the system that all others are compared with; None: all pairs.
        test: A name of `statistics.TESTS`.
        correction: A name of `statistics.CORRECTIONS`, over all pairs and metrics.
        alpha: Level of the tests.

    Raises:
        UsageError: A name is unknown, or there is nothing to compare.
        DataError: Two systems have fewer than two users in common, or a metric is not defined.
    """
    if len(systems) < 2:
        raise UsageError("nothing to compare: expected two different systems, or two seeds of one")
    labels = [system.label for system in systems]
    if baseline is not None and baseline not in labels:
        raise unknown_name("system", baseline, labels)
    outcome: list[Comparison] = []
    for metric in metrics:
        for system in systems:
            system.values(split, metric)  # refuses a metric that is absent or not defined
        users = {system.label: system.by_seed(split, metric) for system in systems}
        for pair in itertools.combinations(systems, 2):
            if baseline is None or baseline in (pair[0].label, pair[1].label):
                outcome.append(_compared(pair, users, metric, split, statistics.TESTS[test]))
    # One family of hypotheses: every pair on every metric.
    corrected = statistics.CORRECTIONS[correction]([one.p for one in outcome])
    return [
        replace(one, p=p, better=p < alpha and (one.p_seeds is None or one.p_seeds < alpha))
        for one, p in zip(outcome, corrected, strict=True)
    ]


def _compared(
    pair: tuple[System, System],
    users: Mapping[str, pd.DataFrame],
    metric: str,
    split: str,
    test: Callable[[statistics.Differences], float],
) -> Comparison:
    """Compare two systems by their users' values, a column per seed; p is not corrected yet."""
    a, b = pair
    towards = sign(metric) or 1  # if neither side is better, the higher one comes first
    # Join by user id and keep the users that have a value in both at every seed.
    everyone = pd.concat([users[a.label], users[b.label]], axis=1)
    shared = everyone.dropna().sort_index().to_numpy(np.float64)
    if len(shared) < 2:
        told = f"{counted(len(shared), 'user has', 'users have')} {metric} in both on {split}"
        raise DataError(f"{a.label} and {b.label}: {told}; are they of different data?")
    columns = np.split(shared, [len(a.runs)], axis=1)
    values = dict(zip((a.label, b.label), columns, strict=True))
    seeds = {label: [float(mean) for mean in each.mean(0)] for label, each in values.items()}
    first, second = sorted(values, key=lambda label: -towards * stdlib.fmean(seeds[label]))
    # Over users: paired differences of each user's mean over seeds.
    d = values[first].mean(1) - values[second].mean(1)
    return Comparison(
        metric=metric,
        first=first,
        second=second,
        difference=stdlib.fmean(seeds[first]) - stdlib.fmean(seeds[second]),
        interval=statistics.bootstrap_interval(d),
        p=test(d),
        p_seeds=statistics.welch(seeds[a.label], seeds[b.label], (a.exact, b.exact)),
        effect=statistics.effect_size(d),
        superiority=statistics.superiority(towards * d),
        ahead=sum(towards * x > towards * y for x in seeds[first] for y in seeds[second]),
        pairs=len(seeds[first]) * len(seeds[second]),
        n_users=len(d),
        n_others=len(everyone) - len(d),
        one_seed=any(len(one.runs) == 1 and not one.exact for one in pair),
    )


def users_in_words(outcome: Sequence[Comparison]) -> str:
    """Return the number of users of the comparisons: `120 users`, `115 to 120 users`."""
    counts = sorted({one.n_users for one in outcome})
    return f"{counts[0]:,} users" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} users"


def agreement_of_seeds(systems: Sequence[System], metric: str, split: str = "test") -> float | None:
    """Return the mean Kendall's tau between the orders of the systems at any two seeds.

    None unless three systems or more have the same two or more seeds, and if at some seed all
    systems are equal.
    """
    from scipy.stats import kendalltau

    seeds = {tuple(run.recipe.seed for run in system.runs) for system in systems}
    if len(seeds) != 1 or len(next(iter(seeds))) < 2 or len(systems) < 3:
        return None
    by_seed = list(zip(*(system.values(split, metric) for system in systems), strict=True))
    pairs = itertools.combinations(by_seed, 2)
    tau = stdlib.fmean(float(kendalltau(a, b).statistic) for a, b in pairs)
    return None if math.isnan(tau) else tau
