"""Item data that some metrics need: topics, and vectors to measure distances with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmbench.core.interactions import Index, ranges
from mmbench.errors import ShapeError, UsageError

if TYPE_CHECKING:
    import scipy.sparse as sp

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

Need = Literal["topics", "content"]

NEEDS: dict[Need, str] = {
    "topics": "the items' topics (--categories COLUMN, a column of items.tsv)",
    "content": "vectors of the items (--diversity-features MODALITY=NAME, a set of the feature "
    "store)",
}
"""Side data by name, and how to supply them."""

# Numbers of unit vectors, and of their sums, at a time: bounds working memory.
_NUMBERS_AT_A_TIME = 1 << 22

_Side = TypeVar("_Side")


def required(side: _Side | None, need: Need, metric: str) -> _Side:
    """Return the side data of a metric, or raise a UsageError that says how to supply them."""
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
            raise ShapeError(
                f"Topics: items {items.shape} and topics {topics.shape} must be 1-D of equal length"
            )
        pairs = np.unique(np.stack([items, topics], axis=1).astype(np.int64), axis=0)
        return cls(pairs[:, 0], pairs[:, 1])

    def of(self, items: Index) -> tuple[Index, Index]:
        """Return, for each topic of each item in turn, place in `items` and row of the pair."""
        # The pairs are sorted by item, so that an item's topics are one range.
        left, right = (np.searchsorted(self.items, items, side) for side in ("left", "right"))
        return ranges(left, right)

    def first(self, n_items: int) -> Index:
        """Return the first topic of each item, numbered from 0, shape (n_items,).

        Items without one share the number behind the last.
        """
        listed, place = np.unique(self.items[self.items < n_items], return_index=True)
        names, number = np.unique(self.topics[self.items < n_items][place], return_inverse=True)
        out = np.full(n_items, names.size, np.int64)
        out[listed] = number
        return out


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """Item vectors of one feature set, for distances between items.

    Attributes:
        vectors: Shape (n, d), floating point, finite; items with rows >= n have no vector.
        present: Which rows are vectors of their own, shape (n,); what fills the others is not
            looked at. A zero vector has no direction and counts as absent.

    Raises:
        ShapeError: The arrays do not fit together.
    """

    vectors: NDArray[np.floating]
    present: Mask

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.present.shape != self.vectors.shape[:1]:
            raise ShapeError(
                f"ItemVectors: vectors {self.vectors.shape}, present {self.present.shape}: "
                "expected (n, d), (n,)"
            )

    @cached_property
    def length(self) -> Values:
        """Euclidean length of each vector, shape (n,); 0 where there is none."""
        # In double precision, a block of columns at a time: no copy of all vectors.
        squares = np.zeros(len(self.vectors))
        for block in self._column_blocks():
            squares += np.square(block).sum(1)
        return np.where(self.present, np.sqrt(squares), 0.0)

    def indicator(self, group: Index, items: Index, n_groups: int) -> sp.csr_matrix:
        """Which items with a vector each group has, shape (n_groups, n), 1 or absent.

        Args:
            group: Group of each item, ascending, in [0, n_groups).
            items: Item rows, same shape, distinct within a group; those without a vector are left
                out.
            n_groups: Number of groups.
        """
        import scipy.sparse as sp  # not for `--help`, nor for completion

        # Items without a row share one last place, which is not usable.
        usable = np.append(self.length > 0, False)[np.minimum(items, len(self.vectors))]
        indptr = np.append(0, np.cumsum(np.bincount(group[usable], minlength=n_groups)))
        ones = np.ones(int(indptr[-1]))
        return sp.csr_matrix((ones, items[usable], indptr), shape=(n_groups, len(self.vectors)))

    def inner(self, a: sp.csr_matrix, b: sp.csr_matrix) -> Values:
        """Multiply the sums of unit vectors of each group of `a` and `b`, shape (n_groups,)."""
        product = np.zeros(a.shape[0])
        for groups, first, second in self._sums(a, b):
            product[groups] += np.einsum("gc,gc->g", first, second)
        return product

    def distance(self, a: sp.csr_matrix, b: sp.csr_matrix) -> Values:
        """Distance of the means of unit vectors of each group of `a` and `b`, shape (n_groups,).

        NaN where one of the groups is empty.
        """
        squares = np.zeros(a.shape[0])
        sizes = [np.diff(one.indptr).astype(np.float64) for one in (a, b)]
        per_group = [1.0 / np.where(size > 0, size, np.nan) for size in sizes]
        for groups, first, second in self._sums(a, b):
            means = [
                x * one[groups, None] for x, one in zip((first, second), per_group, strict=True)
            ]
            squares[groups] += np.square(means[0] - means[1]).sum(1)
        return np.asarray(np.sqrt(squares))

    def _sums(self, a: sp.csr_matrix, b: sp.csr_matrix) -> Iterator[tuple[slice, Values, Values]]:
        """Yield some groups and some columns of their sums of unit vectors, in `a` and in `b`.

        Some columns of the vectors and some groups at a time: that bounds working memory.
        """
        usable = self.length > 0
        # 1 / |x|, or 0 for absent and zero vectors.
        per_vector = np.where(usable, 1.0 / np.where(usable, self.length, 1.0), 0.0)[:, None]
        for block in self._column_blocks():
            unit = block * per_vector  # (n, some columns)
            # Sums over the dimensions: blocks of columns add up.
            at_a_time = max(_NUMBERS_AT_A_TIME // unit.shape[1], 1)
            for start in range(0, a.shape[0], at_a_time):
                groups = slice(start, start + at_a_time)
                first = a[groups] @ unit  # (some groups, some columns)
                yield groups, first, first if b is a else b[groups] @ unit

    def _column_blocks(self) -> Iterator[Values]:
        n, width = self.vectors.shape
        at_a_time = max(_NUMBERS_AT_A_TIME // max(n, 1), 1)
        for start in range(0, width, at_a_time):
            yield self.vectors[:, start : start + at_a_time].astype(np.float64)
