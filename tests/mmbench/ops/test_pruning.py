"""Edge pruning: how many edges, which edges, and the operator on those that are left."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import epoch_stream
from mmbench.errors import ShapeError
from mmbench.ops.graph import DEGREE_EPSILON, EdgePruning, bipartite, symmetric_normalised


def kept_edges(train: TrainSet, rate: float, *, seed: int, epoch: int) -> np.ndarray:
    return EdgePruning(train, rate).draw(epoch_stream(seed, "pruning", epoch)).numpy()


def random_train(seed: int, n_users: int = 20, n_items: int = 15, n: int = 90) -> TrainSet:
    rng = np.random.default_rng(seed)
    return TrainSet.from_pairs(
        rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users, n_items
    )


def test_number_of_kept_edges_is_the_authors() -> None:
    edges = np.arange(197_338)
    clothing = TrainSet(edges, edges * 0, edges.size, 1)
    assert kept_edges(clothing, 0.8, seed=0, epoch=1).size == 39_467
    ten = TrainSet(np.arange(10), np.zeros(10, np.int64), 10, 1)
    for rate, n_kept in ((0.8, 1), (0.9, 0), (0.5, 5)):  # 10 * 0.19999999999999996
        assert kept_edges(ten, rate, seed=0, epoch=1).size == n_kept


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 0.99])
def test_adjacency_equals_the_dense_one(rate: float) -> None:
    for seed in range(50):
        train = random_train(seed)
        kept = kept_edges(train, rate, seed=seed, epoch=3)
        assert kept.size == int(train.n_edges * (1 - rate)) == np.unique(kept).size
        n = train.n_users + train.n_items
        dense = torch.zeros(n, n, dtype=torch.float64)
        u, i = (
            torch.from_numpy(train.users[kept]),
            torch.from_numpy(train.items[kept]) + train.n_users,
        )
        dense[u, i] = dense[i, u] = 1
        scale = (dense.sum(1) + 1e-7) ** -0.5
        left = TrainSet(train.users[kept], train.items[kept], train.n_users, train.n_items)
        matrix = symmetric_normalised(bipartite(left), epsilon=DEGREE_EPSILON, dtype=torch.float64)
        torch.testing.assert_close(
            matrix.to_dense(), scale[:, None] * dense * scale, rtol=1e-12, atol=0
        )
        assert matrix.T is matrix


def test_edges_follow_from_seed_and_epoch_alone() -> None:
    train = random_train(1)
    fifth, sixth = (kept_edges(train, 0.5, seed=9, epoch=epoch) for epoch in (5, 6))
    assert np.array_equal(fifth, kept_edges(train, 0.5, seed=9, epoch=5))
    assert not np.array_equal(fifth, sixth)
    assert not np.array_equal(fifth, kept_edges(train, 0.5, seed=10, epoch=5))


def test_nothing_is_dropped_at_rate_zero() -> None:
    train = random_train(2)
    assert kept_edges(train, 0.0, seed=1, epoch=1).tolist() == list(range(train.n_edges))


def test_inclusion_frequencies_are_those_of_successive_draws() -> None:
    """All ways to draw 3 of 6 edges one after the other, summed exactly, against 4,000 epochs."""
    train = TrainSet.from_pairs(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 0, 0, 1]), 3, 3)
    weights = np.array([1 / 3, 6**-0.5, 3**-0.5, 3**-0.5, 6**-0.5, 0.5])  # (d_u d_i)^-1/2
    expected = np.zeros(6)
    for drawn in itertools.permutations(range(6), 3):
        left, chance = weights.sum(), 1.0
        for edge in drawn:
            chance *= weights[edge] / left
            left -= weights[edge]
        expected[list(drawn)] += chance
    epochs = 4000
    counts = np.zeros(6)
    for epoch in range(epochs):
        counts[kept_edges(train, 0.5, seed=123, epoch=epoch)] += 1
    deviation = (counts - epochs * expected) / np.sqrt(epochs * expected * (1 - expected))
    assert np.abs(deviation).max() < 4, deviation


def test_rate_outside_its_range_is_refused() -> None:
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ShapeError, match="rate"):
            kept_edges(random_train(0), rate, seed=0, epoch=1)


@pytest.mark.real_data
def test_clothing(real_data: Path) -> None:
    table = np.loadtxt(real_data / "amazon-clothing" / "train.tsv", usecols=(0, 1), dtype=np.int64)
    rows = [np.unique(column, return_inverse=True)[1] for column in table.T]
    train = TrainSet.from_pairs(*rows, *(int(row.max()) + 1 for row in rows))
    kept = kept_edges(train, 0.8, seed=123, epoch=1)
    assert kept.size == 39_467
