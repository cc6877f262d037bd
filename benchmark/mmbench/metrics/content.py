"""Diversity and novelty by content: cosine distances in any feature set of the store.

The mean over all pairs of two groups of unit vectors is the inner product of the groups' means, so
no function compares items with items: time and memory grow with the lists and the vectors'
width, never with items x items. Letters as in `mmbench.metrics.judged_lists`.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.item_data import Values, required
from mmbench.metrics.judged_lists import NOVELTY, Judged, over_evaluated
from mmbench.metrics.ranking import divide


@over_evaluated(
    "ILD",
    formula="mean over E of Σ_i≠j (1 - cos(x_i, x_j)) / (n (n - 1)), i and j the n items of L[:k] "
    "with a vector x",
    source="intra-list distance; Zhang and Hurley, Avoiding monotony (RecSys 2008), as in "
    f"{NOVELTY}",
    bounds=(0.0, 2.0),
    aliases=("IntraListDistance", "IntraListDiversity", "ContentDiversity"),
    needs=("content",),
)
def intra_list_distance(lists: Judged, k: int) -> Values:
    """Mean cosine distance of two items of each list; not defined for fewer than two vectors.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "ILD")
    listed = content.indicator(*lists.listed(k), lists.n_users)
    # |Σ_i x_i|² of unit vectors holds the n cosines of the items with themselves.
    n = np.diff(listed.indptr).astype(np.float64)
    cosines = content.inner(listed, listed) - n  # of all ordered pairs of different items
    # Rounding may leave the range by 1e-16.
    return np.asarray(np.clip(1.0 - divide(cosines, n * (n - 1.0)), 0.0, 2.0))


@over_evaluated(
    "Unexpectedness",
    formula="mean over E of the mean of 1 - cos(x_i, x_j) over i in L[:k] and j in T_u, where "
    "both have a vector x",
    source=f"distance of a list to its user's profile; {NOVELTY}",
    higher_is_better=None,
    bounds=(0.0, 2.0),
    aliases=("Unexp", "ContentNovelty", "ProfileDistance"),
    needs=("content",),
)
def unexpectedness(lists: Judged, k: int) -> Values:
    """Mean cosine distance of a list's items to the user's training items; NaN without vectors.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "Unexpectedness")
    listed = content.indicator(*lists.listed(k), lists.n_users)
    known = content.indicator(*lists.trained, lists.n_users)
    n, m = (np.diff(one.indptr).astype(np.float64) for one in (listed, known))
    # The mean over all n m pairs: <Σ_i x_i, Σ_j x_j> / (n m) of unit vectors.
    return np.asarray(np.clip(1.0 - divide(content.inner(listed, known), n * m), 0.0, 2.0))


@over_evaluated(
    "VisDiv",
    formula="mean over E of |mean of x_j / |x_j| over j in T_u - mean of x_i / |x_i| over i in "
    "L[:k]|, of items with a vector x",
    source="visual diversity; Deldjoo et al., A study on the relative importance of convolutional "
    "neural networks (CVPR workshops 2021), there after t-SNE to two dimensions",
    higher_is_better=None,
    bounds=(0.0, 2.0),
    aliases=("VisualDiversity", "CentroidDistance"),
    needs=("content",),
)
def visual_diversity(lists: Judged, k: int) -> Values:
    """Distance of the centroids of a list and of the user's training items; NaN without vectors.

    Raises:
        UsageError: The lists were judged without content.
    """
    content = required(lists.content, "content", "VisDiv")
    listed = content.indicator(*lists.listed(k), lists.n_users)
    known = content.indicator(*lists.trained, lists.n_users)
    return np.clip(content.distance(listed, known), 0.0, 2.0)
