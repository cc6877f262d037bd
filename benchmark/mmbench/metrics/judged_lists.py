"""Judged lists, all that a metric may look at, and how a function of them becomes a metric.

What two metrics or two cut-offs share is computed once, here, on first use. There is no loop over
users: each held-out pair is compared with the K places of its user's list, and the accuracy metrics
then need only the few pairs that were found.

Letters of the formulas: `L` a user's list, `L[:k]` its first k items, `Rel` the user's relevant
items (held-out rating >= threshold), `T` the training pairs, `pop` an item's number of training
users, `I` the candidate items, `R` the evaluated users with a relevant item, `E` all evaluated
users, `d(r) = 1 / log2(r + 2)` the discount of rank r = 0, 1, ….
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.core.interactions import Index, TrainSet
from mmbench.errors import DataError
from mmbench.metrics.item_data import ItemVectors, Mask, Need, Topics, Values

# Pairs compared with their lists at a time, in places: bounds the memory for any size of split.
_PLACES_AT_A_TIME = 1 << 22
# 2 ** 1024 overflows a float64; the margin leaves room for the sums of gains.
_LARGEST_EXPONENT = 960.0

ELLIOT = "Anelli et al., Elliot (SIGIR 2021)"
NOVELTY = "Vargas and Castells, Rank and relevance in novelty and diversity metrics (RecSys 2011)"


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, and what its number means.

    Attributes:
        name: The printed form.
        compute: Judged lists and cut-off to one value per evaluated user, shape (n,), or to one
            number.
        kind: `per-user` metrics are averaged over their population; `overall` ones are one number
            for all lists.
        population: `relevant` (R): evaluated users with at least one relevant item; `evaluated`
            (E): all of them.
        formula: One readable line; for the letters see the module.
        source: Paper or framework of the definition.
        higher_is_better: None where neither direction is better by itself.
        bounds: Smallest and largest value of lists that hold candidates only; lists from elsewhere
            may hold items outside I and exceed them.
        aliases: Other accepted names.
        needs: Side data that the metric requires; see `mmbench.metrics.item_data.NEEDS`.
    """

    name: str
    compute: Callable[[Judged, int], Values | float]
    kind: Literal["per-user", "overall"]
    population: Literal["relevant", "evaluated"]
    formula: str
    source: str
    higher_is_better: bool | None = True
    bounds: tuple[float, float] = (0.0, 1.0)
    aliases: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()

    @property
    def of_hits(self) -> bool:
        """Whether it says how many relevant items were found: 0 without any."""
        return self.population == "relevant" and self.higher_is_better is True


def over_relevant(name: str, **about: Any) -> Callable[[Callable[[Judged, int], Values]], Metric]:
    """Make a metric of a function that gives one value per user; the mean is over R.

    Args:
        name: The printed form.
        about: `formula`, `source` and the other attributes of `Metric`.
    """
    return lambda compute: Metric(name, compute, "per-user", "relevant", **about)


def over_evaluated(name: str, **about: Any) -> Callable[[Callable[[Judged, int], Values]], Metric]:
    """Make a metric of a function that gives one value per user; the mean is over E."""
    return lambda compute: Metric(name, compute, "per-user", "evaluated", **about)


