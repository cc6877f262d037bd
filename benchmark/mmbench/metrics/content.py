"""Diversity and novelty of lists by what the items contain: cosine distances in any feature set of the store.

The mean over all pairs of two groups of unit vectors is the inner product of the groups' means, so neither function
compares items with items: time and memory grow with the lists and the vectors' width, never with items x items.
Letters as in `mmbench.metrics.judged`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmbench.core.interactions import Index
from mmbench.metrics.judged import Judged
from mmbench.metrics.ranking import divide
from mmbench.metrics.side import Content, Values, required


def intra_list_distance(lists: Judged, k: int) -> Values:
    """Mean cosine distance of two different items of each list; not defined for fewer than two items with a vector.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "ILD")
    distance = np.full(lists.n_users, np.nan)
    for block, (total, n) in _by_users(content, lists.n_users, lists.listed(k)):
        cosines = np.square(total).sum(1) - n  # of all ordered pairs of different items
        distance[block] = 1.0 - divide(cosines, n * (n - 1.0))
    return np.asarray(np.clip(distance, 0.0, 2.0))  # rounding may leave the range by 1e-16


def unexpectedness(lists: Judged, k: int) -> Values:
    """Mean cosine distance of each list's items to the user's training items; not defined where either has no vector.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "Unexpectedness")
    distance = np.full(lists.n_users, np.nan)
    profiles = _by_users(content, lists.n_users, lists.trained)
    for (block, (total, n)), (_, (known, m)) in zip(
        _by_users(content, lists.n_users, lists.listed(k)), profiles, strict=True
    ):
        distance[block] = 1.0 - divide((total * known).sum(1), n * m)
    return np.asarray(np.clip(distance, 0.0, 2.0))


def _by_users(
    content: Content, n_users: int, pairs: tuple[Index, Index]
) -> Iterator[tuple[slice, tuple[Values, Values]]]:
    """Sums of unit vectors for one block of users after the other; `pairs` are users, ascending, and items."""
    users, items = pairs
    for start in range(0, n_users, content.rows_at_a_time):
        block = slice(start, min(start + content.rows_at_a_time, n_users))
        first, last = np.searchsorted(users, [block.start, block.stop])
        yield block, content.sums(users[first:last] - start, items[first:last], block.stop - start)
