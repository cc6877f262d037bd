"""What some metrics know about items besides the interactions: topics, and vectors to measure distances with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmbench.core.interactions import Index
from mmbench.errors import ShapeError, UsageError

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

Need = Literal["topics", "content"]

NEEDS: dict[Need, str] = {
    "topics": "the items' topics (--categories COLUMN, a column of items.tsv)",
    "content": "vectors of the items (--diversity-features MODALITY=NAME, a set of the feature store)",
}
"""Side data by name, and what a user can do to have them."""

# Unit vectors that exist at a time, in numbers: bounds the working memory whatever the width and the number of lists.
_NUMBERS_AT_A_TIME = 1 << 22

_Side = TypeVar("_Side")


def required(side: _Side | None, need: Need, metric: str) -> _Side:
    """The side data of a metric.

    Raises:
        UsageError: They are not there; the message says how to have them.
    """
    if side is None:
        raise UsageError(f"{metric}: needs {NEEDS[need]}; supply it or leave the metric out")
    return side


@dataclass(frozen=True, eq=False)
class Topics:
    """What each item is about: distinct (item, topic) pairs, sorted.

    Attributes:
        items: Item row of each pair, shape (n,), ascending.
        topics: Topic of each pair, shape (n,), any integers.
    """

    items: Index
    topics: Index

    @classmethod
    def from_pairs(cls, items: Index, topics: Index) -> Topics:
        """Sort the pairs and drop repetitions.

        Raises:
            ShapeError: The arrays are not 1-D of equal length.
        """
        if items.shape != topics.shape or items.ndim != 1:
            raise ShapeError(f"Topics: items {items.shape} and topics {topics.shape} must be 1-D of equal length")
        pairs = np.unique(np.stack([items, topics], axis=1).astype(np.int64), axis=0)
        return cls(pairs[:, 0], pairs[:, 1])

    def of(self, items: Index) -> tuple[Index, Index]:
        """One entry per topic of each given item, in their order: place in `items`, and position of the pair here."""
        first = np.searchsorted(self.items, items, side="left")
        count = np.searchsorted(self.items, items, side="right") - first
        place = np.repeat(np.arange(count.size), count)
        within = np.arange(place.size) - np.repeat(np.cumsum(count) - count, count)
        return place, first[place] + within


@dataclass(frozen=True, eq=False)
class Content:
    """Item vectors of one feature set, for distances between items.

    Attributes:
        vectors: Shape (n, d), floating point, finite; items with rows >= n have no vector.
        present: Which rows are vectors of their own, shape (n,); what fills the others is not looked at. A zero vector
            has no direction and counts as absent.

    Raises:
        ShapeError: The arrays do not fit together.
    """

    vectors: NDArray[np.floating]
    present: Mask

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.present.shape != self.vectors.shape[:1]:
            raise ShapeError(
                f"Content: vectors {self.vectors.shape}, present {self.present.shape}: expected (n, d), (n,)"
            )

    @property
    def rows_at_a_time(self) -> int:
        """How many vectors of this width fit the working memory."""
        return max(_NUMBERS_AT_A_TIME // max(int(self.vectors.shape[1]), 1), 1)

    @cached_property
    def length(self) -> Values:
        """Euclidean length of each vector, shape (n,); 0 where there is none."""
        length = np.zeros(len(self.vectors))
        for start in range(0, length.size, self.rows_at_a_time):
            block = self.vectors[start : start + self.rows_at_a_time].astype(np.float64)
            length[start : start + len(block)] = np.sqrt(np.square(block).sum(1))
        return np.where(self.present, length, 0.0)

    def sums(self, group: Index, items: Index, n_groups: int) -> tuple[Values, Values]:
        """Sum of the unit vectors of each group's items, shape (n_groups, d), and their number, shape (n_groups,).

        Args:
            group: Group of each item, ascending, in [0, n_groups).
            items: Item rows, same shape; those without a vector are left out.
            n_groups: Number of groups.
        """
        usable = np.append(self.length > 0, False)[np.minimum(items, len(self.vectors))]
        group, items = group[usable], items[usable]
        total = np.zeros((n_groups, self.vectors.shape[1]))
        for start in range(0, items.size, self.rows_at_a_time):
            part, of = items[start : start + self.rows_at_a_time], group[start : start + self.rows_at_a_time]
            unit = self.vectors[part] / self.length[part, None]  # (rows_at_a_time, d), float64
            first = np.flatnonzero(np.diff(of, prepend=-1))
            total[of[first]] += np.add.reduceat(unit, first, axis=0)
        return total, np.bincount(group, minlength=n_groups).astype(np.float64)
