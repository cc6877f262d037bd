"""Stand-in content vectors, to try a study out where the real ones cannot be had.

They say nothing about real content.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import numpy_rng

RANK = 32
NOISE = 1.0


def standin_vectors(train: TrainSet, dim: int, seed: int) -> NDArray[np.float32]:
    """Make vectors from taste: an item's users, compressed, rotated at random, with noise.

    Args:
        train: The training pairs; nothing else is used.
        dim: Length of a vector.
        seed: Of rotation and noise; give each modality its own.

    Returns:
        Shape (n_items, dim), float32: the leading right singular vectors of the user-item matrix,
        rows at unit length, times a Gaussian matrix, plus as much Gaussian noise.
    """
    matrix = sp.csr_matrix(
        (np.ones(train.n_edges), (train.users, train.items)),
        shape=(train.n_users, train.n_items),
        dtype=np.float64,
    )
    rank = min(RANK, *(n - 1 for n in matrix.shape))
    rng = numpy_rng(seed, "stand-in", dim)
    _, values, right = svds(matrix, k=rank, v0=np.ones(min(matrix.shape)))
    taste = right.T * np.sqrt(values)
    taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-12)
    signal = taste @ rng.standard_normal((rank, dim))
    return np.asarray(signal + NOISE * rng.standard_normal(signal.shape), np.float32)
