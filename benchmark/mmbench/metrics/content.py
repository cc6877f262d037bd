"""Diversity and novelty of lists by what the items contain: cosine distances in any feature set of the store.

The mean over all pairs of two groups of unit vectors is the inner product of the groups' means, so
neither function compares items with items: time and memory grow with the lists and the vectors'
width, never with items x items. Letters as in `mmbench.metrics.judged_lists`.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.item_data import Values, required
from mmbench.metrics.judged_lists import Judged
from mmbench.metrics.ranking import divide


def intra_list_distance(lists: Judged, k: int) -> Values:
    """Mean cosine distance of two different items of each list; not defined for fewer than two items with a vector.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "ILD")
    listed = content.indicator(*lists.listed(k), lists.n_users)
    n = np.diff(listed.indptr).astype(np.float64)
    cosines = content.inner(listed, listed) - n  # of all ordered pairs of different items
    return np.asarray(
        np.clip(1.0 - divide(cosines, n * (n - 1.0)), 0.0, 2.0)
    )  # rounding may leave the range by 1e-16


def unexpectedness(lists: Judged, k: int) -> Values:
    """Mean cosine distance of each list's items to the user's training items; not defined where either has no vector.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "Unexpectedness")
    listed = content.indicator(*lists.listed(k), lists.n_users)
    known = content.indicator(*lists.trained, lists.n_users)
    n, m = (np.diff(one.indptr).astype(np.float64) for one in (listed, known))
    return np.asarray(np.clip(1.0 - divide(content.inner(listed, known), n * m), 0.0, 2.0))
