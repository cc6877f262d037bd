"""Fused routing against plain torch and against a loop over nodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmbench.core.interactions import TrainSet
from mmbench.errors import ShapeError
from mmbench.ops.routing import (
    EdgeOrder,
    RoutingGraph,
    confident_weights,
    plain_routing,
    routing,
)
from mmbench.ops.sparse import weighted_product

ORDERS: tuple[EdgeOrder, ...] = ("elliot", "aligned")


def random_train(seed: int) -> TrainSet:
    rng = np.random.default_rng(seed)
    n_users, n_items = (int(n) for n in rng.integers(2, 25, 2))
    n = int(rng.integers(1, 80))
    return TrainSet.from_pairs(
        rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users, n_items
    )


def unit_rows(seed: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return functional.normalize(rows, dim=1).to(dtype).requires_grad_()


def by_hand(
    p: Tensor, f: Tensor, train: TrainSet, n_routings: int, order: EdgeOrder
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of GRCN, one node after the other."""
    pairs = list(zip(train.users.tolist(), train.items.tolist(), strict=True))
    items_of = [[i for v, i in pairs if v == u] for u in range(train.n_users)]
    q = [p[u] for u in range(train.n_users)]
    for u, near in enumerate(items_of):
        for _ in range(n_routings):
            if near:
                q[u] = q[u] + torch.softmax(f[near] @ q[u], 0) @ f[near]
            q[u] = q[u] / q[u].norm()
    scores = torch.stack([q[u] @ f[i] for u, i in pairs])
    alpha = [
        torch.softmax(scores[[e for e, (v, _) in enumerate(pairs) if v == u]], 0)
        for u in range(train.n_users)
    ]
    r_users = torch.stack(
        [q[u] + (alpha[u] @ f[near] if near else 0) for u, near in enumerate(items_of)]
    )
    slots = sorted(range(len(pairs)), key=lambda e: (pairs[e][1], pairs[e][0]))
    source = slots if order == "aligned" else range(len(pairs))
    item_alpha = [torch.zeros(())] * len(pairs)
    r_items = []
    for i in range(train.n_items):
        mine = [k for k, e in enumerate(slots) if pairs[e][1] == i]
        row = f[i]
        if mine:
            weights = torch.softmax(torch.stack([scores[source[k]] for k in mine]), 0)
            for k, weight in zip(mine, weights, strict=True):
                item_alpha[k] = weight
                row = row + weight * q[pairs[slots[k]][0]]
        r_items.append(row)
    return r_users, torch.stack(r_items), torch.cat([*alpha, torch.stack(item_alpha)])


@pytest.mark.parametrize("order", ORDERS)
def test_values_are_the_papers(order: EdgeOrder) -> None:
    for seed in range(50):
        train = random_train(seed)
        p, f = (unit_rows(seed, n, 5, torch.float64) for n in (train.n_users, train.n_items))
        graph = RoutingGraph.of(train, edge_order=order)
        expected = by_hand(p, f, train, seed % 4, order)
        for function in (routing, plain_routing):
            for got, want in zip(function(p, f, graph, seed % 4), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_edge_orders_differ_on_two_users_and_two_items() -> None:
    """All pairs but (1, 1), without routing: scores by user (0, 0) = 1, (0, 1) = 1, (1, 0) = 0."""
    train = TrainSet.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 2)
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    f = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    aligned = routing(p, f, RoutingGraph.of(train, edge_order="aligned"), 0)[2]
    elliot = routing(p, f, RoutingGraph.of(train, edge_order="elliot"), 0)[2]
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    torch.testing.assert_close(aligned, torch.tensor([0.5, 0.5, 1, high, low, 1]))
    # Item 0's slots, of users 0 and 1, get the scores of the first two edges by user, both of user
    # 0.
    torch.testing.assert_close(elliot, torch.tensor([0.5, 0.5, 1, 0.5, 0.5, 1]))


def test_weights_belong_to_the_entries_of_the_adjacency() -> None:
    train = random_train(5)
    graph = RoutingGraph.of(train, edge_order="aligned")
    p, f = (unit_rows(5, n, 4, torch.float64) for n in (train.n_users, train.n_items))
    r_users, r_items, alpha = routing(p, f, graph, 0)
    both = torch.cat([p, f])
    torch.testing.assert_close(
        both + weighted_product(graph.adjacency, alpha, both), torch.cat([r_users, r_items])
    )
    assert torch.equal(graph.confident, graph.adjacency.row)
    n = train.n_edges
    elliot = RoutingGraph.of(train, edge_order="elliot").confident
    assert (elliot[n:] - train.n_users).tolist() == train.items.tolist()


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    train = TrainSet.from_pairs(rng.integers(0, 900, 9000), rng.integers(0, 400, 9000), 900, 400)
    graph = RoutingGraph.of(train, edge_order="aligned")
    p, f = (unit_rows(2, n, 64, torch.float32) for n in (900, 400))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parts = routing(p, f, graph, 3)
            gradients = torch.autograd.grad(sum(part.square().sum() for part in parts), (p, f))
            results.append([*parts, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_shapes_that_do_not_fit_are_refused() -> None:
    train = random_train(5)
    graph = RoutingGraph.of(train, edge_order="aligned")
    p, f = (unit_rows(5, n, 4, torch.float64) for n in (train.n_users, train.n_items))
    for wrong in ((p[1:], f, 1), (p, f[:, 1:], 1), (p, f.float(), 1), (p, f, -1)):
        with pytest.raises(ShapeError, match="routing"):
            routing(*wrong[:2], graph, wrong[2])
    with pytest.raises(ShapeError, match="do not fit"):
        confident_weights(
            torch.ones(2, 5), torch.ones(9, 2), torch.zeros(6, dtype=torch.int64), pruning=True
        )
