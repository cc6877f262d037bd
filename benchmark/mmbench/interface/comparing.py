"""Compare finished runs, and write reports of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

from mmbench.analysis import statistics
from mmbench.analysis.compare import agreement_of_seeds
from mmbench.analysis.compare import compare as compare_systems
from mmbench.analysis.controls import content_gains
from mmbench.errors import UsageError, unknown_name
from mmbench.interface.choices import Place, several
from mmbench.interface.results import Comparisons
from mmbench.metrics import spelled
from mmbench.runs import kinds
from mmbench.runs.finished_runs import FinishedRun, find_runs, group, one_each, require_comparable
from mmbench.runs.result import Result

Places: TypeAlias = Place | Result | Sequence[Place | Result]
"""Run folders, folders that hold some, results: one or several."""

Wanted: TypeAlias = Mapping[str, str] | Sequence[str]
"""A choice of runs: `{"split": "loo"}`, or `["split=loo", "split=random"]` for alternatives."""


def compare(
    runs: Places,
    metrics: Sequence[str] = ("Recall@20", "nDCG@20"),
    *,
    baseline: str | None = None,
    test: Literal["randomisation", "t", "wilcoxon"] = "randomisation",
    correction: Literal["holm", "bh"] = "holm",
    alpha: float = 0.05,
    split: Literal["valid", "test"] = "test",
    only: Wanted = (),
    allow_mixed: bool = False,
) -> Comparisons:
    """Rank systems by paired tests, and say which order is not resolved.

    Runs that differ in their seed alone are one system. See `mmbench compare` for when one is
    better; seeds of a single system are compared with each other.

    Args:
        runs: Run folders, folders that hold some, or the results of `train`.
        metrics: Per-user metrics with cut-off.
        baseline: Label of the system that all others are compared with; None: all pairs.
        test: The paired test over users.
        correction: For all comparisons of the call.
        alpha: Level of the tests, between 0 and 1.
        split: The part whose metrics count.
        only: Runs of this dataset, split or protocol alone.
        allow_mixed: Accept different data, splits or protocols.

    Raises:
        UsageError: A name is unknown, or there is nothing to compare.
        DataError: No finished run, or runs whose numbers do not belong in one table.
    """
    for kind, name, known in (
        ("test", test, statistics.TESTS),
        ("correction", correction, statistics.CORRECTIONS),
        ("split", split, ("valid", "test")),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    if not 0 < alpha < 1:
        raise UsageError(f"alpha = {alpha}: expected a number between 0 and 1")
    found = chosen_runs(runs, only)
    if not allow_mixed:
        require_comparable(found)
    systems = group(found)
    if len(systems) == 1:
        systems = one_each(found)
    names = [spelled(name) for name in several(metrics)]
    how = {"test": test, "correction": correction, "alpha": alpha}
    outcome = compare_systems(
        systems, names, split=split, baseline=baseline, test=test, correction=correction,
        alpha=alpha,
    )  # fmt: skip
    gains = content_gains(
        systems, names, split=split, test=test, correction=correction, alpha=alpha
    )
    told = list(dict.fromkeys(kinds.kind_in_words(kinds.kind_of(run)) for run in found))
    taus = {name: agreement_of_seeds(systems, name, split) for name in names}
    return Comparisons(systems, names, split, how, outcome, gains, told, taus)


def chosen_runs(runs: Places, wanted: Wanted) -> list[FinishedRun]:
    """Return the finished runs in places, of the wanted datasets, splits and protocols.

    Raises:
        UsageError: No run is of that dataset, split or protocol; or something is no place.
        DataError: A place holds no finished run, or one cannot be read.
    """
    for one in several(runs):
        if not isinstance(one, str | PathLike | Result):
            raise UsageError(f"expected run folders or results of trainings (got {one!r})")
    paths = [one.path if isinstance(one, Result) else Path(one) for one in several(runs)]
    if isinstance(wanted, Mapping):
        wanted = [f"{name}={value}" for name, value in wanted.items()]
    return kinds.only(find_runs(paths), wanted)
