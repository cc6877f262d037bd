"""Controls: content of the same form that says nothing about its item.

If a model does as well with one of them as with the real vectors, its gain is not content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.data.draws import gaussian, ranks_of

Control = Literal["shuffled", "noise", "constant", "absent"]
"""What replaces a modality's vectors.

`shuffled`: each item with a vector gets that of another one. `noise`: Gaussian vectors with mean
and variance of the real ones, by dimension. `constant`: their mean. `absent`: nothing, the modality
is left out of the model.
"""


def replaced(
    vectors: NDArray[np.float32],
    present: NDArray[np.bool_],
    n_trained: int,
    control: Control,
    item_ids: Sequence[str],
    *,
    seed: int = 0,
    modality: str = "",
) -> NDArray[np.float32]:
    """Return the vectors that a control puts in place of the present ones; others stay.

    Items of training are fitted on and shuffled among themselves, other items among themselves:
    what is held out changes nothing that a model is trained on.

    Args:
        vectors: Shape (n_items, dim).
        present: Which items have a vector, shape (n_items,); after masks.
        n_trained: The first so many items are those of training.
        control: See `Control`; not `absent`.
        item_ids: Ids of the items, n_items strings.
        seed: Of permutation and noise.
        modality: Part of what is drawn: each modality is shuffled in its own way.
    """
    rows, out = np.flatnonzero(present), vectors.copy()
    trained = rows[rows < n_trained]
    if control == "shuffled":
        # By two orders of the ids: the r-th of one gets the vector of the r-th of the other.
        givers, takers = (
            ranks_of(item_ids, seed, f"{side} {modality}") for side in ("giver", "taker")
        )
        for group in (trained, rows[rows >= n_trained]):
            out[group[np.argsort(takers[group])]] = vectors[group[np.argsort(givers[group])]]
    elif control == "noise":
        ids = [item_ids[row] for row in rows.tolist()]
        out[rows] = gaussian(vectors[trained], ids, seed, f"noise {modality}")
    else:
        out[rows] = vectors[trained].mean(0, dtype=np.float64).astype(np.float32)
    return out
