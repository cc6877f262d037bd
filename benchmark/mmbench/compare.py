"""Comparing finished runs: grouped over seeds, joined by user id, tested, corrected, and put into words."""

from __future__ import annotations

import itertools
import json
import math
import statistics as stdlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmbench.config import RECIPE_FILE, Recipe, read_recipe
from mmbench.core import statistics
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.experiment import chosen_recipe
from mmbench.metrics import resolve, sign
from mmbench.models import model_class
from mmbench.results import RunFolder


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder that has been read.

    Attributes:
        path: The folder.
        recipe: What was run; for a grid, with the chosen settings.
        asked: The recipe as it was given, with what was to be searched.
        record: `run.json`.
        metrics: `metrics.json`.
    """

    path: Path
    recipe: Recipe
    asked: Recipe
    record: dict[str, Any]
    metrics: dict[str, Any]

    def per_user(self, split: str, metric: str) -> pd.Series:
        """The users' values, by user id; users outside the metric's population are left out.

        Raises:
            UsageError: The metric has no per-user values in this run.
        """
        path = self.path / "per_user.parquet"
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: cannot be read ({reason}); train anew with --restart") from error
        if metric not in frame.columns:
            known = [name for name in frame.columns if "@" in name]
            raise unknown_name("per-user metric of this run", metric, known)
        return frame.loc[frame["split"] == split].set_index("user_id")[metric].dropna().sort_index()


@dataclass(frozen=True, eq=False)
class System:
    """Runs that differ in their seed alone.

    Attributes:
        label: The model's name, with what tells it from others of the same model.
        runs: The runs, by seed.
    """

    label: str
    runs: Sequence[FinishedRun]

    @property
    def exact(self) -> bool:
        """Whether the model has no randomness, so that one run is all there is to know."""
        return not model_class(self.runs[0].recipe.model).uses_seed

    def values(self, split: str, metric: str) -> list[float]:
        """One value a seed.

        Raises:
            UsageError: The runs do not have that metric.
        """
        out = []
        for run in self.runs:
            if metric not in run.metrics[split]:
                error = unknown_name(f"metric of {run.path}", metric, run.metrics[split])
                raise UsageError(f"{error} Other metrics have to be asked for in training: --metrics, --cutoffs.")
            value = run.metrics[split][metric]
            if value is None:
                raise DataError(f"{run.path}: {metric} is not defined on {split}")
            out.append(float(value))
        return out

    def by_seed(self, split: str, metric: str) -> pd.DataFrame:
        """The users' values by user id, a column a seed; NaN where a user has none at a seed but has one at another."""
        columns = [run.per_user(split, metric).rename(seed) for seed, run in enumerate(self.runs)]
        return pd.concat(columns, axis=1).sort_index()


