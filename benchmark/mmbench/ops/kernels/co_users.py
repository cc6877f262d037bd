"""Whom each user has the most items in common with."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import kernel
from mmbench.ops.kernels.knn import insert

Array = Any


@kernel
def most_in_common(
    lo: int,
    hi: int,
    indptr: Array,
    items: Array,
    item_indptr: Array,
    item_users: Array,
    counts: Array,
    users: Array,
) -> None:
    """The best of each user lo … hi-1: by number of common items, then by the smaller row.

    `counts` and `users` (n_users, k) int64 start as 0 and n_users, which any user comes before.
    """
    n_users = indptr.shape[0] - 1
    common = np.zeros(n_users, np.int64)
    met = np.empty(n_users, np.int64)
    for u in range(lo, hi):
        n_met = 0
        for e in range(indptr[u], indptr[u + 1]):
            i = items[e]
            for f in range(item_indptr[i], item_indptr[i + 1]):
                v = item_users[f]
                if v != u:
                    if common[v] == 0:
                        met[n_met] = v
                        n_met += 1
                    common[v] += 1
        # Only who was met is looked at and set back: no pass over all users.
        for m in range(n_met):
            v = met[m]
            insert(common[v], v, counts[u], users[u])
            common[v] = 0
