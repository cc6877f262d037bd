"""Whether vectors belong to the items whose ids they bear, by content alone.

Items that belong together, because their texts share rare words or the same users chose them, have
vectors more alike than others. With the rows of a set moved against its ids they have not:

    T(s) = mean over related pairs (i, j) of <v_(i+s), v_(j+s)>,  v of length 1 and centred
    z(s) = (T(s) - mean of T over permutations of the rows) / their standard deviation

A shift s that does much better than none is where the vectors belong. If T(0) is no better than
chance by any relation, ids were shuffled, or the vectors say nothing of items: both make a run
useless in the same way, and no statistic can tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mmbase.checks.kit import Found
from mmbase.checks.subject import Dataset, Vectors
from mmbase.layout import counted

SHIFTS = (1, -1, 2, -2, 3, -3)
"""Where, in rows from an item's own, its vector may be."""
ENOUGH = 200
"""Pairs from which a relation can show a shift, which needs to stand out."""
SURE_PAIRS, SURE_ITEMS = 3_000, 300
"""Pairs, and items with a vector, from which sound vectors are never as alike as chance makes them.

Weak ones are with fewer: half of all draws of 1,500 items of TikTok, whose sounds say little.
"""
TEXTS = "texts"
"""The relation of items whose texts share rare words."""
CHANCE = 3.0
"""z below which pairs are no more alike than chance."""
CERTAIN = 6.0
"""z above which a shift is where vectors belong, and by how much it must beat the rows as is."""
_PERMUTATIONS = 40


def scores(
    vectors: Vectors, pairs: list[tuple[str, str]], *, sure: bool = False
) -> dict[int, float]:
    """Return z by shift, 0 first; empty where too few pairs have vectors (to be `sure`)."""
    n = len(vectors.sketch)
    place = {name: row for row, name in enumerate(vectors.ids[:n].tolist())}
    rows = np.array(
        [(place[a], place[b]) for a, b in pairs if a in place and b in place and a != b], np.int64
    ).reshape(-1, 2)
    there = vectors.ok[:n]
    rows = rows[there[rows].all(1)]
    if len(rows) < ENOUGH or (sure and (len(rows) < SURE_PAIRS or there.sum() < SURE_ITEMS)):
        return {}
    # Shifts and permutations move vectors among the rows that have one: gaps would tell of a shift.
    present = np.flatnonzero(there)
    rank = np.full(n, -1, np.int64)
    rank[present] = np.arange(present.size)
    ranked, sketch = rank[rows], vectors.sketch[present]
    draws = np.random.default_rng(0)
    chance = [_alike(sketch[draws.permutation(len(sketch))], ranked) for _ in range(_PERMUTATIONS)]
    centre, spread = float(np.mean(chance)), float(np.std(chance)) or 1.0
    return {s: (_alike(np.roll(sketch, -s, 0), ranked) - centre) / spread for s in (0, *SHIFTS)}


def _alike(sketch: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
    return float(np.einsum("ij,ij->i", sketch[rows[:, 0]], sketch[rows[:, 1]]).mean())


def _best(found: dict[int, float]) -> int:
    return max(found, key=lambda shift: found[shift])


def shifted(dataset: Dataset) -> Iterator[Found]:
    """Yield sets whose vectors belong to the ids some rows away."""
    for one in dataset.sets:
        for source, pairs in dataset.related.items():
            found = scores(one, pairs)
            if found and (shift := _best(found)) and found[shift] > found[0] + CERTAIN:
                way = "before" if shift > 0 else "after"
                what = (
                    f"vectors fit the items {counted(abs(shift), 'row')} {way} theirs: by {source} "
                    f"z = {found[shift]:.1f} there and {found[0]:.1f} where they are"
                )
                yield Found(one.where, what)
                break


def shuffled(dataset: Dataset) -> Iterator[Found]:
    """Yield sets whose vectors are not more alike for related items, by any relation.

    Texts alone are no judge of pictures and sounds: two shirts are alike whatever their titles say.
    """
    for one in dataset.sets:
        by = {source: scores(one, pairs, sure=True) for source, pairs in dataset.related.items()}
        told = {source: found for source, found in by.items() if found}
        if not told or (set(told) == {TEXTS} and not one.is_textual):
            continue
        if any(found[0] >= CHANCE for found in told.values()):
            continue
        figures = ", ".join(f"z = {found[0]:.1f} by {source}" for source, found in told.items())
        what = f"vectors of related items are no more alike than those of any two ({figures})"
        yield Found(one.where, what)
