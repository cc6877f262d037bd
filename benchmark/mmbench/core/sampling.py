"""Random streams by purpose, initial values, and training batches: the samplers of the models.

Everything random follows from (seed, purpose, counters) alone: a batch of (seed, epoch, step) is
the same in a fresh run and in a resumed one, and on every device (`mmbench.core.philox`). A sampler
draws where it trains: an epoch's rows are drawn on the device at once and then cut into batches,
and nothing is copied or waited for between two steps.

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
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmbench.core.interactions import TrainSet
from mmbench.core.philox import Stream, below, home, order
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
    """What one optimiser step trains on; a subclass says which rows, in tensors of one device.

    Attributes:
        seed: The run's seed.
        clock: Epoch (1-based) and step (0-based within the epoch), shape (2,), int64, on the device
            of the rows. A captured step reads it there: no number of it may reach Python.
        first: Whether this is the first batch of its epoch.
        last: Whether this is the last one.
    """

    seed: int
    clock: Tensor
    first: bool
    last: bool

    def stream(self, purpose: str) -> Stream:
        """The random numbers of this step alone for one purpose (dropout masks, say)."""
        return Stream(derive(self.seed, purpose), self.clock)


def clocks(epoch: int, steps: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """The `clock` of each step of an epoch."""
    step = torch.arange(steps, device=device)
    return torch.stack([torch.full_like(step, epoch), step], 1).unbind()


def epoch_stream(seed: int, purpose: str, epoch: int, device: torch.device | str = "cpu") -> Stream:
    """The random numbers of one purpose in one epoch, drawn on `device`."""
    return Stream(derive(seed, purpose), clocks(epoch, 1, device)[0])


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
        device: Where the batches are drawn.

    Raises:
        DataError: No user has both a seen and an unseen item.
    """

    negatives = True

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.train, self.batch_size, self.seed, self.device = train, batch_size, seed, device
        self._home = home(device)
        # A user without items has no positive, one with every item no negative.
        usable = train.user_degree > 0
        if self.negatives:
            usable &= train.user_degree < train.n_items
        if not usable.any():
            raise DataError(
                "sampling: no user has both a seen and an unseen item; is the training set "
                "complete?"
            )
        self.usable = np.flatnonzero(usable)

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.train.n_edges // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Pairs]:
        """The batches of one epoch (1-based), in order."""
        # The whole epoch is drawn at once and then cut: no state carries over to the next epoch.
        users, pos, words = self._positives(epoch)
        drawn = [users, pos, self._unseen(users, *words)] if self.negatives else [users, pos]
        rows = (torch.split(part.to(self.device), self.batch_size) for part in drawn)
        parts = zip(*rows, strict=True)
        kind, steps = Triples if self.negatives else Pairs, len(self)
        for step, clock in enumerate(clocks(epoch, steps, self.device)):
            yield kind(self.seed, clock, step == 0, step == steps - 1, *next(parts))

    def _positives(self, epoch: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Users, one seen item of each, and two random words for each, (n,)."""
        raise NotImplementedError

    def _stream(self, epoch: int, purpose: str = "sampling") -> Stream:
        return epoch_stream(self.seed, purpose, epoch, self._home)

    def _seen(self, users: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """One training item of each user, uniformly."""
        return self._items[self._first[users] + below(self._degree[users], high, low)]

    def _unseen(self, users: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """One unseen item of each user, uniformly."""
        n = self.train.n_items
        # The r-th of the items that the user has not seen comes after those seen items of which at
        # most r unseen ones are smaller: r and their number add up to its row.
        r = below(n - self._degree[users], high, low)
        before = torch.searchsorted(self._smaller_unseen, users * (n + 1) + r, right=True)
        return r + before - self._first[users]

    @cached_property
    def _users(self) -> Tensor:
        """The users that are drawn, ascending."""
        return torch.from_numpy(self.usable).to(self._home)

    @cached_property
    def _items(self) -> Tensor:
        """The item of each training pair."""
        return torch.from_numpy(self.train.items).to(self._home)

    @cached_property
    def _first(self) -> Tensor:
        """Where each user's items begin."""
        return torch.from_numpy(self.train.indptr[:-1]).to(self._home)

    @cached_property
    def _degree(self) -> Tensor:
        """How many items each user has."""
        return torch.from_numpy(self.train.user_degree).to(self._home)

    @cached_property
    def _smaller_unseen(self) -> Tensor:
        """For each pair (u, i) u (n_items + 1) + the unseen items of u below i; ascending."""
        train = self.train
        position = np.arange(train.n_edges) - train.indptr[train.users]
        keys = train.users * (train.n_items + 1) + train.items - position
        return torch.from_numpy(keys).to(self._home)


class UniformUsers(TripleSampler):
    """S1: every draw takes a user uniformly, with replacement, then one of its items. VBPR."""

    def _positives(self, epoch: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        # As many draws as edges, so that epochs are as long as those of `Edges`.
        n = self.train.n_edges
        of_users, of_items = self._stream(epoch, "users").words(n), self._stream(epoch).words(n)
        users = self._users[below(len(self._users), *of_users[:2])]
        return users, self._seen(users, *of_items[:2]), of_items[2:]


class DistinctUsers(TripleSampler):
    """S2: the users of a batch are distinct; batches are independent of each other. LATTICE.

    A batch is never larger than the number of users.
    """

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        self.batch_size = min(batch_size, self.usable.size)

    def _positives(self, epoch: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        # The last batch of an epoch holds what is left of n_edges draws.
        users = self._distinct(epoch).flatten()[: self.train.n_edges]
        words = self._stream(epoch).words(len(users))
        return users, self._seen(users, *words[:2]), words[2:]

    def _distinct(self, epoch: int) -> Tensor:
        """Distinct users, uniformly without replacement for each step, (steps, B)."""
        n, steps, size = self.usable.size, len(self), self.batch_size
        # The first B distinct ones of independent draws. Their expected number, and a reserve.
        draws = int(1.1 * n * math.log((n + 0.5) / (n - size + 0.5))) + 16
        stream = self._stream(epoch, "users")
        while True:
            drawn = below(n, *stream.words(steps * draws)[:2]).view(steps, draws)
            ordered, place = drawn.sort(dim=1, stable=True)
            first = torch.ones_like(ordered, dtype=torch.bool)
            # Among equal draws the stable sort has the earliest first.
            first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
            first = torch.empty_like(first).scatter_(1, place, first)
            count = first.cumsum(1)
            if int(count[:, -1].min()) >= size:
                return self._users[drawn[first & (count <= size)]].view(steps, size)
            draws *= 2  # drawn anew, so that the law stays the same


class Edges(TripleSampler):
    """S3: every training edge once per epoch, in a fresh order. MMGCN, GRCN, FREEDOM, BPR-MF."""

    def __init__(
        self, train: TrainSet, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(train, batch_size, seed, device)
        # Edges of users without a negative are left out.
        self.edges = np.flatnonzero(np.isin(train.users, self.usable))

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.edges.size // self.batch_size)

    def _positives(self, epoch: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        # One permutation per epoch: each edge is a positive exactly once.
        words = self._stream(epoch).words(self.edges.size)
        permutation = order(*words[:2])
        users, items = self._edges
        return users[permutation], items[permutation], words[2:]

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor]:
        """Users and items of the edges that are drawn."""
        users, items = self.train.users[self.edges], self.train.items[self.edges]
        return torch.from_numpy(users).to(self.device), torch.from_numpy(items).to(self._home)


class EdgesOnly(Edges):
    """S4: every training edge once per epoch, in a fresh order, without negatives. BM3."""

    negatives = False
