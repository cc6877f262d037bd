"""Random streams by purpose, initial values, and training batches: the samplers of the models.

Everything random follows from (seed, purpose, counters) alone: a batch of (seed, epoch, step) is
the same in a fresh run and in a resumed one.

| sampler         | positives                                                          | negatives |
|-----------------|--------------------------------------------------------------------|-----------|
| `UniformUsers`  | one draw per edge: a user uniformly, then one of its items         | one each  |
| `DistinctUsers` | per batch distinct users, one item of each                         | one each  |
| `Edges`         | a fresh permutation of the edges per epoch, cut into batches       | one each  |
| `EdgesOnly`     | as `Edges`                                                         | none      |

A negative is uniform over the items that the user has not seen in training; validation and test
positives may be drawn. Users who have every item have no negative and are left out.

A model chooses its sampler (`Recommender.make_sampler`) and may bring its own, with batches of its
own kind: the trainer needs `len(sampler)` and `sampler.epoch(n)`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.core.interactions import Index, TrainSet
from mmbench.errors import DataError


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) for one purpose, e.g. `sampling`; counters are epoch, step and the like.

    It is BLAKE2b of the arguments, so that neighbouring seeds give unrelated streams.
    """
    # The separator tells ("init:a", 12) from ("init:a1", 2).
    text = "\0".join([str(seed), purpose, *map(str, counters)])
    # 63 bits: the seed fits a signed 64-bit integer.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator (Philox) for one purpose; see `derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *counters)))


