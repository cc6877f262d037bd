"""Comparing systems: joined by user id, tested, corrected, and put into words."""

from __future__ import annotations

import itertools
import math
import statistics as stdlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mmbench.analysis import statistics
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics import resolve, sign
from mmbench.runs.finished_runs import System


@dataclass(frozen=True)
class Comparison:
    """Two systems on one metric, over the users that have a value in both.

    Attributes:
        metric: e.g. `Recall@20`.
        first: Label of the better one by mean: the one with less where the metric says that less is
            better.
        second: Label of the other.
        difference: First minus second, means over seeds.
        interval: Bootstrap interval over users of that difference.
        p: Of the paired test over users, corrected for all comparisons of the call.
        p_seeds: Of Welch's test over seeds, not corrected; None with fewer than two seeds of a
            model with randomness, and where neither has any.
        effect: Cohen's d_z over users.
        superiority: Share of users for whom the first is better, ties half.
        ahead: In how many of `pairs` pairs of seeds the first is ahead.
        pairs: Number of pairs of seeds.
        n_users: Users that have a value in both at every seed; all that is said here is about them.
        n_others: Users that have one in one of the two alone, or not at every seed: the metric is
            not defined for them in the other, and they are left out.
        one_seed: Whether a model with randomness has one seed only, so that how much training
            varies is unknown.
        better: Whether the first may be called better, or higher where the metric has no better
            side: see `verdict`.
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
    better: bool

    @property
    def verdict(self) -> str:
        """The outcome as a sentence, with how many users it is about where some were left out."""
        if self.n_others:
            return f"{self._outcome}; over the {self.n_users:,} users that have a value in both, {self.n_others:,} do not"
        return self._outcome

    @property
    def _outcome(self) -> str:
        word = "higher" if sign(self.metric) is None else "better"
        order = (
            f"{self.first} is ahead of {self.second} in {self.ahead} of {self.pairs} pairs of seeds"
        )
        if self.better and self.one_seed:
            return (
                f"{self.metric}: this run of {self.first} is {word} than this one of "
                f"{self.second}; "
                "how much training varies is unknown at one seed"
            )
        if self.better and self.p_seeds is None:
            return f"{self.metric}: {self.first} is {word} than {self.second}; neither has any randomness"
        if self.better:
            return f"{self.metric}: {self.first} is {word} than {self.second}; {order}"
        if self.pairs == 1:
            return (
                f"{self.metric}: no significant difference between {self.first} and {self.second}"
            )
        return f"{self.metric}: the order of {self.first} and {self.second} is not resolved at this number of seeds; {order}"


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

    A system is called better if the paired test over users rejects at `alpha` after correction and,
    where both have two seeds or more, or no randomness, Welch's test over seeds does too: the
    former says that the difference is not due to which users were asked, the latter that it is not
    due to which seeds were drawn.

    Args:
        systems: At least two.
        metrics: Metrics that have per-user values.
        split: `valid` or `test`.
        baseline: Label of the system that all others are compared with; None: all pairs.
        test: A name of `statistics.TESTS`.
        correction: A name of `statistics.CORRECTIONS`, over all pairs and metrics.
        alpha: Level of the tests.

    Raises:
        UsageError: A name is unknown, or there is nothing to compare.
        DataError: Two systems have fewer than two users in common, or a metric is not defined.
    """
    if len(systems) < 2:
        raise UsageError(
            "nothing to compare: two different systems are needed, or two seeds of one"
        )
    labels = [system.label for system in systems]
    if baseline is not None and baseline not in labels:
        raise unknown_name("system", baseline, labels)
    pairs = [
        pair
        for pair in itertools.combinations(systems, 2)
        if baseline is None or baseline in (pair[0].label, pair[1].label)
    ]
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        towards = sign(metric) or 1  # where neither side is better, the higher one comes first
        for system in systems:
            system.values(split, metric)  # that it is there and defined
        users = {system.label: system.by_seed(split, metric) for system in systems}
        for a, b in pairs:
            everyone = pd.concat([users[a.label], users[b.label]], axis=1)
            shared = everyone.dropna().sort_index().to_numpy(np.float64)
            if len(shared) < 2:
                raise DataError(
                    f"{a.label} and {b.label}: {len(shared)} users have {metric} in both on "
                    f"{split}, so there is nothing to "
                    "compare; are they of different data?"
                )
            values = dict(
                zip((a.label, b.label), np.split(shared, [len(a.runs)], axis=1), strict=True)
            )
            seeds = {
                label: [float(mean) for mean in columns.mean(0)]
                for label, columns in values.items()
            }
            first, second = sorted(values, key=lambda label: -towards * stdlib.fmean(seeds[label]))
            d = values[first].mean(1) - values[second].mean(1)
            rows.append(
                {
                    "metric": metric,
                    "first": first,
                    "second": second,
                    "difference": stdlib.fmean(seeds[first]) - stdlib.fmean(seeds[second]),
                    "interval": statistics.bootstrap_interval(d),
                    "p": statistics.TESTS[test](d),
                    "p_seeds": statistics.welch(seeds[a.label], seeds[b.label], (a.exact, b.exact)),
                    "effect": statistics.effect_size(d),
                    "superiority": statistics.superiority(towards * d),
                    "ahead": sum(
                        towards * x > towards * y for x in seeds[first] for y in seeds[second]
                    ),
                    "pairs": len(seeds[first]) * len(seeds[second]),
                    "n_users": len(d),
                    "n_others": len(everyone) - len(d),
                    "one_seed": any(len(one.runs) == 1 and not one.exact for one in (a, b)),
                }
            )
    corrected = statistics.CORRECTIONS[correction]([row["p"] for row in rows])
    return [
        Comparison(
            **{**row, "p": p},
            better=p < alpha and (row["p_seeds"] is None or row["p_seeds"] < alpha),
        )
        for row, p in zip(rows, corrected, strict=True)
    ]


def users_in_words(outcome: Sequence[Comparison]) -> str:
    """How many users the comparisons are over: `120 users`, `115 to 120 users`."""
    counts = sorted({one.n_users for one in outcome})
    return f"{counts[0]:,} users" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} users"


def agreement_of_seeds(systems: Sequence[System], metric: str, split: str = "test") -> float | None:
    """Mean Kendall's tau between the orders of the systems at any two seeds; None unless all have the same two or more seeds.

    None as well where a seed does not tell any of them from another.
    """
    from scipy.stats import kendalltau

    seeds = {tuple(run.recipe.seed for run in system.runs) for system in systems}
    if len(seeds) != 1 or len(next(iter(seeds))) < 2 or len(systems) < 3:
        return None
    by_seed = list(zip(*(system.values(split, metric) for system in systems), strict=True))
    tau = stdlib.fmean(
        float(kendalltau(a, b).statistic) for a, b in itertools.combinations(by_seed, 2)
    )
    return None if math.isnan(tau) else tau  # where all systems are equal there is no order


def spelled(name: str) -> str:
    """`ndcg@20` as `nDCG@20`.

    Raises:
        UsageError: No such metric, or no cut-off.
    """
    metric, at, cutoff = name.partition("@")
    if not (at and cutoff.isdigit()):
        raise UsageError(f"--metric {name}: expected NAME@K, e.g. Recall@20")
    return f"{resolve([metric])[0].name}@{cutoff}"