@dataclass(frozen=True)
class Comparison:
    """Two systems on one metric, over the users that have a value in both.

    Attributes:
        metric: e.g. `Recall@20`.
        first: Label of the better one by mean: the one with less where the metric says that less is better.
        second: Label of the other.
        difference: First minus second, means over seeds.
        interval: Bootstrap interval over users of that difference.
        p: Of the paired test over users, corrected for all comparisons of the call.
        p_seeds: Of Welch's test over seeds, not corrected; None with fewer than two seeds of a model with randomness, and
            where neither has any.
        effect: Cohen's d_z over users.
        superiority: Share of users for whom the first is better, ties half.
        ahead: In how many of `pairs` pairs of seeds the first is ahead.
        pairs: Number of pairs of seeds.
        n_users: Users that have a value in both at every seed; all that is said here is about them.
        n_others: Users that have one in one of the two alone, or not at every seed: the metric is not defined for them in the
            other, and they are left out.
        one_seed: Whether a model with randomness has one seed only, so that how much training varies is unknown.
        better: Whether the first may be called better, or higher where the metric has no better side: see `verdict`.
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
            return (
                f"{self._outcome}; over the {self.n_users:,} users that have a value in both, {self.n_others:,} do not"
            )
        return self._outcome

    @property
    def _outcome(self) -> str:
        word = "higher" if sign(self.metric) is None else "better"
        order = f"{self.first} is ahead of {self.second} in {self.ahead} of {self.pairs} pairs of seeds"
        if self.better and self.one_seed:
            return (
                f"{self.metric}: this run of {self.first} is {word} than this one of {self.second}; "
                "how much training varies is unknown at one seed"
            )
        if self.better and self.p_seeds is None:
            return f"{self.metric}: {self.first} is {word} than {self.second}; neither has any randomness"
        if self.better:
            return f"{self.metric}: {self.first} is {word} than {self.second}; {order}"
        if self.pairs == 1:
            return f"{self.metric}: no significant difference between {self.first} and {self.second}"
        return f"{self.metric}: the order of {self.first} and {self.second} is not resolved at this number of seeds; {order}"


def find_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """The finished runs among run folders and folders of run folders.

    Raises:
        DataError: A path holds no finished run, or one cannot be read.
    """
    found: dict[Path, FinishedRun] = {}
    for path in paths:
        folders = [path] if (path / RECIPE_FILE).is_file() else sorted(p.parent for p in path.glob(f"*/{RECIPE_FILE}"))
        finished = [folder for folder in folders if (folder / "metrics.json").is_file()]
        if not finished:
            raise DataError(f"{path}: no finished run here; give run folders, or a folder that holds some")
        for folder in finished:
            found[folder.resolve()] = _read(folder)
    return list(found.values())


def group(runs: Sequence[FinishedRun]) -> list[System]:
    """Runs by what was run apart from the seed, in order of first appearance, with labels that tell them apart.

    A run that was searched for and then done by itself counts once. Where the same search chose other settings at other
    seeds, choosing is part of the system.

    Raises:
        DataError: Two runs of one recipe and seed have different results.
    """
    chosen: dict[str, set[str]] = {}
    for run in runs:
        chosen.setdefault(_as_asked(run), set()).add(_as_chosen(run))
    by_recipe: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        key = _as_chosen(run) if len(chosen[_as_asked(run)]) == 1 else _as_asked(run)
        same = by_recipe.setdefault(key, {}).setdefault(run.recipe.seed, run)
        if same.metrics["test"] != run.metrics["test"]:
            raise DataError(f"{run.path} and {same.path}: the same recipe and seed, but other results; leave one out")
    groups = [[members[seed] for seed in sorted(members)] for members in by_recipe.values()]
    return [System(_label(members, groups), members) for members in groups]


def one_each(runs: Sequence[FinishedRun]) -> list[System]:
    """Each run as a system of its own, labelled by its seed: for comparing the seeds of one model with each other."""
    return [System(f"{run.recipe.model} seed {run.recipe.seed}", [run]) for run in runs]


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose numbers do not belong into one table.

    Raises:
        DataError: Data, split, protocol, masks or relevance differ; the message says what and where.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, mine in _conditions(first).items():
            theirs = _conditions(run)[what]
            if mine != theirs:
                raise DataError(
                    f"{run.path} and {first.path}: {what} differs ({theirs} and {mine}), so their numbers do not belong "
                    "into one table; compare runs of the same kind, or insist with --allow-mixed"
                )


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

    A system is called better if the paired test over users rejects at `alpha` after correction and, where both have two seeds
    or more, or no randomness, Welch's test over seeds does too: the former says that the difference is not due to which users
    were asked, the latter that it is not due to which seeds were drawn.

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
        raise UsageError("nothing to compare: two different systems are needed, or two seeds of one")
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
                    f"{a.label} and {b.label}: {len(shared)} users have {metric} in both on {split}, so there is nothing to "
                    "compare; are they of different data?"
                )
            values = dict(zip((a.label, b.label), np.split(shared, [len(a.runs)], axis=1), strict=True))
            seeds = {label: [float(mean) for mean in columns.mean(0)] for label, columns in values.items()}
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
                    "ahead": sum(towards * x > towards * y for x in seeds[first] for y in seeds[second]),
                    "pairs": len(seeds[first]) * len(seeds[second]),
                    "n_users": len(d),
                    "n_others": len(everyone) - len(d),
                    "one_seed": any(len(one.runs) == 1 and not one.exact for one in (a, b)),
                }
            )
    corrected = statistics.CORRECTIONS[correction]([row["p"] for row in rows])
    return [
        Comparison(**{**row, "p": p}, better=p < alpha and (row["p_seeds"] is None or row["p_seeds"] < alpha))
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
    tau = stdlib.fmean(float(kendalltau(a, b).statistic) for a, b in itertools.combinations(by_seed, 2))
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


def _read(folder: Path) -> FinishedRun:
    record, metrics = (RunFolder(folder).read_json(name) for name in ("run.json", "metrics.json"))
    asked = read_recipe(folder / RECIPE_FILE)
    return FinishedRun(folder, chosen_recipe(asked, record), asked, record, metrics)


def _as_chosen(run: FinishedRun) -> str:
    # A searched and a given setting are the same model.
    return json.dumps([_settings([run]), _others([run])], sort_keys=True, default=str)


def _as_asked(run: FinishedRun) -> str:
    searched = run.asked.searched
    given = {name: value for name, value in _settings([run]).items() if name not in searched}
    return json.dumps([given, _others([run]), _search([run])], sort_keys=True, default=str)


def _settings(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """The settings; `searched` where a search chose by the seed."""
    first, *others = (run.recipe.settings.model_dump(mode="json") for run in members)
    return {
        name: value if all(other[name] == value for other in others) else "searched" for name, value in first.items()
    }


def _search(members: Sequence[FinishedRun]) -> dict[str, Any]:
    asked = members[0].asked.dump()
    return {"grid": asked["grid"], "search": asked["search"]}


def _others(members: Sequence[FinishedRun]) -> dict[str, Any]:
    """What was run apart from seed and settings, by plain names: `every`, `visual` and so on."""
    run = members[0]
    flat: dict[str, Any] = {"data": run.record["dataset"]["name"], "digest": run.record["dataset"]["digest"]}
    for name, value in run.recipe.dump().items():
        if name not in ("seed", "data", "device", "settings", "grid", "search", "columns"):
            flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _label(members: Sequence[FinishedRun], groups: Sequence[Sequence[FinishedRun]]) -> str:
    """The model's name, and where several groups share it, in what they differ: settings, else anything else."""
    model = members[0].recipe.model
    different: dict[str, Any] = {}
    for rival in (other for other in groups if other is not members and other[0].recipe.model == model):
        told_by = next((one for one in (_settings, _others) if one(rival) != one(members)), _search)
        mine, theirs = told_by(members), told_by(rival)
        different |= {name: mine.get(name) for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)}
    if not different:
        return model
    parts = (f"{name}={f'{v:.6g}' if isinstance(v, float) else v}" for name, v in sorted(different.items()))
    return f"{model}({', '.join(parts)})"


def _conditions(run: FinishedRun) -> dict[str, Any]:
    data, protocol = run.record["dataset"], run.record["protocol"]
    return {
        "the dataset's digest": data["digest"],
        "the test digest": data["test_digest"],
        "the protocol": protocol["name"],
        "the candidates": protocol.get("candidates"),
        "the catalogue's digest": protocol.get("digests", {}).get("catalogue"),
        "the mask": protocol.get("masked"),
        "the relevance threshold": run.recipe.evaluation.threshold,
    }