def torch_rng(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A torch generator of the CPU, for every device, for one purpose; see `derive`."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


class Init:
    """Draws initial values; the stream of a parameter follows from (seed, name)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, *shape: int, bound: float) -> nn.Parameter:
        """U(-bound, bound)."""
        rng = torch_rng(self.seed, f"init:{name}")
        return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng))

    def normal(self, name: str, *shape: int, std: float = 1.0) -> nn.Parameter:
        """N(0, std²)."""
        rng = torch_rng(self.seed, f"init:{name}")
        return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=rng))

    def xavier_uniform(self, name: str, rows: int, columns: int) -> nn.Parameter:
        """U(-a, a), a = sqrt(6 / (rows + columns)). Glorot & Bengio, AISTATS 2010, equation 16."""
        return self.uniform(name, rows, columns, bound=math.sqrt(6 / (rows + columns)))

    def xavier_normal(self, name: str, rows: int, columns: int) -> nn.Parameter:
        """N(0, 2 / (rows + columns)). Glorot & Bengio, AISTATS 2010, equation 12."""
        return self.normal(name, rows, columns, std=math.sqrt(2 / (rows + columns)))

    def linear(self, name: str, inputs: int, outputs: int, *, weight: str = "default") -> nn.Linear:
        """Y = x Wᵀ + b with W (outputs, inputs).

        `weight` is `default`, U(±1/sqrt(inputs)), or `xavier_uniform` or `xavier_normal`; the bias
        is U(±1/sqrt(inputs)).
        """
        # torch's own bound for linear layers, weight and bias alike.
        bound = 1 / math.sqrt(inputs)
        # On the meta device torch draws nothing, so its global generator stays as it is.
        layer = nn.Linear(inputs, outputs, device="meta")
        if weight == "default":
            layer.weight = self.uniform(f"{name}.weight", outputs, inputs, bound=bound)
        else:
            layer.weight = getattr(self, weight)(f"{name}.weight", outputs, inputs)
        layer.bias = self.uniform(f"{name}.bias", outputs, bound=bound)
        return layer


def zeros(*shape: int) -> Tensor:
    """A trainable tensor of zeros."""
    return nn.Parameter(torch.zeros(shape))


@dataclass(frozen=True, eq=False)
class Batch:
    """What one optimiser step trains on; a subclass says which rows.

    Attributes:
        seed: The run's seed.
        epoch: 1-based epoch.
        step: 0-based step within the epoch.
    """

    seed: int
    epoch: int
    step: int

    def generator(self, purpose: str) -> torch.Generator:
        """A random stream of this step alone (dropout masks, say), on the CPU for every device."""
        return torch_rng(self.seed, purpose, self.epoch, self.step)


@dataclass(frozen=True, eq=False)
class Pairs(Batch):
    """Users and one item that each has seen.

    Attributes:
        users: User rows, shape (B,), int64.
        pos: Items seen by those users, shape (B,).
    """

    users: Tensor
    pos: Tensor


@dataclass(frozen=True, eq=False)
class Triples(Pairs):
    """Pairs with negatives.

    Attributes:
        neg: Items not seen by the users, shape (B,).
    """

    neg: Tensor


class Sampler(Protocol):
    """Draws the batches of one training set."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch (1-based), in order; they follow from (seed, epoch) alone."""


class TripleSampler:
    """Draws users, positives and negatives; a subclass says by which law.

    Args:
        train: What to draw from.
        batch_size: Rows per batch, B >= 1; the last batch of an epoch is smaller.
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
        # A user without items has no positive, one with every item no negative.
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

    def epoch(self, epoch: int) -> Iterator[Pairs]:
        """The batches of one epoch (1-based), in order."""
        kind = Triples if self.negatives else Pairs
        # The whole epoch is drawn at once and then cut: no state carries over to the next epoch.
        rng = numpy_rng(self.seed, "sampling", epoch)
        users, pos = self._positives(rng)
        drawn = [users, pos, self._unseen(rng, users)] if self.negatives else [users, pos]
        rows = [torch.split(torch.from_numpy(part), self.batch_size) for part in drawn]
        for step, parts in enumerate(zip(*rows, strict=True)):
            yield kind(self.seed, epoch, step, *(part.to(self.device) for part in parts))

    def _positives(self, rng: np.random.Generator) -> tuple[Index, Index]:
        raise NotImplementedError

    def _seen(self, rng: np.random.Generator, users: Index) -> Index:
        """One training item of each user, uniformly."""
        # floor(U d) with U in [0, 1): each of the user's d items with the same probability.
        offset = (rng.random(users.size) * self.train.user_degree[users]).astype(np.int64)
        items: Index = self.train.items[self.train.indptr[users] + offset]
        return items

    def _unseen(self, rng: np.random.Generator, users: Index) -> Index:
        """One unseen item of each user, uniformly, by rejection."""
        # Uniform draws, accepted only if unseen, are uniform over the unseen items.
        items = rng.integers(0, self.train.n_items, users.size)
        seen = np.flatnonzero(self.train.contains(users, items))
        while seen.size:  # draw again where the user has the item
            items[seen] = rng.integers(0, self.train.n_items, seen.size)
            seen = seen[self.train.contains(users[seen], items[seen])]
        return items


class UniformUsers(TripleSampler):
    """S1: every draw takes a user uniformly, with replacement, then one of its items. VBPR."""

    def _positives(self, rng: np.random.Generator) -> tuple[Index, Index]:
        # As many draws as edges, so that epochs are as long as those of `Edges`.
        users = self.users[rng.integers(0, self.users.size, self.train.n_edges)]
        return users, self._seen(rng, users)


class DistinctUsers(TripleSampler):
    """S2: the users of a batch are distinct; batches are independent of each other. LATTICE.

    A batch is never larger than the number of users.
    """

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        self.batch_size = min(batch_size, self.users.size)

    def _positives(self, rng: np.random.Generator) -> tuple[Index, Index]:
        starts = range(0, self.train.n_edges, self.batch_size)
        # The last batch of an epoch holds what is left of n_edges draws.
        sizes = (min(self.batch_size, self.train.n_edges - start) for start in starts)
        users = np.concatenate(
            [self.users[rng.choice(self.users.size, size, replace=False)] for size in sizes]
        )
        return users, self._seen(rng, users)


class Edges(TripleSampler):
    """S3: every training edge once per epoch, in a fresh order. MMGCN, GRCN, FREEDOM, BPR-MF."""

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        # Edges of users without a negative are left out.
        self.edges = np.flatnonzero(np.isin(train.users, self.users))

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.edges.size // self.batch_size)

    def _positives(self, rng: np.random.Generator) -> tuple[Index, Index]:
        # One permutation per epoch: each edge is a positive exactly once.
        order = rng.permutation(self.edges)
        return self.train.users[order], self.train.items[order]


class EdgesOnly(Edges):
    """S4: every training edge once per epoch, in a fresh order, without negatives. BM3."""

    negatives = False
