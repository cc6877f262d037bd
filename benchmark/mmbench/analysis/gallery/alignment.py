"""Whether the vectors of a feature set belong to the items whose ids they bear.

Items whose vectors are close should have something in common that the vectors were not made of:
training users, and words. `alignment` measures how much the nearest neighbours have in common, and
how much they would if the vectors were dealt out to the items at random. Vectors that do no better
may belong to other items; vectors that do better one row further on are off by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmbench.core.interactions import Index, TrainSet

Vectors: TypeAlias = NDArray[np.float32]
Common: TypeAlias = Callable[[Index, Index], NDArray[np.float64]]
"""How much the items of each pair have in common, (n,), in [0, 1]."""

DEALS = 19
"""Random deals: the real one is above all of them by chance once in twenty times."""

SHIFTS = (-1, 1)
_CELLS = 1 << 24  # cosines in a block: 64 MiB
_WORD = re.compile(r"\w+")
_MOST_WORDS = 100


def unit_rows(vectors: Vectors) -> Vectors:
    """Return rows of length 1; a row of zeros stays."""
    # Divided by the largest number first: squares of large ones overflow.
    peak = np.maximum(vectors.max(axis=1, initial=0), -vectors.min(axis=1, initial=0))
    scaled: Vectors = np.asarray(vectors / np.where(peak > 0, peak, 1)[:, None], np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))  # without a copy of the size of both
    scaled /= np.where(length > 0, length, 1)[:, None]
    return scaled


def nearest(unit: Vectors, queries: Index, k: int) -> tuple[Index, NDArray[np.float32]]:
    """Return the rows nearest to some rows by cosine, themselves left out, exactly.

    Args:
        unit: Rows of length 1, shape (n, d), n > k.
        queries: Row numbers, shape (m,).
        k: How many.

    Returns:
        Row numbers and cosines, (m, k), nearest first, ties by ascending row.
    """
    n = len(unit)
    rows = np.empty((queries.size, k), np.int64)
    cosines = np.empty((queries.size, k), np.float32)
    step = max(1, _CELLS // n)
    for start in range(0, queries.size, step):
        block = queries[start : start + step]
        found = unit[block] @ unit.T
        found[np.arange(block.size), block] = -np.inf
        # All that are as near as the k-th are candidates; among ties the lower row comes first.
        least = np.partition(found, n - k, axis=1)[:, n - k]
        for place, (values, bound) in enumerate(zip(found, least, strict=True), start):
            near = np.flatnonzero(values >= bound)
            near = near[np.argsort(-values[near], kind="stable")][:k]
            rows[place], cosines[place] = near, values[near]
    return rows, cosines


def shared_users(train: TrainSet) -> Common:
    """Return how many training users two items share: the cosine of their columns."""
    shape = (train.n_items, train.n_users)
    ones = np.ones(train.n_edges, np.float64)
    return _cosine_of(sparse.csr_array((ones, (train.items, train.users)), shape=shape))


def shared_words(texts: Sequence[str]) -> Common | None:
    """Return how many words the texts of two items share: the cosine; None if there are no words.

    The words of more than a tenth of the items are left out, as those that say nothing.
    """
    words = [set(_WORD.findall(text.casefold())[:_MOST_WORDS]) for text in texts]
    number: dict[str, int] = {}
    cells = [number.setdefault(word, len(number)) for own in words for word in sorted(own)]
    if not cells:
        return None
    columns = np.array(cells, np.int64)
    rows = np.repeat(np.arange(len(words)), [len(own) for own in words])
    rare = (np.bincount(columns) <= max(2, len(texts) // 10))[columns]
    shape = (len(words), len(number))
    ones = np.ones(int(rare.sum()), np.float64)
    return _cosine_of(sparse.csr_array((ones, (rows[rare], columns[rare])), shape=shape))


def _cosine_of(table: sparse.csr_array) -> Common:
    sizes = np.asarray(table.multiply(table).sum(axis=1), np.float64).ravel()

    def common(one: Index, other: Index) -> NDArray[np.float64]:
        known = np.maximum(one, other) < table.shape[0]  # items that training has not seen
        dots = np.zeros(one.size)
        left, right = table[one[known]], table[other[known]]
        dots[known] = np.asarray(left.multiply(right).sum(axis=1), np.float64).ravel()
        scale = np.zeros(one.size)
        scale[known] = np.sqrt(sizes[one[known]] * sizes[other[known]])
        return np.divide(dots, scale, out=np.zeros(one.size), where=scale > 0)

    return common


Verdict: TypeAlias = Literal["fits", "chance", "shifted", "unknown"]


@dataclass(frozen=True)
class Fit:
    """How much the nearest neighbours have in common.

    Attributes:
        kind: What: `training users` or `words`.
        found: The mean over items and neighbours.
        chance: The mean over random deals of the vectors.
        highest: The highest of these deals.
        shifted: The mean where vectors are moved on by so many rows of the file.
    """

    kind: str
    found: float
    chance: float
    highest: float
    shifted: Mapping[int, float]

    @property
    def times(self) -> float | None:
        """How many times as much as by chance; None where chance has nothing in common."""
        return self.found / self.chance if self.chance > 0 else None

    @property
    def better_shift(self) -> int | None:
        """The move after which the neighbours have clearly more in common; None for none."""
        if not self.shifted:
            return None
        shift = max(self.shifted, key=lambda one: self.shifted[one])
        gain = self.shifted[shift] - self.chance
        return shift if gain > 2 * max(self.highest, self.found) - 2 * self.chance else None

    @property
    def verdict(self) -> Verdict:
        """`fits`, `chance`, `shifted`, or `unknown` where no two items have anything in common."""
        if self.better_shift is not None:
            return "shifted"
        if self.highest == 0 and self.found == 0:
            return "unknown"
        return "fits" if self.found > self.highest else "chance"


def alignment(
    near: Index,
    queries: Index,
    items: Index,
    order: Index,
    commons: Mapping[str, Common],
    seed: int,
) -> list[Fit]:
    """Measure what the nearest neighbours have in common, and what random ones would.

    Args:
        near: Neighbours of some rows of the vectors, shape (m, k).
        queries: These rows, (m,).
        items: Item of each row, (n,).
        order: The rows in the order of the set's file, (n,).
        commons: What items may have in common, by its name.
        seed: Of the random deals.

    Returns:
        A `Fit` by each of `commons`.
    """
    left, right = np.repeat(queries, near.shape[1]), near.ravel()
    rng = np.random.default_rng(seed)
    deals = [rng.permutation(items) for _ in range(DEALS)]
    # Vector `order[p]` goes to the item at place p + shift of the file.
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    moved = {s: items[order[(place + s) % order.size]] for s in SHIFTS if order.size > 2}
    fits = []
    for kind, common in commons.items():

        def mean(owner: Index, common: Common = common) -> float:
            return float(common(owner[left], owner[right]).mean()) if left.size else 0.0

        dealt = [mean(owner) for owner in deals]
        shifted = {s: mean(owner) for s, owner in moved.items()}
        fits.append(Fit(kind, mean(items), float(np.mean(dealt)), max(dealt), shifted))
    return fits
