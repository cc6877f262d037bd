"""The samplers: what they may draw, how often, and that a batch depends on (seed, epoch, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import SAMPLERS, Batch
from mmbench.errors import DataError


@pytest.fixture
def train() -> TrainSet:
    rng = np.random.default_rng(0)
    degree = np.array([1, 2, 3, 5, 8, 13, 4, 4, 19])
    users = np.repeat(np.arange(9), degree)
    items = np.concatenate([rng.choice(20, size, replace=False) for size in degree])
    return TrainSet.from_pairs(users, items, 9, 20)


def epoch(
    name: str, train: TrainSet, number: int = 1, batch_size: int = 16, seed: int = 5
) -> list[Batch]:
    return list(SAMPLERS[name](train, batch_size, seed, "cpu").epoch(number))


@pytest.mark.parametrize("name", SAMPLERS)
def test_positives_were_seen_and_negatives_were_not(name: str, train: TrainSet) -> None:
    for batch in epoch(name, train):
        assert train.contains(batch.users.numpy(), batch.pos.numpy()).all()
        assert (batch.neg is None) == (name == "edges-only")
        if batch.neg is not None:
            assert not train.contains(batch.users.numpy(), batch.neg.numpy()).any()
            assert batch.neg.min() >= 0
            assert batch.neg.max() < train.n_items


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_depends_on_seed_epoch_and_step_alone(name: str, train: TrainSet) -> None:
    sampler = SAMPLERS[name](train, 16, 5, "cpu")
    list(sampler.epoch(1))
    second = list(sampler.epoch(2))
    fresh = epoch(name, train, 2)
    assert len(second) == len(fresh) == len(sampler)
    for ours, theirs in zip(second, fresh, strict=True):
        assert torch.equal(ours.users, theirs.users)
        assert torch.equal(ours.pos, theirs.pos)
    assert not torch.equal(second[0].pos, epoch(name, train, 3)[0].pos)
    assert not torch.equal(second[0].pos, epoch(name, train, 2, seed=6)[0].pos)


@pytest.mark.parametrize("name", ["edges", "edges-only"])
def test_every_edge_once_per_epoch(name: str, train: TrainSet) -> None:
    pairs = sorted(
        (u, i)
        for batch in epoch(name, train)
        for u, i in zip(batch.users.tolist(), batch.pos.tolist(), strict=True)
    )
    assert pairs == list(zip(train.users.tolist(), train.items.tolist(), strict=True))


def test_users_are_uniform_for_vbpr_and_proportional_to_degree_for_edges(train: TrainSet) -> None:
    drawn = np.concatenate(
        [
            batch.users.numpy()
            for number in range(1, 200)
            for batch in epoch("uniform-users", train, number)
        ]
    )
    assert stats.chisquare(np.bincount(drawn, minlength=9)).pvalue > 1e-3
    items = np.concatenate(
        [
            b.pos.numpy()[b.users.numpy() == 5]
            for n in range(1, 200)
            for b in epoch("uniform-users", train, n)
        ]
    )
    own = train.items[train.users == 5]
    assert stats.chisquare(np.bincount(items, minlength=20)[own]).pvalue > 1e-3


def test_negatives_are_uniform_over_unseen_items(train: TrainSet) -> None:
    negatives = np.concatenate(
        [
            b.neg.numpy()[b.users.numpy() == 5]
            for n in range(1, 400)
            for b in epoch("edges", train, n)
            if b.neg is not None
        ]
    )
    unseen = np.setdiff1d(np.arange(20), train.items[train.users == 5])
    assert stats.chisquare(np.bincount(negatives, minlength=20)[unseen]).pvalue > 1e-3


def test_lattice_batches_have_distinct_users(train: TrainSet) -> None:
    batches = epoch("distinct-users", train, batch_size=4)
    assert sum(len(batch.users) for batch in batches) == train.n_edges
    for batch in batches:
        assert len(set(batch.users.tolist())) == len(batch.users)
    assert max(len(batch.users) for batch in epoch("distinct-users", train, batch_size=1000)) == 9


@pytest.mark.parametrize("name", ["uniform-users", "distinct-users", "edges"])
def test_a_user_with_every_item_is_left_out(name: str) -> None:
    train = TrainSet.from_pairs(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]), 2, 3)
    for batch in epoch(name, train):
        assert set(batch.users.tolist()) == {1}
    full = TrainSet.from_pairs(np.array([0, 0]), np.array([0, 1]), 1, 2)
    with pytest.raises(DataError, match="no user has both a seen and an unseen item"):
        SAMPLERS[name](full, 4, 0, "cpu")


def test_last_batch_may_have_one_row() -> None:
    train = TrainSet.from_pairs(np.arange(5), np.arange(5), 5, 6)
    assert [len(batch.users) for batch in epoch("edges", train, batch_size=4)] == [4, 1]
