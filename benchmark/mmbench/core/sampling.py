"""Training batches: the four samplers of the six models, vectorised and counter-based.

| name            | positives                                                          | negatives |
|-----------------|--------------------------------------------------------------------|-----------|
| `uniform-users` | one draw per edge: a user uniformly, then one of its items         | one each  |
| `distinct-users`| per batch distinct users, one item of each                         | one each  |
| `edges`         | a fresh permutation of the edges per epoch, cut into batches       | one each  |
| `edges-only`    | as `edges`                                                         | none      |

A negative is uniform over the items that the user has not seen in training; validation and test
positives may be drawn. The batches of an epoch follow from (seed, epoch) alone. Users who have
every item have no negative and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import Index, TrainSet
from mmbench.core.rng import numpy_rng, torch_rng
from mmbench.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """One optimiser step's triples.

    Attributes:
        users: User rows, shape (B,), int64.
        pos: Items seen by those users, shape (B,).
        neg: Items not seen by them, shape (B,); None for samplers without negatives.
        seed: The run's seed.
        epoch: 1-based epoch.
        step: 0-based step within the epoch.
    """

    users: Tensor
    pos: Tensor
    neg: Tensor | None
    seed: int
    epoch: int
    step: int

    def generator(self, purpose: str) -> torch.Generator:
        """A random stream of this step alone (dropout masks, say); of the CPU, so that every device sees the same."""
        return torch_rng(self.seed, purpose, self.epoch, self.step)


class Sampler:
    """Draws the batches of one training set.

    Args:
        train: What to draw from.
        batch_size: Triples per batch, B >= 1; the last batch of an epoch is smaller.
        seed: The run's seed.
        device: Where the batches are put.

    Raises:
        DataError: No user has both a seen and an unseen item.
    """

    negatives = True

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.train, self.batch_size, self.seed, self.device = train, batch_size, seed, device
        usable = train.user_degree > 0
        if self.negatives:
            usable &= train.user_degree < train.n_items
        if not usable.any():
            raise DataError(
                "sampling: no user has both a seen and an unseen item; is the training set "
                "complete?"
            )
        self.users = np.flatnonzero(usable)

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.train.n_edges // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch (1-based), in order."""
        users, pos, neg = (
            None if rows is None else torch.from_numpy(rows) for rows in self._draw(epoch)
        )
        assert users is not None
        assert pos is not None
        for step, start in enumerate(range(0, len(users), self.batch_size)):
            part = slice(start, start + self.batch_size)
            yield Batch(
                users[part].to(self.device),
                pos[part].to(self.device),
                None if neg is None else neg[part].to(self.device),
                self.seed,
                epoch,
                step,
            )

    def _draw(self, epoch: int) -> tuple[Index, Index, Index | None]:
        raise AssertionError("abstract")

    def _items_of(self, rng: np.random.Generator, users: Index) -> Index:
        """One training item of each user, uniformly."""
        offset = (rng.random(users.size) * self.train.user_degree[users]).astype(np.int64)
        items: Index = self.train.items[self.train.indptr[users] + offset]
        return items

    def _negatives(self, rng: np.random.Generator, users: Index) -> Index:
        """One unseen item of each user, uniformly, by rejection."""
        items = rng.integers(0, self.train.n_items, users.size)
        seen = np.flatnonzero(self.train.contains(users, items))
        while seen.size:
            items[seen] = rng.integers(0, self.train.n_items, seen.size)
            seen = seen[self.train.contains(users[seen], items[seen])]
        return items


class UniformUsers(Sampler):
    """S1: every draw takes a user uniformly, with replacement, then one of its items. VBPR."""

    def _draw(self, epoch: int) -> tuple[Index, Index, Index | None]:
        rng = numpy_rng(self.seed, "sampling", epoch)
        users = self.users[rng.integers(0, self.users.size, self.train.n_edges)]
        return users, self._items_of(rng, users), self._negatives(rng, users)


class DistinctUsers(Sampler):
    """S2: the users of a batch are distinct; batches are independent of each other. LATTICE.

    A batch is never larger than the number of users.
    """

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        self.batch_size = min(batch_size, self.users.size)

    def _draw(self, epoch: int) -> tuple[Index, Index, Index | None]:
        rng = numpy_rng(self.seed, "sampling", epoch)
        sizes = np.diff(
            np.append(np.arange(0, self.train.n_edges, self.batch_size), self.train.n_edges)
        )
        users = np.concatenate(
            [self.users[rng.choice(self.users.size, size, replace=False)] for size in sizes]
        )
        return users, self._items_of(rng, users), self._negatives(rng, users)


class Edges(Sampler):
    """S3: every training edge once per epoch, in a fresh order, with one negative. MMGCN, GRCN, FREEDOM, BPR-MF."""

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        self.edges = (
            np.flatnonzero(np.isin(train.users, self.users))
            if self.negatives
            else np.arange(train.n_edges)
        )

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.edges.size // self.batch_size)

    def _draw(self, epoch: int) -> tuple[Index, Index, Index | None]:
        rng = numpy_rng(self.seed, "sampling", epoch)
        order = rng.permutation(self.edges)
        users, pos = self.train.users[order], self.train.items[order]
        return users, pos, self._negatives(rng, users) if self.negatives else None


class EdgesOnly(Edges):
    """S4: every training edge once per epoch, in a fresh order, without negatives. BM3."""

    negatives = False


SAMPLERS: dict[str, Callable[[TrainSet, int, int, torch.device | str], Sampler]] = {
    "uniform-users": UniformUsers,
    "distinct-users": DistinctUsers,
    "edges": Edges,
    "edges-only": EdgesOnly,
}
