"""Propagation on the two sides against that on the square graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.mmbench.ops.test_co_users import random_train

from mmbench.errors import ShapeError
from mmbench.ops.graph import bipartite, propagate, symmetric_normalised
from mmbench.ops.sides import normalised_sides, propagate_sides


@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("some", [False, True])
def test_it_is_the_sum_of_lightgcns_layers(n_layers: int, some: bool) -> None:
    double = torch.float64
    for seed in range(20):
        train, draw = random_train(seed), torch.Generator().manual_seed(seed)
        n_users, n_items = train.n_users, train.n_items
        nodes = torch.randn(n_users + n_items, 3, generator=draw, dtype=double).requires_grad_()
        rows = torch.randint(n_items, (5,), generator=draw) if some else torch.arange(n_items)
        square = symmetric_normalised(bipartite(train), dtype=double)
        expected = propagate(square, nodes, n_layers) * (n_layers + 1)
        expected = torch.cat([expected[:n_users], expected[n_users + rows]])
        users, items = propagate_sides(
            normalised_sides(train, double), nodes[:n_users], nodes[n_users:], n_layers,
            rows=rows if some else None,
        )  # fmt: skip
        found = torch.cat([users, items])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        # Rows that are asked for twice get both gradients.
        probe = torch.randn(found.shape, generator=draw, dtype=double)
        gradients = [
            torch.autograd.grad((each * probe).sum(), nodes)[0] for each in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_users_and_items_without_pairs_keep_their_vectors() -> None:
    train = random_train(3)
    train = type(train)(train.users[:0], train.items[:0], 4, 5)
    users, items = torch.rand(4, 2), torch.rand(5, 2)
    for found, given in zip(
        propagate_sides(normalised_sides(train), users, items, 2), (users, items), strict=True
    ):
        assert torch.equal(found, given)
    assert not np.isnan(normalised_sides(train).values.numpy()).any()
    with pytest.raises(ShapeError, match="at least 0"):
        propagate_sides(normalised_sides(train), users, items, -1)
