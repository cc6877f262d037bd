"""Graph builders against dense formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmbench.core.interactions import TrainSet
from mmbench.errors import ShapeError
from mmbench.ops import graph


def random_train(seed: int) -> TrainSet:
    rng = np.random.default_rng(seed)
    n_users, n_items = (int(n) for n in rng.integers(2, 20, 2))
    n = int(rng.integers(1, 50))
    return TrainSet.from_pairs(
        rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users, n_items
    )


def dense_adjacency(train: TrainSet) -> torch.Tensor:
    n = train.n_users + train.n_items
    dense = torch.zeros(n, n, dtype=torch.float64)
    for u, i in zip(train.users.tolist(), train.items.tolist(), strict=True):
        dense[u, train.n_users + i] = dense[train.n_users + i, u] = 1
    return dense


@pytest.mark.parametrize("seed", range(50))
def test_normalisations(seed: int) -> None:
    train = random_train(seed)
    adjacency, dense = graph.bipartite(train), dense_adjacency(train)
    double = torch.float64
    degree = dense.sum(1)
    loops = dense + torch.eye(len(dense), dtype=double)

    symmetric = graph.symmetric_normalised(adjacency, epsilon=graph.DEGREE_EPSILON, dtype=double)
    scale = (degree + 1e-7) ** -0.5
    torch.testing.assert_close(
        symmetric.to_dense(), scale[:, None] * dense * scale, rtol=1e-12, atol=0
    )

    mean = graph.row_normalised(adjacency, dtype=double)
    torch.testing.assert_close(
        mean.to_dense(), dense / degree.clamp(min=1)[:, None], rtol=1e-12, atol=0
    )
    assert torch.equal(mean.T.to_dense(), mean.to_dense().T)

    with_loops = graph.with_self_loops(adjacency)
    lattice = graph.symmetric_normalised(with_loops, power=1.0, dtype=double)
    torch.testing.assert_close(
        lattice.to_dense(), loops / (degree + 1)[:, None] / (degree + 1), rtol=1e-12, atol=0
    )
    authors = graph.row_normalised(with_loops, dtype=double)
    torch.testing.assert_close(
        authors.to_dense(), loops / (degree + 1)[:, None], rtol=1e-12, atol=0
    )


def test_symmetric_operators_are_symmetric() -> None:
    matrix = graph.symmetric_normalised(graph.bipartite(random_train(3)))
    assert matrix.T is matrix
    assert torch.equal(matrix.to_dense(), matrix.to_dense().T)


def test_entries_of_the_bipartite_graph_are_the_pairs_in_both_orders() -> None:
    train = random_train(7)
    pattern, order = graph.bipartite(train), graph.item_order(torch.from_numpy(train.items))
    n = train.n_edges
    assert pattern.row[:n].tolist() == train.users.tolist()
    assert (pattern.indices[:n] - train.n_users).tolist() == train.items.tolist()
    assert (pattern.row[n:] - train.n_users).tolist() == train.items[order].tolist()
    assert pattern.indices[n:].tolist() == train.users[order].tolist()


@pytest.mark.parametrize("unit_diagonal", [False, True])
def test_union_of_neighbours_and_laplacian(unit_diagonal: bool) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        n = 12
        lists = [torch.stack([torch.randperm(n)[:k] for _ in range(n)]) for k in (1, 4, 5)]
        weights = [
            torch.rand(part.shape, dtype=torch.float64, requires_grad=True) for part in lists
        ]
        union = graph.NeighbourUnion.of(*lists)
        values = union.combine([weights[0], None, weights[2]], unit_diagonal=unit_diagonal)
        normalised = graph.laplacian(union.pattern, values)

        dense = torch.zeros(n, n, dtype=torch.float64)
        for m in (0, 2):
            row = torch.arange(n)[:, None].expand_as(lists[m])
            dense = dense.index_put((row, lists[m]), weights[m], accumulate=True)
        if unit_diagonal:
            dense = dense.masked_fill(torch.eye(n, dtype=torch.bool), 1.0)
        sums = dense.sum(1)
        expected = dense / (sums[:, None] * sums).sqrt()
        at = union.pattern.row, union.pattern.indices
        torch.testing.assert_close(normalised, expected[at], rtol=1e-12, atol=1e-14)

        probe = torch.rand(n, n, dtype=torch.float64)
        got = torch.autograd.grad((normalised * probe[at]).sum(), (weights[0], weights[2]))
        want = torch.autograd.grad((expected * probe).sum(), (weights[0], weights[2]))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def test_rows_without_positive_sum_are_cut_off() -> None:
    union = graph.NeighbourUnion.of(torch.tensor([[1], [2], [0]]))
    values = union.combine([torch.tensor([[-1.0], [0.0], [2.0]], requires_grad=True)])
    normalised = graph.laplacian(union.pattern, values)
    assert normalised.isfinite().all()
    assert not normalised.any()  # row 0 sums to -1, row 1 to 0, and row 2 points to row 0
    (gradient,) = torch.autograd.grad(normalised.sum(), values)
    assert gradient.isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="equal rows"):
        graph.NeighbourUnion.of(
            torch.zeros(3, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
        )
    union = graph.NeighbourUnion.of(torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="own shape"):
        union.combine([torch.zeros(3, 2)])
    with pytest.raises(ShapeError, match="own shape"):
        union.combine([None])
