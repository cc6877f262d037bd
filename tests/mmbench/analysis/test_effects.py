"""Effects of factors: values worked by hand, a direct loop, which pairs count, and outcomes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmbench.analysis.effects import Contrast, Effect, Observation, effects, kept_of_gain

RECALL = "Recall@20"


def seen(
    value: float | None, seed: int | None = 1, *, same: str = "", **levels: Any
) -> Observation:
    return Observation(levels, seed, {RECALL: value}, comparable=same)


def only(observed: list[Observation], contrast: Contrast, **options: Any) -> Effect:
    (one,) = effects(observed, [contrast], [RECALL], **options)
    return one


LATE = Contrast("fusion", "late", "early")


def test_an_effect_worked_by_hand() -> None:
    """Two models and three seeds; late is ahead by 0.02, 0.04, 0.06 in a, by 0, 0.02, 0.04 in b."""
    early = {"a": 0.10, "b": 0.20}
    ahead = {"a": (0.02, 0.04, 0.06), "b": (0.00, 0.02, 0.04)}
    observed = [
        seen(early[model] + (ahead[model][seed] if fusion == "late" else 0.0), seed,
             model=model, fusion=fusion)
        for model, seed, fusion in itertools.product("ab", range(3), ("early", "late"))
    ]  # fmt: skip
    one = only(observed, LATE)
    # Means over the models by seed: 0.01, 0.03, 0.05; their standard deviation is 0.02.
    half = stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3)
    assert one.difference == pytest.approx(0.03)
    assert one.base == pytest.approx(0.15)
    assert one.interval == pytest.approx((0.03 - half, 0.03 + half))
    assert one.p_seeds == pytest.approx(stats.ttest_1samp([0.01, 0.03, 0.05], 0).pvalue)
    assert (one.ahead, one.pairs, one.n_cells, one.n_seeds) == (5, 6, 2, 3)
    assert (one.interval_users, one.p) == (None, pytest.approx(one.p_seeds))
    assert one.outcome == "unresolved"


def test_an_effect_is_that_of_a_direct_loop_over_pairs_and_users() -> None:
    rng = np.random.default_rng(5)
    users = pd.Index([f"u{n}" for n in range(40)])
    observed = []
    for model, dim, fusion, seed in itertools.product("ab", (8, 16), ("early", "late"), (1, 2, 3)):
        values = pd.Series(rng.random(40) + 0.3 * (fusion == "late"), users)
        values = values.sample(frac=1, random_state=seed)  # users are joined by id
        levels = {"model": model, "dim": dim, "fusion": fusion}
        observed.append(Observation(levels, seed, {RECALL: float(values.mean())}, {RECALL: values}))
    one = only(observed, LATE)
    by_seed: dict[int, list[float]] = {}
    by_user: dict[str, list[float]] = {}
    for a, b in itertools.product(observed, observed):
        same = all(a.levels[name] == b.levels[name] for name in ("model", "dim"))
        if (
            same
            and a.seed == b.seed
            and (a.levels["fusion"], b.levels["fusion"]) == ("late", "early")
        ):
            assert a.seed is not None
            by_seed.setdefault(a.seed, []).append(a.values[RECALL] - b.values[RECALL])  # type: ignore[operator]
            for user in users:
                d = a.users[RECALL][user] - b.users[RECALL][user]
                by_user.setdefault(user, []).append(d)
    means = [float(np.mean(ds)) for ds in by_seed.values()]
    of_users = np.array([np.mean(ds) for ds in by_user.values()])
    assert (one.pairs, one.n_cells, one.n_users) == (12, 4, 40)
    assert one.difference == pytest.approx(np.mean(means)) == pytest.approx(of_users.mean())
    assert one.p_seeds == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert one.interval_users is not None
    assert one.interval_users[0] < of_users.mean() < one.interval_users[1]
    assert one.p is not None and one.p < 0.001
    assert one.outcome == "better"


def test_only_runs_that_are_equal_in_all_else_are_paired() -> None:
    observed = [
        seen(0.1, model="a", fusion="early", dim=8),
        seen(0.4, model="a", fusion="late", dim=16),  # another width
        seen(0.9, model="b", fusion="late", dim=8),  # another model
        seen(0.2, model="c", fusion="early", dim=8),
        seen(0.3, model="c", fusion="late", dim=8),
    ]
    one = only(observed, LATE)
    assert (one.difference, one.pairs) == (pytest.approx(0.1), 1)
    assert not effects(observed, [Contrast("dim", 16, 8)], [RECALL])


def test_a_cell_that_lacks_a_seed_does_not_count() -> None:
    observed = [
        seen(value, seed, model=model, fusion=fusion)
        for model, fusion, seed, value in [
            ("a", "early", 1, 0.1), ("a", "early", 2, 0.1), ("a", "late", 1, 0.2),
            ("a", "late", 2, 0.2), ("b", "early", 1, 0.1), ("b", "early", 2, 0.1),
            ("b", "late", 1, 0.9), ("b", "late", 2, None),
        ]
    ]  # fmt: skip
    one = only(observed, LATE)
    assert (one.difference, one.n_cells, one.left_out) == (pytest.approx(0.1), 1, 1)


def test_a_run_without_randomness_stands_for_every_seed() -> None:
    observed = [
        seen(0.1, None, model="knn", fusion="early"),
        seen(0.2, None, model="knn", fusion="late"),
        *(seen(0.1, seed, model="a", fusion="early") for seed in (1, 2)),
        *(seen(0.1 + seed / 10, seed, model="a", fusion="late") for seed in (1, 2)),
    ]
    one = only(observed, LATE)
    assert (one.n_cells, one.pairs) == (2, 4)
    assert one.difference == pytest.approx((0.1 + 0.1 + 0.1 + 0.2) / 4)


def test_places_are_compared_on_their_own() -> None:
    observed = [
        seen(value, model=model, fusion=fusion)
        for model, fusion, value in [
            ("a", "early", 0.1), ("a", "late", 0.2), ("b", "early", 0.1), ("b", "late", 0.0),
        ]
    ]  # fmt: skip
    by_model = [Contrast("fusion", "late", "early", {"model": model}) for model in "ab"]
    found = effects(observed, by_model, [RECALL])
    assert [one.difference for one in found] == pytest.approx([0.1, -0.1])


def with_users(shift: float, spread: float, seeds: int = 4) -> list[Observation]:
    """Runs whose users gain `shift`, give or take `spread`, by late fusion."""
    rng = np.random.default_rng(3)
    out = []
    for seed in range(seeds):
        base = pd.Series(rng.random(200))
        gains = pd.Series(shift + spread * rng.standard_normal(200))
        for fusion, values in (("early", base), ("late", base + gains)):
            levels = {"model": "a", "fusion": fusion}
            out.append(Observation(levels, seed, {RECALL: values.mean()}, {RECALL: values}))
    return out


@pytest.mark.parametrize(
    ("shift", "spread", "outcome"),
    [(0.1, 0.01, "better"), (-0.1, 0.01, "worse"), (0.0, 0.0, "none"), (0.0, 0.5, "unresolved")],
)
def test_outcomes(shift: float, spread: float, outcome: str) -> None:
    assert only(with_users(shift, spread), LATE).outcome == outcome


def test_less_is_better_where_the_metric_says_so() -> None:
    arp = "ARP@20"
    runs = [
        Observation(one.levels, one.seed, {arp: one.values[RECALL]}, {arp: one.users[RECALL]})
        for one in with_users(0.1, 0.01)
    ]
    (one,) = effects(runs, [LATE], [arp])
    assert (one.outcome, one.ahead) == ("worse", 0)


def test_all_effects_of_a_call_are_one_family() -> None:
    runs = with_users(0.02, 0.1)
    alone = only(runs, LATE)
    places = [Contrast("fusion", "late", "early", {"model": "a"}) for _ in range(3)]
    together = effects(runs, places, [RECALL])
    assert alone.p is not None
    assert [one.p for one in together] == [pytest.approx(min(1.0, 3 * alone.p))] * 3


def test_other_test_rows_are_not_comparable() -> None:
    observed = [
        seen(0.1, model="a", fusion="early", same="all items"),
        seen(0.9, model="a", fusion="late", same="fewer items"),
    ]
    assert only(observed, LATE).outcome == "incomparable"


def test_the_share_of_a_gain_that_a_level_keeps() -> None:
    observed = [
        seen(value + seed / 1000, seed, model="a", control=control)
        for control, value in (("real", 0.30), ("shuffled", 0.15), ("absent", 0.10))
        for seed in range(4)
    ]
    contrasts = [Contrast("control", level, "real") for level in ("shuffled", "absent")]
    shuffled, absent = effects(observed, contrasts, [RECALL])
    assert absent.outcome == "worse"
    assert kept_of_gain(shuffled, absent) == pytest.approx((0.15 - 0.10) / (0.30 - 0.10))
    nothing = effects(observed, [Contrast("control", "real", "absent")], [RECALL])[0]
    assert kept_of_gain(nothing, nothing) is None  # real is better than absent: no loss to divide
