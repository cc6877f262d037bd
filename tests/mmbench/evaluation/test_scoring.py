"""Slices: who belongs to which, and that a slice's numbers are those of the held-out rows in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mmbench.metrics.test_metrics import prepare
from tests.reference import metrics as oracle

from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.evaluation.scoring import Scores, Slice, evaluate, make_slices, score_slices
from mmbench.metrics import resolve


def train_of(popularity: list[int], n_users: int) -> TrainSet:
    """Items with the given numbers of users, users 0, 1, 2, …."""
    items = np.repeat(np.arange(len(popularity)), popularity)
    users = np.concatenate([np.arange(n) for n in popularity])
    return TrainSet.from_pairs(users, items, n_users, len(popularity))


def members(slices: list[Slice], family: str) -> dict[str, list[int]]:
    return {
        one.name: np.flatnonzero(one.members).tolist() for one in slices if one.family == family
    }


def test_popularity_buckets_by_hand() -> None:
    # 20 interactions: 10 are reached by items 1 and 3 (6 + 4), 16 by 0 and 4 as well (3 + 3); 2 and
    # 5 are the rest.
    slices = make_slices(train_of([3, 6, 2, 4, 3, 2], 6), 8, 6)
    assert members(slices, "popularity") == {"head": [1, 3], "mid": [0, 4], "tail": [2, 5]}
    assert members(slices, "items") == {"warm": [0, 1, 2, 3, 4, 5], "cold": [6, 7]}


def test_the_tail_is_the_tail_of_the_popularity_metrics() -> None:
    for seed in range(20):
        case = prepare(oracle.random_case(seed))
        from mmbench.metrics import Judged
        from mmbench.metrics.judged_lists import Pairs

        none = np.zeros(0, np.int64)
        train: TrainSet = case["train"]
        judged = Judged(none, np.zeros((1, 0), np.int64), Pairs(none, none, np.zeros(0)), train)
        tail = members(make_slices(train, train.n_items, train.n_users), "popularity").get(
            "tail", []
        )
        assert tail == np.flatnonzero(~judged.is_head & (train.popularity > 0)).tolist()


def test_activity_quarters_by_hand() -> None:
    # Eight users with 1, 1, 2, 2, 3, 3, 3, 9 training items, and one without.
    degrees = [1, 1, 2, 2, 3, 3, 3, 9, 0]
    users = np.repeat(np.arange(9), degrees)
    items = np.concatenate([np.arange(n) for n in degrees])
    slices = make_slices(TrainSet.from_pairs(users, items, 9, 9), 9, 10)
    assert members(slices, "activity") == {
        "q1: 1": [0, 1],
        "q2: 2": [2, 3],
        "q3: 3": [4, 5, 6],
        "q4: 9": [7],
        "none": [8, 9],
    }


def test_modalities() -> None:
    present = np.array([True, False, True])
    slices = make_slices(train_of([1, 1], 1), 3, 1, {"visual": present, "audio": np.ones(3, bool)})
    assert members(slices, "visual") == {"with": [0, 2], "without": [1]}
    assert members(slices, "audio") == {"with": [0, 1, 2]}  # an empty slice is no slice


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_slice_is_an_evaluation_of_its_rows(seed: int) -> None:
    case = oracle.random_case(seed)
    arguments = prepare(case)
    train: TrainSet = arguments["train"]
    held_out: HeldOut = arguments.pop("held_out")
    n_items, n_users = case["n_items"] + 4, case["n_users"]
    present = {"visual": np.random.default_rng(seed).random(n_items) < 0.5}
    slices = make_slices(train, n_items, n_users, present)
    found = score_slices(
        slices,
        held_out,
        lambda rows: evaluate(held_out=rows, metrics=resolve(["all"]), **arguments),
    )
    by_family: dict[str, int] = {}
    for one in found:
        inside = set(np.flatnonzero(one.slice.members).tolist())
        kept = [
            row for row in case["held_out"] if row[1 if one.slice.of == "items" else 0] in inside
        ]
        expected = oracle.expected(dict(case, held_out=kept))
        for name, value in one.scores.overall.items():
            assert value == (
                None
                if expected[name] is None
                else pytest.approx(expected[name], rel=1e-9, abs=1e-12)
            ), name
        by_family[one.slice.family] = by_family.get(one.slice.family, 0) + one.n_rows
    for family in (
        "activity",
        "items",
        "visual",
    ):  # every row is in exactly one slice of the family
        assert by_family[family] == held_out.users.size


def test_values_come_with_their_counts() -> None:
    case = oracle.random_case(3, threshold=4.0)
    arguments: dict[str, Any] = prepare(case)
    held_out = arguments.pop("held_out")

    def score(rows: HeldOut) -> Scores:
        return evaluate(held_out=rows, metrics=resolve(["Recall"]), **arguments)

    slices = make_slices(arguments["train"], case["n_items"] + 4, case["n_users"])
    for one in (found.as_json() for found in score_slices(slices, held_out, score)):
        assert one["rows"] >= one["users_evaluated"] >= one["users_with_relevant"] >= 0
        assert one["rule"] and ("items" in one or "users" in one)
        assert set(one["metrics"]) == {f"Recall@{k}" for k in case["cutoffs"]}
