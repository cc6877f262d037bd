"""The samplers: what they draw, how often, and from (seed, epoch, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import (
    DistinctUsers,
    Edges,
    EdgesOnly,
    Pairs,
    Triples,
    TripleSampler,
    UniformUsers,
)
from mmbench.errors import DataError


@pytest.fixture
def train() -> TrainSet:
    rng = np.random.default_rng(0)
    degree = np.array([1, 2, 3, 5, 8, 13, 4, 4, 19])
    users = np.repeat(np.arange(9), degree)
    items = np.concatenate([rng.choice(20, size, replace=False) for size in degree])
    return TrainSet.from_pairs(users, items, 9, 20)


Kind = type[TripleSampler]
WITH_NEGATIVES: tuple[Kind, ...] = (UniformUsers, DistinctUsers, Edges)
SAMPLERS: tuple[Kind, ...] = (*WITH_NEGATIVES, EdgesOnly)


def epoch(
    kind: Kind, train: TrainSet, number: int = 1, batch_size: int = 16, seed: int = 5
) -> list[Pairs]:
    return list(kind(train, batch_size, seed).epoch(number))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_positives_were_seen_and_negatives_were_not(kind: Kind, train: TrainSet) -> None:
    for batch in epoch(kind, train):
        assert train.contains(batch.users.numpy(), batch.pos.numpy()).all()
        assert isinstance(batch, Triples) == (kind is not EdgesOnly)
        if isinstance(batch, Triples):
            assert not train.contains(batch.users.numpy(), batch.neg.numpy()).any()
            assert batch.neg.min() >= 0
            assert batch.neg.max() < train.n_items


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_batch_depends_on_seed_epoch_and_step_alone(kind: Kind, train: TrainSet) -> None:
    sampler = kind(train, 16, 5)
    list(sampler.epoch(1))
    second = list(sampler.epoch(2))
    fresh = epoch(kind, train, 2)
    assert len(second) == len(fresh) == len(sampler)
    for ours, theirs in zip(second, fresh, strict=True):
        assert torch.equal(ours.users, theirs.users)
        assert torch.equal(ours.pos, theirs.pos)
    assert not torch.equal(second[0].pos, epoch(kind, train, 3)[0].pos)
    assert not torch.equal(second[0].pos, epoch(kind, train, 2, seed=6)[0].pos)


@pytest.mark.parametrize("kind", [Edges, EdgesOnly])
def test_every_edge_once_per_epoch(kind: Kind, train: TrainSet) -> None:
    pairs = sorted(
        (u, i)
        for batch in epoch(kind, train)
        for u, i in zip(batch.users.tolist(), batch.pos.tolist(), strict=True)
    )
    assert pairs == list(zip(train.users.tolist(), train.items.tolist(), strict=True))


def test_users_are_uniform_for_vbpr_and_proportional_to_degree_for_edges(train: TrainSet) -> None:
    drawn = np.concatenate(
        [
            batch.users.numpy()
            for number in range(1, 200)
            for batch in epoch(UniformUsers, train, number)
        ]
    )
    assert stats.chisquare(np.bincount(drawn, minlength=9)).pvalue > 1e-3
    items = np.concatenate(
        [
            b.pos.numpy()[b.users.numpy() == 5]
            for n in range(1, 200)
            for b in epoch(UniformUsers, train, n)
        ]
    )
    own = train.items[train.users == 5]
    assert stats.chisquare(np.bincount(items, minlength=20)[own]).pvalue > 1e-3


@pytest.mark.parametrize("kind", WITH_NEGATIVES)
def test_negatives_are_uniform_over_all_unseen_items(kind: Kind, train: TrainSet) -> None:
    """The first and the last item of the catalogue are candidates like all others."""
    counts = np.zeros((train.n_users, train.n_items), np.int64)
    for number in range(1, 200):
        for batch in epoch(kind, train, number):
            assert isinstance(batch, Triples)
            np.add.at(counts, (batch.users.numpy(), batch.neg.numpy()), 1)
    unseen = ~train.contains(np.arange(train.n_users)[:, None], np.arange(train.n_items))
    assert unseen[:, 0].any()
    assert unseen[:, -1].any()
    assert (counts > 0).tolist() == unseen.tolist()
    for drawn, candidates in zip(counts, unseen, strict=True):
        if candidates.sum() > 1:
            assert stats.chisquare(drawn[candidates]).pvalue > 1e-4


@pytest.mark.parametrize("kind", WITH_NEGATIVES)
def test_first_draws_of_a_negative_reach_every_item(kind: Kind) -> None:
    """Where no user has either end of the catalogue, no draw there is ever rejected."""
    train = TrainSet.from_pairs(np.arange(60) % 20, 1 + np.arange(60) % 3, 20, 5)
    drawn = torch.cat([b.neg for n in range(1, 60) for b in epoch(kind, train, n)])  # type: ignore[attr-defined]
    ends = torch.bincount(drawn, minlength=5)[[0, 4]].numpy()
    assert stats.chisquare(ends).pvalue > 1e-4


def test_lattice_batches_have_distinct_users(train: TrainSet) -> None:
    batches = epoch(DistinctUsers, train, batch_size=4)
    assert sum(len(batch.users) for batch in batches) == train.n_edges
    for batch in batches:
        assert len(set(batch.users.tolist())) == len(batch.users)
    assert max(len(batch.users) for batch in epoch(DistinctUsers, train, batch_size=1000)) == 9


@pytest.mark.parametrize("kind", WITH_NEGATIVES)
def test_a_user_with_every_item_is_left_out(kind: Kind) -> None:
    train = TrainSet.from_pairs(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]), 2, 3)
    for batch in epoch(kind, train):
        assert set(batch.users.tolist()) == {1}
    full = TrainSet.from_pairs(np.array([0, 0]), np.array([0, 1]), 1, 2)
    with pytest.raises(DataError, match="no user has both a seen and an unseen item"):
        kind(full, 4, 0)


def test_last_batch_may_have_one_row() -> None:
    train = TrainSet.from_pairs(np.arange(5), np.arange(5), 5, 6)
    assert [len(batch.users) for batch in epoch(Edges, train, batch_size=4)] == [4, 1]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_batches_know_the_ends_of_their_epoch(kind: Kind, train: TrainSet) -> None:
    """LATTICE builds its graph in the first batch; stale ranking keeps what the last one saw."""
    for number in (1, 2):
        ends = [(batch.first, batch.last) for batch in epoch(kind, train, number)]
        assert ends == [(True, False), *[(False, False)] * (len(ends) - 2), (False, True)]
    if kind is not DistinctUsers:  # whose batches hold no more than the users
        (alone,) = epoch(kind, train, batch_size=100)
        assert alone.first and alone.last