def overall(
    name: str, population: Literal["relevant", "evaluated"] = "evaluated", **about: Any
) -> Callable[[Callable[[Judged, int], float]], Metric]:
    """Make a metric of a function that gives one number for all lists."""
    return lambda compute: Metric(name, compute, "overall", population, **about)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Relevant held-out pairs of the evaluated users, sorted by (user, item).

    Attributes:
        user: Position of the pair's user in `Judged.users`, shape (n,), ascending.
        item: Item row, shape (n,); rows >= `n_items` never occur in training.
        rating: Rating minus threshold, shape (n,), >= 0.
    """

    user: Index
    item: Index
    rating: Values


@dataclass(frozen=True, eq=False)
class Hits:
    """The relevant pairs that were listed, sorted by (user, rank).

    Attributes:
        user: Position of the user in `Judged.users`, shape (n_hits,), ascending.
        rank: 0-based place in the list, ascending within a user.
        item: Item row.
        pair: Position of the pair in `Judged.relevant`.
        ordinal: 0 for a user's first hit, 1 for the second, ….
    """

    user: Index
    rank: Index
    item: Index
    pair: Index
    ordinal: Index


@dataclass(frozen=True, eq=False)
class Judged:
    """The lists of the evaluated users E, their relevant items, and the training set.

    Attributes:
        users: User rows, shape (n,), ascending.
        by_rank: Item row at each rank, shape (K, n), C-contiguous; -1 after a list's end. No item
            twice in a column.
        relevant: The relevant pairs of these users.
        train: The training pairs.
        topics: The items' topics, where the data have them.
        content: The items' vectors for distances, where they were asked for.
        left_out: The pairs that no list could hold, the T_u of PopREO, PopRSP and LAUC; None: the
            training pairs.
    """

    users: Index
    by_rank: Index
    relevant: Pairs
    train: TrainSet
    topics: Topics | None = None
    content: ItemVectors | None = None
    left_out: TrainSet | None = None

    @property
    def n_users(self) -> int:
        """|E|."""
        return int(self.users.size)

    @cached_property
    def n_relevant(self) -> Index:
        """|Rel| of each user, shape (n,)."""
        return np.bincount(self.relevant.user, minlength=self.n_users)

    @property
    def masked(self) -> TrainSet:
        """The pairs that no list could hold."""
        return self.train if self.left_out is None else self.left_out

    @cached_property
    def n_masked(self) -> Index:
        """How many of them each user has, shape (n,); 0 for users without a training row."""
        # Users without training rows have rows >= n_users; they share the last place.
        degree = np.append(self.masked.user_degree, 0)
        return np.asarray(degree[np.minimum(self.users, self.train.n_users)], np.int64)

    @cached_property
    def trained(self) -> tuple[Index, Index]:
        """Training pairs of the evaluated users: position in `users`, ascending, and item row."""
        # From a user's row to the position in `users`; -1 for users who are not evaluated.
        place = np.full(max(self.train.n_users, int(self.users.max(initial=-1)) + 1), -1)
        place[self.users] = np.arange(self.n_users)
        user = place[self.train.users]
        return user[user >= 0], self.train.items[user >= 0]

    def listed(self, k: int) -> tuple[Index, Index]:
        """Items of all L[:k], best first: position in `users`, ascending, and item row."""
        # List by list; the -1 after a list's end are dropped below.
        items = self.by_rank[:k].T.ravel()
        user = np.repeat(np.arange(self.n_users), min(k, self.by_rank.shape[0]))
        return user[items >= 0], items[items >= 0]

    @cached_property
    def length(self) -> Index:
        """Length of each list, shape (n,)."""
        return np.asarray(np.count_nonzero(self.by_rank >= 0, axis=0))

    @cached_property
    def hits(self) -> Hits:
        """Where the relevant items stand in the lists."""
        width = max(self.by_rank.shape[0], 1)
        at_a_time = max(_PLACES_AT_A_TIME // width, 1)
        found: list[tuple[Index, Index]] = [(_NONE, _NONE)]
        for start in range(0, self.relevant.user.size, at_a_time):
            part = slice(start, start + at_a_time)
            # (K, pairs of the part): each pair's item against every place of its user's list.
            rank, pair = np.nonzero(
                self.by_rank[:, self.relevant.user[part]] == self.relevant.item[part]
            )
            found.append((rank, pair + start))
        rank, pair = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((rank, self.relevant.user[pair]))
        rank, pair = rank[order], pair[order]
        user = self.relevant.user[pair]
        return Hits(user, rank, self.relevant.item[pair], pair, _ordinal(user))

    def sum_hits(self, weight: Values | float, k: int) -> Values:
        """Sum of a weight per hit over each user's hits in L[:k], shape (n,).

        Args:
            weight: One number per hit, shape (n_hits,), or one for all.
            k: Cut-off.
        """
        # One set of hits serves all cut-offs: those beyond k weigh 0.
        within = self.hits.rank < k
        return _sums(self.hits.user, np.where(within, weight, 0.0), self.n_users)

    def n_hits(self, k: int) -> Values:
        """Number of hits in L[:k] of each user, shape (n,)."""
        return self.sum_hits(1.0, k)

    @cached_property
    def discount(self) -> Values:
        """d(r) = 1 / log2(r + 2) of every rank, shape (K,)."""
        discount: Values = 1.0 / np.log2(np.arange(self.by_rank.shape[0]) + 2.0)
        return discount

    @cached_property
    def gain(self) -> Values:
        """2^(rating - threshold + 1) - 1 of each relevant pair, shape (n_pairs,).

        Raises:
            DataError: A rating is so large that the gain overflows.
        """
        exponent = self.relevant.rating + 1.0
        if exponent.size and exponent.max() > _LARGEST_EXPONENT:
            raise DataError(
                f"nDCG: ratings reach {exponent.max() - 1:g} above the threshold, and their gain "
                "2^rating overflows (expected a scale such as 1-5); binarise the ratings or use "
                "nDCGRendle2020"
            )
        return np.exp2(exponent) - 1.0

    @cached_property
    def ideal_gain(self) -> tuple[Values, Index]:
        """Gain and rank of each relevant pair in its user's ideal list, shape (n_pairs,) each."""
        # Users are ascending already, so that they stay where they are.
        order = np.lexsort((-self.gain, self.relevant.user))
        return self.gain[order], _ordinal(self.relevant.user)

    @cached_property
    def unseen(self) -> Index:
        """Listed items outside I, ascending, distinct."""
        return np.unique(self.by_rank[self.by_rank >= self.train.n_items])

    @cached_property
    def codes(self) -> Index:
        """`by_rank` as rows of tables: first I, then `unseen`, last one row for "no item"."""
        n_items = self.train.n_items
        codes = self.by_rank
        if self.unseen.size:
            # Rows outside I may be far apart; ranked among `unseen`, they keep the tables small.
            outside = codes >= n_items
            codes = codes.copy()
            codes[outside] = n_items + np.searchsorted(self.unseen, codes[outside])
        return np.where(codes < 0, n_items + self.unseen.size, codes)

    def _table(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of the items of I, shape (n_items,), followed by zeros for the other codes."""
        return np.concatenate([values, np.zeros(self.unseen.size + 1, values.dtype)])

    @cached_property
    def _counts(self) -> dict[int, Index]:
        return {}  # by cut-off

    def counts(self, k: int) -> Index:
        """How often each item is in the lists' first k, shape (n_items + len(unseen),)."""
        if k not in self._counts:
            # The last code, "no item", is counted too and cut off below.
            self._counts[k] = np.bincount(
                self.codes[:k].ravel(), minlength=self.train.n_items + self.unseen.size + 1
            )
        return np.asarray(self._counts[k][:-1], np.int64)

    def inverse_length_sums(self, k: int) -> Values:
        """Sum of 1 / len(L[:k]) over the lists that hold an item, for each item as in `counts`."""
        # The places after a list's end share it as well, under the code that is cut off.
        share = np.broadcast_to(1.0 / np.maximum(self.length_at(k), 1), self.codes[:k].shape)
        return _sums(
            self.codes[:k].ravel(), share.ravel(), self.train.n_items + self.unseen.size + 1
        )[:-1]

    def length_at(self, k: int) -> Index:
        """len(L[:k]) of each user, shape (n,)."""
        return np.minimum(self.length, k)

    @cached_property
    def is_head(self) -> Mask:
        """Whether each item of I belongs to the head, shape (n_items,).

        The head is the shortest prefix of the items by descending popularity, ties by ascending
        row, that holds at least 80 % of the training interactions; the rest is the tail.
        """
        # Stable: equal popularities stay in ascending row.
        order = np.argsort(-self.train.popularity, kind="stable")
        held = np.cumsum(self.train.popularity[order])
        head = np.zeros(self.train.n_items, bool)
        if self.train.n_edges:  # in integers: 0.8 is not a binary fraction
            # The item that reaches 80 % belongs to the head, hence + 1.
            head[order[: np.searchsorted(5 * held, 4 * self.train.n_edges) + 1]] = True
        return head

    @cached_property
    def _in_tail(self) -> Mask:
        # Unseen items and empty places are in neither group.
        return np.asarray(self._table(~self.is_head)[self.codes], bool)

    @cached_property
    def _in_head(self) -> Mask:
        return np.asarray(self._table(self.is_head)[self.codes], bool)

    def n_tail(self, k: int) -> Index:
        """Tail items in L[:k] of each user, shape (n,)."""
        return np.asarray(np.count_nonzero(self._in_tail[:k], axis=0), np.int64)

    def n_listed(self, k: int) -> tuple[int, int]:
        """Head and tail items in all L[:k] together."""
        return int(np.count_nonzero(self._in_head[:k])), int(np.count_nonzero(self._in_tail[:k]))

    @cached_property
    def _listed_popularity(self) -> Index:
        return np.asarray(self._table(self.train.popularity)[self.codes], np.int64)

    def popularity_sum(self, k: int) -> Index:
        """Sum of pop over L[:k] of each user, shape (n,); items without a training row count 0."""
        return np.asarray(self._listed_popularity[:k].sum(axis=0), np.int64)

    def popularity_of(self, items: Index) -> Index:
        """Training users of the given item rows, pop; 0 outside I."""
        return np.asarray(
            np.append(self.train.popularity, 0)[np.minimum(items, self.train.n_items)]
        )

    @cached_property
    def rarest(self) -> int:
        """The smallest pop of an item that has any; 1 where none has."""
        occurring = self.train.popularity[self.train.popularity > 0]
        return int(occurring.min()) if occurring.size else 1

    def head_and_tail(self, items: Index) -> tuple[Mask, Mask]:
        """Whether each given item row is in the head and in the tail; neither outside I."""
        inside = items < self.train.n_items
        # Rows outside I share the last place, which is in no group.
        head = np.append(self.is_head, False)[np.minimum(items, self.train.n_items)]
        return head, inside & ~head


_NONE: Index = np.zeros(0, np.int64)


def _sums(group: Index, weight: Values, n_groups: int) -> Values:
    """Sum of the weights of each group, shape (n_groups,)."""
    # For no groups at all bincount answers in integers.
    return np.asarray(np.bincount(group, weight, n_groups), np.float64)


def _ordinal(group: Index) -> Index:
    """0, 1, 2, … within each run of equal values of a sorted array."""
    if not group.size:
        return _NONE
    # The running number minus that of the run's start.
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    return np.arange(group.size) - np.repeat(starts, np.diff(np.append(starts, group.size)))
