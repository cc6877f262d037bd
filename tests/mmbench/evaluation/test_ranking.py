"""The evaluator's edges, and the ranking against a brute-force one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.elsewhere import elsewhere
from tests.mmbench.synchronising import Synchronising
from torch import Tensor

from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.evaluation.ranking import BLOCK_BYTES, rank, rank_each
from mmbench.evaluation.scoring import RankedLists, Scores, evaluate
from mmbench.metrics import resolve
from mmbench.ops import memory


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


def problem(
    seed: int, n_users: int, n_items: int
) -> tuple[Tensor, TrainSet, tuple[None, HeldOut, HeldOut]]:
    """Scores with ties and items that are no candidates, training pairs, and further masks."""
    rng = np.random.default_rng(seed)
    train = TrainSet.from_pairs(
        rng.integers(0, n_users, 9 * n_users),
        rng.integers(0, n_items, 9 * n_users),
        n_users,
        n_items,
    )
    further = [
        HeldOut.from_pairs(
            rng.integers(0, n_users + 3, n), rng.integers(0, n_items + 5, n), np.ones(n)
        )
        for n in (4 * n_users, 1)
    ]
    scores = torch.from_numpy(rng.integers(0, 40, (n_users, n_items)).astype(np.float32))
    scores[torch.from_numpy(rng.random(scores.shape) < 0.1)] = -math.inf
    return scores, train, (None, further[0], further[1])


@pytest.mark.parametrize("rows_per_block", [1, 7, 50])
def test_another_device_gives_the_same_lists_and_is_waited_for_once(rows_per_block: int) -> None:
    scores, train, masks = problem(1, 40, 310)
    users = np.random.default_rng(0).permutation(40)[:33]
    arguments: dict[str, Any] = {"k": 9, "masks": masks, "block_bytes": 4 * 310 * rows_per_block}
    here = rank_each(lambda block: scores[block], train, users, **arguments)
    with elsewhere() as device:
        there, in_blocks = scores.to(device), list[int]()

        def score(block: Tensor) -> Tensor:
            assert block.device == device
            in_blocks.append(len(calls.names))
            return there[block]

        with Synchronising() as calls:
            found = rank_each(score, train, users, **arguments, device=device)
        assert torch.equal(there.cpu(), scores)
    for ours, theirs in zip(found, here, strict=True):
        assert ours.items.tolist() == theirs.items.tolist()
        assert ours.users.tolist() == users.tolist()
    assert len(in_blocks) == -(-33 // rows_per_block)
    # Users and masked pairs go there before the first block; nothing comes or goes until the last.
    assert set(in_blocks) == {1 + 2 * len(masks)}
    assert calls.names[in_blocks[-1] :] == ["_to_copy between devices"] * 2  # NaN or not; the lists


@pytest.mark.parametrize("elsewhere_too", [False, True])
@pytest.mark.parametrize("rows_per_block", [1, 3, 100])
def test_the_same_user_is_named_whatever_the_blocks(
    rows_per_block: int, elsewhere_too: bool
) -> None:
    scores, train, masks = problem(2, 20, 90)
    users = np.random.default_rng(1).permutation(20)
    scores[users[12:18], 5] = math.nan
    scores[users[9], train.items[train.indptr[users[9]]]] = math.nan  # masked: nobody's candidate
    arguments: dict[str, Any] = {"k": 4, "masks": masks, "block_bytes": 4 * 90 * rows_per_block}
    first = next(user for user in users[12:18] if not train.contains(user, np.int64(5)))
    message = f"scores of user row {first}: NaN .*lower the learning rate"
    with pytest.raises(DataError, match=message):
        rank_each(lambda block: scores[block], train, users, **arguments)
    with elsewhere() as device, pytest.raises(DataError, match=message):
        there = scores.to(device)
        rank_each(lambda block: there[block], train, users, **arguments, device=device)


def test_a_diverged_model_is_not_ranked_to_the_end_on_the_cpu() -> None:
    blocks: list[int] = []

    def score(users: Tensor) -> Tensor:
        blocks.append(users.numel())
        return torch.full((users.numel(), 6), math.nan)

    with pytest.raises(DataError, match="user row 0"):
        rank(score, TRAIN, np.arange(4), k=2, block_bytes=4 * 6)
    assert blocks == [1]


def test_nobody_to_rank_for() -> None:
    for device in ("cpu", None):
        with elsewhere() as there:
            lists = rank(lambda users: users, TRAIN, np.arange(0), k=3, device=device or there)
        assert lists.items.shape == (0, 3)


def test_blocks_are_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, free, mib = torch.device("cuda"), [140_000, 141_000], 1 << 20
    reserved, allocated, share = [0], [0], [1.0]
    for name, value in (
        ("mem_get_info", lambda device: (free[0] * mib, free[1] * mib)),
        ("memory_reserved", lambda device: reserved[0] * mib),
        ("memory_allocated", lambda device: allocated[0] * mib),
        ("get_per_process_memory_fraction", lambda index: share[0]),
    ):
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    assert memory.block_bytes(torch.device("cpu"), BLOCK_BYTES) == BLOCK_BYTES == 64 * mib
    assert memory.block_bytes(gpu, BLOCK_BYTES) == memory.LARGEST == 256 * mib
    free[0] = 1_600
    assert memory.block_bytes(gpu, BLOCK_BYTES) == 100 * mib
    reserved[0], allocated[0] = 2_000, 400  # torch holds 1,600 MiB for reuse
    assert memory.block_bytes(gpu, BLOCK_BYTES) == 200 * mib
    share[0] = 0.02  # of a card that others use too: 2,820 MiB, of which 400 are taken
    assert memory.free_bytes(gpu) == 2_420 * mib
    free[0], reserved[0] = 0, 400
    assert memory.block_bytes(gpu, BLOCK_BYTES) == 1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_gpu_ranks_alike_and_is_waited_for_once() -> None:
    scores, train, masks = problem(3, 600, 5_000)
    users = np.random.default_rng(0).permutation(600)
    here = rank_each(lambda block: scores[block], train, users, k=20, masks=masks)
    there, original = scores.cuda(), Tensor.cpu

    def cpu(self: Tensor, *arguments: Any, **more: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("default")  # the end: results are fetched
        return original(self, *arguments, **more)

    for rows_per_block in (64, None):
        calls = 0

        def score(block: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            torch.cuda.set_sync_debug_mode("error")  # from the first block on
            return there[block]

        size = None if rows_per_block is None else rows_per_block * 4 * 5_000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "cpu", cpu)
            try:
                found = rank_each(
                    score, train, users, k=20, masks=masks, block_bytes=size, device="cuda"
                )
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert calls == (1 if rows_per_block is None else 10)
        for ours, theirs in zip(found, here, strict=True):
            assert (ours.items == theirs.items).all()
    candidates = np.flatnonzero(~train.contains(users[100], np.arange(5_000)))
    scores[users[100], candidates[0]] = math.nan
    there = scores.cuda()
    with pytest.raises(DataError, match=f"user row {users[100]}: NaN"):
        rank_each(lambda block: there[block], train, users, k=20, masks=masks, device="cuda")


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
