"""A metric costs one function and one line: the properties judge it before it has an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.mmbench.metrics.conformance import PROPERTIES, check_bounds, check_undefined

from mmbench.metrics import METRICS, Judged, Metric, resolve
from mmbench.metrics.judged_lists import over_evaluated, over_relevant, overall

ABOUT: dict[str, Any] = {"formula": "mean over E of …", "source": "this test"}


@over_evaluated("FirstHits", **ABOUT)
def first_hits(lists: Judged, k: int) -> Any:
    """Whether the list begins with a hit: a metric as CONTRIBUTING says."""
    first = lists.hits.user[lists.hits.rank == 0]
    return np.bincount(first, minlength=lists.n_users).astype(np.float64)


@overall("HitsPerList", bounds=(0.0, np.inf), **ABOUT)
def hits_per_list(lists: Judged, k: int) -> float:
    """Mean number of hits."""
    return float(lists.n_hits(k).sum() / lists.n_users) if lists.n_users else float("nan")


@over_evaluated("HitCount", **ABOUT)
def out_of_bounds(lists: Judged, k: int) -> Any:
    """Declares [0, 1] and counts."""
    return lists.length_at(k) + 1.0


@over_evaluated("Chance", **ABOUT)
def by_chance(lists: Judged, k: int) -> Any:
    """Is no function of the lists."""
    return np.random.default_rng().random(lists.n_users)


@over_relevant("Ratio", bounds=(0.0, np.inf), **ABOUT)
def divided_by_zero(lists: Judged, k: int) -> Any:
    """Is infinite where it is not defined."""
    with np.errstate(divide="ignore"):
        return 1.0 / lists.n_hits(k)


@over_evaluated("Hitters", bounds=(0.0, np.inf), **ABOUT)
def of_other_shape(lists: Judged, k: int) -> Any:
    """Leaves users out."""
    return lists.n_hits(k)[lists.n_relevant > 0]


@overall("Mean", bounds=(0.0, np.inf), **ABOUT)
def array_for_all_lists(lists: Judged, k: int) -> Any:
    """Declares one number and gives one per user."""
    return lists.n_hits(k)


@pytest.mark.parametrize("check", PROPERTIES)
def test_a_metric_without_an_oracle_passes(
    check: Callable[[list[Metric], int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for metric in (first_hits, hits_per_list):
        monkeypatch.setitem(METRICS, metric.name, metric)
    metrics = [metric for metric in resolve(["all"]) if metric.source == "this test"]
    assert metrics == [first_hits, hits_per_list]
    for seed in range(10):
        check(metrics, seed)


@pytest.mark.parametrize(
    ("metric", "check"),
    [
        (out_of_bounds, check_bounds),
        (by_chance, PROPERTIES[1]),
        (divided_by_zero, check_undefined),
        (of_other_shape, check_undefined),
        (array_for_all_lists, check_undefined),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_a_defect_is_noticed(metric: Metric, check: Callable[[list[Metric], int], None]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        for seed in range(10):
            check([metric], seed)
