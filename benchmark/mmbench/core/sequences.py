"""Histories in order as batches: users by steps, and how their steps are packed.

A row holds a user's latest items, oldest first: at most `max_len` inputs and, one place further,
what follows each of them. So each interaction of a history but the first is predicted once an
epoch, from those before it, as in SASRec (Kang & McAuley, ICDM 2018, section III.A); of a longer
history the latest `max_len + 1` interactions count. RecBole makes a sequence of each prefix
instead: the same predictions, each prefix computed anew; of longer histories it keeps them all,
with the `max_len` interactions before each as input.

Most histories are short. On the CPU only the steps that exist are computed, one after the other in
the order (step, row) with the longest rows first; elsewhere, where shapes must not depend on the
data, all of them, and those that do not exist get no weight. Random masks are drawn by the number
of an existing step, so that they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import Histories, Index, TrainSet
from mmbench.core.philox import Stream, order
from mmbench.core.sampling import Batch, TripleSampler, clocks, derive, epoch_stream
from mmbench.errors import DataError

_NARROWEST = 4  # blocks of attention are as wide as the longest row, or a power of two from here


class Latest:
    """The latest items of each user.

    Args:
        histories: Of all users.
        most: How many items at most, >= 1.
        device: Where rows are looked up.

    Attributes:
        counts: How many items each user's row has, shape (n_users,).
        width: The most that any has, at least 1.
    """

    def __init__(self, histories: Histories, most: int, device: torch.device) -> None:
        self.counts: Index = np.minimum(np.diff(histories.indptr), most)
        self.width = max(1, int(self.counts.max(initial=0)))
        tables = histories.items, histories.indptr[1:] - self.counts, self.counts
        self._items, self._first, self._count = (torch.from_numpy(x).to(device) for x in tables)
        self._device = device

    def __call__(self, users: Tensor) -> Tensor:
        """Their items, (B, width), oldest first, -1 behind the last."""
        if not len(self._items):
            return torch.full((len(users), self.width), -1, device=self._device)
        place = torch.arange(self.width, device=self._device)
        where = (self._first[users][:, None] + place).clamp_(max=len(self._items) - 1)
        return torch.where(place < self._count[users][:, None], self._items[where], -1)

    def longest_first(self, users: Tensor) -> Tensor:
        """Places of the users by the number of their items, most first, equal ones as they are."""
        return torch.argsort(self._count[users], descending=True, stable=True)

    def rows_at(self, users: Tensor, shorter: int = 0) -> tuple[int, ...]:
        """How many of the users' rows have a step t = 0, 1, …; the rows are the longest first.

        Args:
            users: In the order that `longest_first` gives.
            shorter: How many steps fewer than items a row has.
        """
        if self._device.type != "cpu":  # all: what there is would have to be waited for
            return (len(users),) * (self.width - shorter)
        n_steps = self.counts[users.numpy()] - shorter
        at = np.bincount(n_steps[n_steps > 0] - 1)  # rows whose last step is t
        return tuple(np.cumsum(at[::-1])[::-1].tolist())


@dataclass(frozen=True, eq=False)
class Sequences(Batch):
    """Histories of some users, the longest first.

    Attributes:
        items: Item rows, oldest first, shape (B, L + 1), int64, -1 behind the last. Step t of a row
            is to predict item t + 1 from items 0 … t.
        rows_at: How many rows have step t; on other devices than the CPU how many are computed.
        neg: An item for each step that the user has not seen, (B, L); None: there are none.
    """

    items: Tensor
    rows_at: tuple[int, ...]
    neg: Tensor | None


class NextItems(TripleSampler):
    """Every user with two interactions or more once per epoch, in a fresh order.

    Args:
        train: What to draw from.
        batch_size: Users per batch, B >= 1; the last batch of an epoch is smaller.
        seed: The run's seed.
        device: Where the batches are drawn.
        max_len: Most inputs of a row, >= 1.
        negatives: Whether each step gets one; users who have every item are left out then.

    Raises:
        DataError: No user has two interactions (and an unseen item).
    """

    def __init__(
        self,
        train: TrainSet,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        max_len: int,
        negatives: bool,
    ) -> None:
        self.negatives = negatives
        super().__init__(train, batch_size, seed, device)
        self.latest = Latest(train.histories, max_len + 1, self._home)
        self.usable = self.usable[self.latest.counts[self.usable] >= 2]
        if not self.usable.size:
            raise DataError(
                "sampling: no user has two training interactions, so there is no next item to "
                "learn from; a sequence model needs longer histories"
            )

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.usable.size // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Sequences]:  # type: ignore[override]
        """The batches of one epoch (1-based), in order."""
        words = epoch_stream(self.seed, "sampling", epoch, self._home).words(self.usable.size)
        drawn = torch.split(self._users[order(*words[:2])], self.batch_size)
        steps = len(self)
        for step, clock in enumerate(clocks(epoch, steps, self.device)):
            users = drawn[step]
            users = users[self.latest.longest_first(users)]
            items, rows_at = self.latest(users), self.latest.rows_at(users, shorter=1)
            neg = self._negatives(users, clock).to(self.device) if self.negatives else None
            ends = step == 0, step == steps - 1
            yield Sequences(self.seed, clock, *ends, items.to(self.device), rows_at, neg)

    def _negatives(self, users: Tensor, clock: Tensor) -> Tensor:
        """An unseen item for each step of the users' rows, (B, L)."""
        n_steps = self.latest.width - 1
        stream = Stream(derive(self.seed, "negatives"), clock.to(self._home))
        words = stream.words(len(users) * n_steps)
        # Rows are in the order of their length, which is the same on every device.
        each = users[:, None].expand(-1, n_steps).reshape(-1)
        return self._unseen(each, *words[:2]).view(-1, n_steps)


