"""The evaluator's edges, and the ranking against a brute-force one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.evaluation.ranking import rank
from mmbench.evaluation.scoring import RankedLists, Scores, evaluate
from mmbench.metrics import resolve


def lists_of(rows: dict[int, list[int]], width: int = 3) -> RankedLists:
    items = np.array([row + [-1] * (width - len(row)) for row in rows.values()], np.int64).reshape(
        -1, width
    )
    return RankedLists(np.array(list(rows), np.int64), items)


def held_out_of(*rows: tuple[int, int, float]) -> HeldOut:
    table = np.array(rows, np.float64).reshape(-1, 3)
    return HeldOut.from_pairs(
        table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]
    )


def train_of(*pairs: tuple[int, int], n_users: int = 4, n_items: int = 6) -> TrainSet:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return TrainSet.from_pairs(table[:, 0], table[:, 1], n_users, n_items)


TRAIN = train_of((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 2), (3, 3))


def scored(lists: RankedLists, held_out: HeldOut, *names: str, **arguments: Any) -> Scores:
    arguments = {"cutoffs": (3,)} | arguments
    return evaluate(lists, TRAIN, held_out, metrics=resolve(names or ["all"]), **arguments)


# -- lists that are refused
# ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 1], [[1, 2], [3, 3]], "item row 3 is twice in the list of user row 1"),
        ([0, 0], [[1, 2], [3, 4]], "a user has two lists"),
        ([-1, 0], [[1, 2], [3, 4]], "a user has two lists or a negative row"),
        ([0, 7], [[1, 2], [-1, 4]], "the list of user row 7 has a gap"),
        ([0, 1], [[1, -2], [3, 4]], "negative item rows"),
    ],
)
def test_lists_that_no_recommender_may_give(
    users: list[int], items: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        RankedLists(np.array(users), np.array(items))


def test_lists_of_the_wrong_shape() -> None:
    with pytest.raises(ShapeError, match=r"users \(2,\) and items \(1, 2\)"):
        RankedLists(np.arange(2), np.arange(2)[None])


def test_a_user_that_training_does_not_know() -> None:
    with pytest.raises(DataError, match=r"user row 4 is unknown \(expected rows below 4\)"):
        scored(lists_of({4: [1]}), held_out_of((0, 1, 1)))


@pytest.mark.parametrize("cutoffs", [(), (0,), (3, 4)])
def test_cutoffs_that_the_lists_cannot_serve(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected one or more in \[1, 3\]"):
        scored(lists_of({0: [1, 2, 3]}), held_out_of((0, 1, 1)), cutoffs=cutoffs)


@pytest.mark.parametrize(
    ("row", "message"), [((0, 1, math.nan), "not finite"), ((0, -1, 1.0), "negative user or item")]
)
def test_held_out_rows_that_are_refused(row: tuple[int, int, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scored(lists_of({0: [1, 2, 3]}), held_out_of(row))


# -- who is evaluated
# ----------------------------------------------------------------------


def test_users_are_counted() -> None:
    found = scored(
        lists_of({3: [1, 2], 0: [2, 4, 5], 1: []}),
        held_out_of((0, 2, 5), (1, 4, 5), (2, 4, 5), (9, 4, 5)),
        "Recall",
    )
    assert found.users.tolist() == [0, 1]
    assert found.per_user["Recall@3"].tolist() == [1.0, 0.0]
    assert (found.n_evaluated, found.n_relevant, found.n_without_list) == (2, 2, 2)


def test_users_without_a_list_can_score_zero() -> None:
    arguments = lists_of({0: [2, 4, 5]}), held_out_of((0, 2, 5), (2, 4, 5), (9, 4, 5))
    assert scored(*arguments, "Recall").overall == {"Recall@3": 1.0}
    found = scored(*arguments, "Recall", "UserCoverage", "APLT", missing_users="zero")
    assert found.users.tolist() == [0, 2, 9]
    assert scored(lists_of({}), arguments[1], "Recall", missing_users="zero").overall == {
        "Recall@3": 0.0
    }
    assert found.overall == {
        "Recall@3": pytest.approx(1 / 3),
        "UserCoverage@3": 1.0,
        "APLT@3": pytest.approx(2 / 3),
    }


def test_users_without_a_relevant_item_have_no_accuracy_but_a_list() -> None:
    found = scored(
        lists_of({0: [2, 4, 5], 1: [0, 3, 4]}), held_out_of((0, 2, 5), (1, 3, 2)), threshold=3.0
    )
    assert found.n_relevant == 1
    assert found.overall["Precision@3"] == pytest.approx(1 / 3)
    assert math.isnan(found.per_user["Precision@3"][1])
    assert found.overall["ItemCoverage@3"] == 5.0
    assert found.per_user["ACLT@3"].tolist() == [2.0, 2.0]


def test_the_threshold_includes_its_own_rating() -> None:
    held_out = held_out_of((0, 2, 3), (0, 4, 2.9))
    assert scored(lists_of({0: [2]}), held_out, "Recall", threshold=3.0).overall == {
        "Recall@3": 1.0
    }


def test_an_item_outside_training_counts_as_relevant() -> None:
    held_out = held_out_of((0, 2, 1), (0, 77, 1))
    assert scored(lists_of({0: [2]}), held_out, "Recall").overall == {"Recall@3": 0.5}
    assert scored(lists_of({0: [77]}), held_out, "Recall", "ARP").overall == {
        "Recall@3": 0.5,
        "ARP@3": 0.0,
    }


def test_rows_far_beyond_the_catalogue_cost_nothing() -> None:
    far = 10**15
    found = scored(lists_of({0: [far, 2]}), held_out_of((0, far, 1)), "all")
    assert found.overall["ItemCoverage@3"] == 2.0
    assert found.overall["MRR@3"] == 1.0


@pytest.mark.parametrize("held_out", [held_out_of(), held_out_of((3, 1, 1))])
def test_nobody_to_evaluate(held_out: HeldOut) -> None:
    found = scored(lists_of({0: [1, 2]}), held_out)
    assert found.n_evaluated == 0
    numbers = {
        "Gini": 1.0,
        "iCov": 0.0,
        "ItemCoverage": 0.0,
        "UserCoverage": 0.0,
        "UserCoverageAtN": 0.0,
    }
    for name, value in found.overall.items():
        assert value == numbers.get(name.partition("@")[0]), name


def test_nothing_to_learn_from() -> None:
    empty = train_of(n_users=2, n_items=3)
    found = evaluate(
        lists_of({0: [1, 2]}), empty, held_out_of((0, 1, 1)), metrics=resolve(["all"]), cutoffs=(2,)
    )
    assert found.overall["Recall@2"] == 1.0
    assert found.overall["APLT@2"] == 1.0
    assert found.overall["PopREO@2"] is None
    assert all(value is None or math.isfinite(value) for value in found.overall.values())


def test_many_relevant_items_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = TrainSet.from_pairs(rng.integers(0, 40, 300), rng.integers(0, 60, 300), 40, 60)
    held_out = HeldOut.from_pairs(
        rng.integers(0, 40, 500), rng.integers(0, 65, 500), rng.integers(1, 6, 500) * 1.0
    )
    lists = RankedLists(np.arange(40), np.argsort(rng.random((40, 60)), axis=1)[:, :10])
    whole = evaluate(lists, train, held_out, metrics=resolve(["all"]), cutoffs=(5, 10))
    monkeypatch.setattr("mmbench.metrics.judged_lists._PLACES_AT_A_TIME", 70)
    parts = evaluate(lists, train, held_out, metrics=resolve(["all"]), cutoffs=(5, 10))
    assert whole.overall == parts.overall


# -- ranking
# ----------------------------------------------------------------------


def by_sorting(
    scores: np.ndarray[Any, Any], masked: set[tuple[int, int]], users: list[int], k: int
) -> list[list[int]]:
    lists = []
    for user in users:
        row = sorted(
            (-s, i)
            for i, s in enumerate(scores[user].tolist())
            if (user, i) not in masked and s != -math.inf
        )
        items = [item for _, item in row[:k]]
        lists.append(items + [-1] * (k - len(items)))
    return lists


@given(
    seed=st.integers(0, 2**32),
    n_users=st.integers(1, 12),
    n_items=st.integers(1, 400),
    k=st.integers(1, 12),
    rows_per_block=st.integers(1, 15),
    strict=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ranking_equals_a_full_sort(
    seed: int, n_users: int, n_items: int, k: int, rows_per_block: int, strict: bool
) -> None:
    rng = np.random.default_rng(seed)
    n_pairs = int(rng.integers(0, n_users * n_items // 2 + 1))
    train = TrainSet.from_pairs(
        rng.integers(0, n_users, n_pairs), rng.integers(0, n_items, n_pairs), n_users, n_items
    )
    valid = HeldOut.from_pairs(
        rng.integers(0, n_users + 2, 20), rng.integers(0, n_items + 5, 20), np.ones(20)
    )
    table = rng.integers(0, 6, (n_users, n_items)).astype(np.float32)
    table[rng.random(table.shape) < 0.05] = -math.inf
    users = rng.permutation(n_users)[: rng.integers(0, n_users + 1)]
    masked = set(zip(train.users.tolist(), train.items.tolist(), strict=True))
    if strict:
        masked |= set(zip(valid.users.tolist(), valid.items.tolist(), strict=True))
    scores = torch.from_numpy(table)
    found = rank(
        lambda block: scores[block],
        train,
        users,
        k=k,
        also_masked=valid if strict else None,
        block_bytes=rows_per_block * n_items * 4,
    )
    assert found.users.tolist() == users.tolist()
    assert found.items.tolist() == by_sorting(table, masked, users.tolist(), k)


def test_stored_scores_are_left_as_they_were() -> None:
    table = torch.nn.Parameter(torch.rand(4, 6))
    before = table.detach().clone()
    first = rank(lambda block: table, TRAIN, np.arange(4), k=3)
    assert torch.equal(table.detach(), before)
    assert not {0, 1} & set(first.items[0].tolist())
    popularity = torch.arange(6.0)
    lists = rank(lambda block: popularity.expand(block.numel(), -1), TRAIN, np.arange(4), k=3)
    assert lists.items[3].tolist() == [5, 4, 2]
    assert popularity.tolist() == [0, 1, 2, 3, 4, 5]


def test_no_block_exceeds_its_budget() -> None:
    sizes: list[int] = []

    def score(users: Tensor) -> Tensor:
        sizes.append(users.numel())
        assert not torch.is_grad_enabled()
        return torch.zeros(users.numel(), 1000)

    train = TrainSet.from_pairs(np.arange(0), np.arange(0), 100, 1000)
    rank(score, train, np.arange(100), k=5, block_bytes=30 * 4 * 1000 + 17)
    assert sizes == [30, 30, 30, 10]
    sizes.clear()
    rank(score, train, np.arange(3), k=5, block_bytes=1)
    assert sizes == [1, 1, 1]


def test_a_diverged_model_is_named_by_its_first_user() -> None:
    def score(users: Tensor) -> Tensor:
        return torch.zeros(users.numel(), 6).masked_fill((users >= 2)[:, None], math.nan)

    with pytest.raises(DataError, match="scores of user row 3: NaN"):
        rank(score, TRAIN, np.array([1, 0, 3, 2]), k=2)


def test_scores_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"scores \(2, 5\) for 2 users and 6 items"):
        rank(lambda users: torch.zeros(2, 5), TRAIN, np.arange(2), k=2)
    with pytest.raises(ShapeError, match=r"user rows must be in \[0, 4\)"):
        rank(lambda users: torch.zeros(2, 6), TRAIN, np.array([0, 4]), k=2)
