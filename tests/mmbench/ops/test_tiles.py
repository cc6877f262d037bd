"""Lists made tile by tile against those of whole rows of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.errors import NotFiniteError
from mmbench.evaluation import ranking
from mmbench.evaluation.ranking import rank_each
from mmbench.ops import tiles
from mmbench.ops.tiles import InnerProducts

N_USERS, N_ITEMS, WIDTH = 37, 103, 16


def problem(seed: int) -> tuple[InnerProducts, TrainSet, HeldOut]:
    rng = np.random.default_rng(seed)
    # Whole numbers: sums are exact in any order, and many scores tie.
    users = torch.from_numpy(rng.integers(-2, 3, (N_USERS, 5)).astype(np.float32))
    columns = torch.from_numpy(rng.integers(-2, 3, (5, N_ITEMS)).astype(np.float32))
    dense = rng.random((N_USERS, N_ITEMS)) < rng.choice([0.05, 0.5, 0.97])
    held = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.1)
    train = TrainSet.from_pairs(*np.nonzero(dense), N_USERS, N_ITEMS)
    return InnerProducts(users, columns), train, HeldOut.from_pairs(*held, np.ones(held[0].size))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_WIDTH", WIDTH)
    monkeypatch.setattr(ranking, "AT_ONCE", 10)


def test_lists_are_those_of_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(30):
        scores, train, held_out = problem(seed)
        users = np.random.default_rng(seed).permutation(N_USERS)[:30]
        # Either mask first: neither may show in the other's lists.
        masks, k = ((None, held_out), (held_out, None))[seed % 2], (1, 7, 20)[seed % 3]
        monkeypatch.setattr(ranking, "FEW", 0)
        plain = rank_each(scores, train, users, k=k, masks=masks)
        monkeypatch.setattr(ranking, "FEW", 1 << 60)
        with monkeypatch.context() as patch:
            patch.setattr(InnerProducts, "__call__", None)  # no whole row is made
            tiled = rank_each(scores, train, users, k=k, masks=masks)
        for ours, theirs in zip(tiled, plain, strict=True):
            np.testing.assert_array_equal(ours.items, theirs.items)


def test_infinite_scores_are_ranked_and_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", 1 << 60)
    train = TrainSet.from_pairs(np.array([0]), np.array([50]), 2, N_ITEMS)
    columns = torch.zeros(2, N_ITEMS)
    columns[0, [3, 50, 90]], columns[0, 7] = math.inf, -math.inf
    columns[1] = torch.arange(N_ITEMS) / 100
    scores = InnerProducts(torch.ones(2, 2), columns)
    (lists,) = rank_each(scores, train, np.array([0, 1]), k=4, masks=(None,))
    assert lists.items.tolist() == [[3, 90, 102, 101], [3, 50, 90, 102]]
    columns[1, 60] = math.nan
    with pytest.raises(NotFiniteError, match="user row 0: NaN"):
        rank_each(scores, train, np.array([0, 1]), k=4, masks=(None,))


def test_other_precisions_are_ranked_by_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", 1 << 60)
    scores, train, _ = problem(1)
    double = InnerProducts(scores.users.double(), scores.columns.double())
    assert scores.tiled and not double.tiled
    both = (
        rank_each(x, train, np.arange(N_USERS), k=9, masks=(None,))[0] for x in (scores, double)
    )
    np.testing.assert_array_equal(*(lists.items for lists in both))