class Steps:
    """The steps of rows one after the other: by step, then by row.

    Args:
        items: Shape (B, L + ahead), -1 behind a row's last item.
        rows_at: How many rows have step t, or are computed; not ascending.
        ahead: A row has step t if it has item t + `ahead`: 1 where that is to be predicted.

    Attributes:
        rows_at: As above.
        row, step: Of each place, (n,).
        longest: L.
    """

    def __init__(self, items: Tensor, rows_at: tuple[int, ...], ahead: int = 0) -> None:
        self.items, self.rows_at, self.ahead = items, rows_at, ahead
        self.longest = items.shape[1] - ahead
        every = torch.arange(self.n_rows, device=items.device)
        self.row = torch.cat([every[:0], *(every[:n] for n in rows_at)])
        self.step = torch.cat(
            [every[:0], *(every.new_full((n,), t) for t, n in enumerate(rows_at))]
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def n_rows(self) -> int:
        """How many rows have a step, or are computed; the others come behind."""
        return self.rows_at[0] if self.rows_at else 0

    @cached_property
    def counts(self) -> Tensor:
        """How many steps each row has, (B,)."""
        return (self.items[:, self.ahead :] >= 0).sum(1)

    @cached_property
    def there(self) -> Tensor:
        """Whether each place exists, (n,)."""
        return self.items[self.row, self.step + self.ahead] >= 0

    def of(self, table: Tensor, ahead: int = 0) -> Tensor:
        """What a table (B, L') has at each place, or `ahead` steps further; 0 where it has -1."""
        return table[self.row, self.step + ahead].clamp(min=0)

    @cached_property
    def place(self) -> Tensor:
        """Where each step of each row stands, (steps, n_rows); 0 where it does not."""
        found = self.row.new_zeros(len(self.rows_at), self.n_rows)
        found[self.step, self.row] = torch.arange(len(self), device=self.row.device)
        return found

    @cached_property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Rows of similar length: the first, the one behind the last, and the number of steps."""
        found, start, width = [], 0, len(self.rows_at)
        while start < self.n_rows:
            # Rows that have more steps than the next power of two.
            below = 1 << (width - 1).bit_length() - 1 if width > _NARROWEST else 0
            stop = self.rows_at[below] if below else self.n_rows
            if stop > start:
                found.append((start, stop, width))
            start, width = stop, below
        return found

    @cached_property
    def in_blocks(self) -> Tensor:
        """Where each place stands in the blocks, one after the other, row by row; (n,)."""
        base, begin = [self.row[:0]], 0
        for start, stop, width in self.blocks:
            base.append(torch.arange(stop - start, device=self.row.device) * width + begin)
            begin += (stop - start) * width
        return torch.cat(base)[self.row] + self.step

    @cached_property
    def numbers(self) -> Tensor | None:
        """How many existing places are before each; None: they all exist."""
        if self.items.device.type == "cpu":
            return None
        return (self.there.cumsum(0) - 1).clamp_(min=0)
