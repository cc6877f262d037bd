"""Draws by item id: what an item gets depends on its id, not on its row or on other items."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keys_of(item_ids: Sequence[str], seed: int, purpose: str) -> list[bytes]:
    """Return 16 random-looking bytes per item: uniform over seeds, purposes and ids."""
    start = hashlib.blake2b(f"{seed}\0{purpose}\0".encode(), digest_size=16)
    keys = []
    for one in item_ids:
        state = start.copy()
        state.update(one.encode())
        keys.append(state.digest())
    return keys


def ranks_of(item_ids: Sequence[str], seed: int, purpose: str) -> NDArray[np.int64]:
    """Return each item's place in a random order of all, shape (n,): a permutation of 0 … n-1."""
    order = sorted(range(len(item_ids)), key=keys_of(item_ids, seed, purpose).__getitem__)
    ranks = np.empty(len(item_ids), np.int64)
    ranks[order] = np.arange(len(item_ids))
    return ranks


def gaussian(
    like: NDArray[np.float32], item_ids: Sequence[str], seed: int, purpose: str
) -> NDArray[np.float32]:
    """Draw a Gaussian vector per item, with mean and variance of each column of `like` (n, dim)."""
    mean, spread = like.mean(0, dtype=np.float64), like.std(0, dtype=np.float64)
    out = np.empty((len(item_ids), like.shape[1]), np.float32)
    for row, key in enumerate(keys_of(item_ids, seed, purpose)):
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        out[row] = mean + spread * rng.standard_normal(mean.size)
    return out
