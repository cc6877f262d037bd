"""Interactions as index arrays: what models train on and metrics are computed from.

Ids live outside (mmbench.data); here a user and an item are rows 0 … n-1, in the order of the ids
(integers numerically, other strings lexicographically): ties by ascending id are ties by ascending
row everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import ShapeError

Index = NDArray[np.int64]


def ranges(first: Index, last: Index) -> tuple[Index, Index]:
    """Concatenate index ranges [first, last): each entry's range number, and its index."""
    count = last - first
    number = np.repeat(np.arange(count.size), count)
    # The running number minus the number of entries in earlier ranges.
    within = np.arange(number.size) - np.repeat(np.cumsum(count) - count, count)
    return number, first[number] + within


@dataclass(frozen=True, eq=False)
class TrainSet:
    """The distinct training pairs, sorted by (user, item).

    Attributes:
        users: User row of each pair, shape (n_edges,), ascending.
        items: Item row of each pair, shape (n_edges,), ascending within a user.
        n_users: Number of users with a row; rows 0 … n_users-1.
        n_items: Number of candidate items; rows 0 … n_items-1.
        in_order: The interactions behind the pairs, in order; None where no order is known.
    """

    users: Index
    items: Index
    n_users: int
    n_items: int
    in_order: Histories | None = None

    @classmethod
    def from_pairs(cls, users: Index, items: Index, n_users: int, n_items: int) -> TrainSet:
        """Sort the pairs and drop repetitions.

        Args:
            users: User rows, shape (n,), any order, in [0, n_users).
            items: Item rows, shape (n,), in [0, n_items).
            n_users: Number of user rows.
            n_items: Number of item rows.

        Raises:
            ShapeError: The arrays differ in length or hold rows out of range.
        """
        if users.shape != items.shape or users.ndim != 1:
            raise ShapeError(
                f"TrainSet: users {users.shape} and items {items.shape} must be 1-D of equal length"
            )
        if users.size and (
            users.min() < 0 or users.max() >= n_users or items.min() < 0 or items.max() >= n_items
        ):
            raise ShapeError(f"TrainSet: rows outside [0, {n_users}) x [0, {n_items})")
        # One integer per pair: unique sorts by user, then item, and drops repetitions.
        key = np.unique(users.astype(np.int64) * n_items + items)
        return cls(key // n_items, key % n_items, n_users, n_items)

    def without_pairs(self) -> TrainSet:
        """Return no pairs of the same users and items."""
        none = self.users[:0]
        return TrainSet(none, none, self.n_users, self.n_items)

    @property
    def n_edges(self) -> int:
        """Number of distinct training pairs, |T|."""
        return int(self.users.size)

    @cached_property
    def indptr(self) -> Index:
        """Where each user's items begin and end in `items`, shape (n_users + 1,)."""
        counts = np.bincount(self.users, minlength=self.n_users)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def histories(self) -> Histories:
        """Each user's interactions in order; where none is known, its items ascending."""
        return self.in_order or Histories(self.indptr, self.items, None)

    @cached_property
    def user_degree(self) -> Index:
        """Distinct training items of each user, shape (n_users,)."""
        return np.diff(self.indptr)

    @cached_property
    def popularity(self) -> Index:
        """Distinct training users of each item, shape (n_items,)."""
        return np.bincount(self.items, minlength=self.n_items).astype(np.int64)

    @cached_property
    def keys(self) -> Index:
        """`user * n_items + item` of each pair, ascending: for binary search."""
        return self.users * self.n_items + self.items

    def contains(self, users: Index, items: Index) -> NDArray[np.bool_]:
        """Whether each pair was seen in training; `users` and `items` broadcast against each other.

        Items outside [0, n_items) are never contained.
        """
        users, items = np.broadcast_arrays(users, items)
        if not self.keys.size:
            return np.zeros(users.shape, bool)
        # An item outside I makes the key of another user's pair, hence the bounds on `items` below.
        query = users * self.n_items + items
        # Where the key would stand; one beyond the last is compared with the last.
        position = np.minimum(np.searchsorted(self.keys, query), self.keys.size - 1)
        seen: NDArray[np.bool_] = (
            (self.keys[position] == query) & (items >= 0) & (items < self.n_items)
        )
        return seen


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The rows of validation or test, sorted by (user, item); the last of repeated pairs wins.

    Attributes:
        users: User row of each pair, shape (n,), ascending. Rows >= the training set's `n_users`
            are users without training rows.
        items: Item row of each pair, shape (n,). Rows >= the training set's `n_items` are items
            that occur outside training only: relevant, whether or not a protocol can list them.
        ratings: Rating of each pair, shape (n,), float64; 1 where the data has none.
    """

    users: Index
    items: Index
    ratings: NDArray[np.float64]

    @classmethod
    def from_pairs(cls, users: Index, items: Index, ratings: NDArray[np.float64]) -> HeldOut:
        """Sort the rows by (user, item), keeping the last of repeated pairs.

        Raises:
            ShapeError: The arrays differ in length.
        """
        if not (users.shape == items.shape == ratings.shape and users.ndim == 1):
            raise ShapeError(
                f"HeldOut: {users.shape}, {items.shape}, {ratings.shape} must be 1-D of equal "
                "length"
            )
        # By user, item and place in the file, so that the last of repeated pairs comes last.
        order = np.lexsort((np.arange(users.size), items, users))
        users, items, ratings = users[order], items[order], ratings[order]
        last = np.ones(users.size, bool)
        # A row stays if the next one holds another pair.
        last[:-1] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        return cls(users[last], items[last], ratings[last])

    def take(self, rows: slice | NDArray[np.bool_]) -> HeldOut:
        """Return some of the pairs, in their order."""
        return HeldOut(self.users[rows], self.items[rows], self.ratings[rows])


@dataclass(frozen=True, eq=False)
class Histories:
    """Each user's interactions in order, repetitions kept.

    Attributes:
        indptr: Where each user's interactions begin and end, shape (n_users + 1,).
        items: Item row of each interaction, shape (n,), by user, then time, then file order. Rows
            >= the training set's `n_items` are items that training has not seen.
        times: Time of each, shape (n,), whole ticks since 1970; None where the data has none.
    """

    indptr: Index
    items: Index
    times: Index | None

    @classmethod
    def from_rows(
        cls, users: Index, items: Index, n_users: int, times: Index | None = None
    ) -> Histories:
        """Order interactions, each of shape (n,) and in file order, by user and time."""
        # lexsort sorts by its last key first.
        keys = (users,) if times is None else (times, users)
        order = np.lexsort(keys)  # stable: equal times keep the file's order
        counts = np.bincount(users, minlength=n_users)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(indptr, items[order], None if times is None else times[order])

    @property
    def users(self) -> Index:
        """User row of each interaction, shape (n,), ascending."""
        return np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))

    def then(self, users: Index, items: Index, times: Index | None) -> Histories:
        """Return these with more interactions of the same users, each of shape (n,).

        They come in by time, in the same ticks; behind the others where times are equal, or where
        either side has none.
        """
        both = None if self.times is None or times is None else np.append(self.times, times)
        together = np.append(self.users, users), np.append(self.items, items)
        return Histories.from_rows(*together, self.indptr.size - 1, both)

    def among(self, n_items: int) -> Histories:
        """Return these without the items from row `n_items` on; a history may end up empty."""
        kept = self.items < n_items
        before = np.concatenate([[0], np.cumsum(kept)])
        times = None if self.times is None else self.times[kept]
        return Histories(before[self.indptr], self.items[kept], times)

    def latest(self, k: int) -> Histories:
        """Return each user's last k interactions."""
        ends = self.indptr[1:]
        starts = np.maximum(ends - k, self.indptr[:-1])
        _, rows = ranges(starts, ends)
        indptr = np.concatenate([[0], np.cumsum(ends - starts)])
        return Histories(indptr, self.items[rows], None if self.times is None else self.times[rows])

    def and_of(self, others: Histories) -> Histories:
        """Return these, and behind them the histories of other users.

        The order stays; times are left out, since those of two tables may have different ticks.
        """
        indptr = np.concatenate([self.indptr, self.indptr[-1] + others.indptr[1:]])
        return Histories(indptr, np.concatenate([self.items, others.items]), None)

    def distinct(self, n_items: int) -> TrainSet:
        """Return the distinct (user, item) pairs of the first `n_items` items, without order."""
        own = self.among(n_items)
        return TrainSet.from_pairs(own.users, own.items, own.indptr.size - 1, n_items)
