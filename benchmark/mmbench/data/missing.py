"""Missing-content policies: the vectors that stand in for absent ones.

A policy is a function of (vectors, present, n_trained) to filled vectors. Absent rows of `vectors`,
shape (n_items, dim), are NaN, and `present`, shape (n_items,), says which rows are not. The first
`n_trained` rows are the items of training: whatever a policy fits, it fits on these alone. It may
fill the array it is given. One more policy is one function and one entry in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MissingPolicy = Literal["mean", "zero"]
"""Name of a policy: the mean of the modality's present vectors, or zeros."""

Vectors = NDArray[np.float32]
Policy = Callable[[Vectors, NDArray[np.bool_], int], Vectors]


def mean(vectors: Vectors, present: NDArray[np.bool_], n_trained: int) -> Vectors:
    """Fill with the mean of the training items' present vectors."""
    fitted = vectors[:n_trained][present[:n_trained]]
    vectors[~present] = fitted.mean(0, dtype=np.float64).astype(np.float32)
    return vectors


def zero(vectors: Vectors, present: NDArray[np.bool_], n_trained: int) -> Vectors:
    """Fill with zeros: content that is similar to nothing."""
    vectors[~present] = 0
    return vectors


POLICIES: Mapping[MissingPolicy, Policy] = {"mean": mean, "zero": zero}
