"""Users with common items: against dense counts, and lists filled up as the authors' code does."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import epoch_stream
from mmbench.ops.co_users import co_users, most_in_common, repeated, repetitions


def random_train(seed: int) -> TrainSet:
    rng = np.random.default_rng(seed)
    n_users, n_items = (int(n) for n in rng.integers(2, 30, 2))
    n = int(rng.integers(1, 90))
    return TrainSet.from_pairs(
        rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users, n_items
    )


def dense_counts(train: TrainSet) -> np.ndarray:
    seen = np.zeros((train.n_users, train.n_items), np.int64)
    seen[train.users, train.items] = 1
    counts = seen @ seen.T
    np.fill_diagonal(counts, 0)
    return counts


@pytest.mark.parametrize("k", [1, 3, 40])
def test_lists_and_weights_against_dense_counts(k: int) -> None:
    for seed in range(50):
        train = random_train(seed)
        counts, n = dense_counts(train), train.n_users
        pattern, found = most_in_common(train, k)
        softmax, mean = (
            co_users(train, k, weighting, dtype=torch.float64).to_dense().numpy()
            for weighting in ("softmax", "mean")
        )
        assert pattern.shape == (n, n)
        for u in range(n):
            # By count descending, then by row ascending; nobody without a common item.
            best = [v for v in np.lexsort((np.arange(n), -counts[u]))[:k] if counts[u, v]]
            part = slice(int(pattern.indptr[u]), int(pattern.indptr[u + 1]))
            assert pattern.indices[part].tolist() == best
            assert found[part].tolist() == counts[u, best].tolist()
            shares = np.exp(counts[u, best]) / np.exp(counts[u, best]).sum()
            expected = np.zeros(n)
            expected[best] = shares
            np.testing.assert_allclose(softmax[u], expected, rtol=1e-12)
            expected[best] = 1 / max(1, len(best))
            np.testing.assert_allclose(mean[u], expected, rtol=1e-12)


def test_large_counts_do_not_overflow() -> None:
    """exp(900) is infinite."""
    users, items = np.divmod(np.arange(3 * 900), 900)
    graph = co_users(TrainSet.from_pairs(users, items, 4, 900), 2, "softmax").to_dense()
    assert graph[:3].sum(1).tolist() == [1, 1, 1]
    assert not graph[3].any()


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    train = TrainSet.from_pairs(rng.integers(0, 400, 9000), rng.integers(0, 90, 9000), 400, 90)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(most_in_common(train, 7))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0].indices, found[1][0].indices)
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("k", [1, 4, 40])
def test_a_list_that_is_filled_up_has_k_places(k: int) -> None:
    for seed in range(20):
        train = random_train(seed)
        plain = co_users(train, k, "softmax", dtype=torch.float64)
        times = repetitions(plain.pattern, k, epoch_stream(seed, "repetitions", 1))
        assert (times >= 1).all()
        for u, (first, last) in enumerate(pairwise(plain.pattern.indptr.tolist())):
            assert int(times[first:last].sum()) == (k if last > first else 0), u
        dense = torch.zeros_like(plain.to_dense())
        dense[plain.pattern.row, plain.pattern.indices] = times.double()
        weighed = dense * plain.to_dense()
        expected = weighed / weighed.sum(1, keepdim=True).clamp_min(1e-300)
        torch.testing.assert_close(repeated(plain, times).to_dense(), expected, rtol=1e-12, atol=0)


def test_lists_are_filled_up_by_the_law_of_the_authors_code() -> None:
    """Place by place, each a random entry of the list so far; three users, seven places."""
    rng = np.random.default_rng(3)
    theirs: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        filled = [0, 1, 2]
        while len(filled) < 7:
            filled.append(filled[rng.integers(len(filled))])
        theirs[tuple(filled.count(v) for v in range(3))] += 1
    # Four users share one item: each has a list of the three others.
    train = TrainSet.from_pairs(np.arange(4), np.zeros(4, np.int64), 5, 1)
    pattern, _ = most_in_common(train, 7)
    ours: Counter[tuple[int, ...]] = Counter()
    for epoch in range(1500):
        times = repetitions(pattern, 7, epoch_stream(1, "repetitions", epoch))
        ours.update(tuple(row) for row in times.view(4, 3).tolist())
    assert ours.keys() == theirs.keys()
    table = np.array([[counts[key] for key in sorted(ours)] for counts in (ours, theirs)])
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert stats.chisquare(table[0]).pvalue > 1e-3  # all of them equally likely
