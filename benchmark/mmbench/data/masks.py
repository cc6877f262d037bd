"""Missing content that is induced: which of the items that have a vector lose it.

An item's place in the order of losing is drawn by its id (`mmbench.data.draws`), and a share of the
order's first items loses the vector: what is missing at 0.3 is missing at 0.5, and neither the
split's other rows nor the order of the files moves an item. Items of training and others (held-out
rows and catalogue only) are masked apart, each group by the same share, so that cold items are no
better described than those a model was trained on, and training doesn't depend on what is held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmbench.data.draws import ranks_of

Present = NDArray[np.bool_]

Share = Annotated[float, Field(ge=0, lt=1)]
"""Of the vectors that a modality has."""

Pattern = Literal["random", "unpopular", "popular", "jointly"]
"""Who loses content first.

`random`: anybody, in each modality another order. `jointly`: anybody, the same items in all named
modalities. `unpopular`, `popular`: the items with the fewest, or most, training users; ties at
random.
"""


def masked(
    present: Mapping[str, Present],
    shares: Mapping[str, float],
    item_ids: Sequence[str],
    popularity: NDArray[np.int64],
    *,
    pattern: Pattern = "random",
    seed: int = 0,
) -> dict[str, Present]:
    """Return which items keep their vectors, by modality of `shares`.

    Args:
        present: Modality to which items have a vector, shape (n_items,).
        shares: Modality to the share, in [0, 1), of the items with a vector that lose it; of
            `jointly`, of the items with a vector in any of these modalities.
        item_ids: Ids of the items, those of training first.
        popularity: Training users of each item of training, shape (n_trained,).
        pattern: See `Pattern`.
        seed: Of the order.
    """
    if not shares:
        return {}
    n_items, n_trained = len(item_ids), len(popularity)
    users = np.concatenate([popularity, np.zeros(n_items - n_trained, np.int64)])
    first = {"popular": -users, "unpopular": users}.get(pattern, np.zeros(n_items, np.int64))
    any_of = np.logical_or.reduce([present[modality] for modality in shares])
    kept = {}
    for modality, share in shares.items():
        purpose = "mask" if pattern == "jointly" else f"mask {modality}"
        order = np.lexsort((ranks_of(item_ids, seed, purpose), first))
        eligible = any_of if pattern == "jointly" else present[modality]
        kept[modality] = present[modality].copy()
        for group in (order[order < n_trained], order[order >= n_trained]):
            theirs = group[eligible[group]]
            kept[modality][theirs[: round(share * theirs.size)]] = False
    return kept
