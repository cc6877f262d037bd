"""Vectors in two dimensions: their principal components, and a map that keeps neighbours together.

The map is that of UMAP (McInnes, Healy and Melville, arXiv 1802.03426): the fuzzy graph of each
vector's nearest neighbours, laid out by attraction along its edges and repulsion from random
others, beginning at the principal components. As in the variant t-UMAP, closeness on the map is
1 / (1 + d²). All draws are seeded and made one after the other, so the same vectors give the same
map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Points = NDArray[np.float32]

NEIGHBOURS = 15
COMPONENTS = 30
"""In which neighbours are looked for."""
_EPOCHS = 200
_NEGATIVES = 5
_CELLS = 1 << 24


def principal(unit: Points, k: int = 2) -> tuple[Points, float]:
    """Return the k first principal components, (n, k), and the first two's share of the variance.

    By randomised subspace iteration; each component's sign is that which makes its largest weight
    positive.
    """
    import torch

    x = torch.from_numpy(unit - unit.mean(axis=0, dtype=np.float64).astype(np.float32))
    total = float(x.double().square().sum())
    k = min(k, *x.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, directions = torch.pca_lowrank(x, q=min(k + 10, *x.shape), center=False, niter=3)
    directions = directions[:, :k]
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    found = (x @ directions).numpy()
    share = float(np.square(found[:, :2], dtype=np.float64).sum()) / total if total > 0 else 0.0
    return found, share


def neighbour_map(components: Points, seed: int = 0) -> Points:
    """Return a place for each vector, (n, 2), such that near vectors are near one another.

    Args:
        components: Principal components, (n, c), n > 3, of which the first two are the start.
        seed: Of the draws.
    """
    n = len(components)
    near, distances = _nearest(components, min(NEIGHBOURS, n - 1))
    graph = _fuzzy(near, distances).tocoo()
    start = np.zeros((n, 2), np.float32)
    start[:, : components.shape[1]] = components[:, :2]
    scale = np.abs(start).max()
    start *= 10 / scale if scale > 0 else 1
    # Equal vectors begin beside one another, not on one another.
    start += np.random.default_rng(seed).normal(0, 1e-3, start.shape).astype(np.float32)
    every = (graph.data.max() / graph.data).astype(np.float64)
    _kernel()(start, graph.row.astype(np.int64), graph.col.astype(np.int64), every, _EPOCHS, seed)
    return start


def _nearest(x: Points, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row numbers and distances of the k nearest others, (n, k), exactly, in blocks."""
    n = len(x)
    squares = np.square(x, dtype=np.float64).sum(axis=1).astype(np.float32)
    near = np.empty((n, k), np.int64)
    distances = np.empty((n, k))
    step = max(1, _CELLS // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(n, start + step))
        found = squares[rows, None] + squares - 2 * (x[rows] @ x.T)
        found[np.arange(rows.size), rows] = np.inf
        near[rows] = np.argpartition(found, k - 1, axis=1)[:, :k]
        difference = x[rows, None].astype(np.float64) - x[near[rows]]
        distances[rows] = np.sqrt(np.square(difference).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(near, order, 1), np.take_along_axis(distances, order, 1)


def _fuzzy(near: NDArray[np.int64], distances: NDArray[np.float64]) -> sparse.csr_array:
    """The weights of edges: 1 to the nearest, and log2 k in all, made symmetric."""
    n, k = near.shape
    beyond = distances - distances[:, :1]
    low, high = np.zeros(n), np.full(n, np.inf)
    width = np.ones(n)
    wanted = np.log2(max(k, 2))
    for _ in range(64):
        total = np.exp(-beyond / width[:, None]).sum(axis=1)
        low = np.where(total < wanted, width, low)
        high = np.where(total >= wanted, width, high)
        width = np.where(np.isinf(high), width * 2, (low + high) / 2)
        width = np.clip(width, 1e-12, 1e12)
    weights = np.maximum(np.exp(-beyond / width[:, None]), 1e-6)
    rows = np.repeat(np.arange(n), k)
    one = sparse.csr_array((weights.ravel(), (rows, near.ravel())), shape=(n, n))
    other = one.T.tocsr()
    both = sparse.csr_array(one + other - one.multiply(other))
    both.sort_indices()
    return both


@cache
def _kernel() -> Callable[..., Any]:
    import numba

    try:
        return cast(Callable[..., Any], numba.njit(cache=True)(_lay_out))
    except RuntimeError:  # no writable folder for numba's cache
        return cast(Callable[..., Any], numba.njit(_lay_out))


def _lay_out(
    y: Points,
    heads: NDArray[np.int64],
    tails: NDArray[np.int64],
    every: NDArray[np.float64],
    epochs: int,
    seed: int,
) -> None:
    """Move the points y (n, 2), in place: edge e is drawn once in `every[e]` epochs."""
    n = y.shape[0]
    # With plain numbers numba would compute in double precision.
    one, two, four, least = np.float32(1), np.float32(2), np.float32(4), np.float32(0.001)
    state = np.uint64(seed * 2654435761 + 88172645463325252)
    due = every.copy()
    for epoch in range(epochs):
        rate = np.float32(1.0 - epoch / epochs)
        for edge in range(heads.size):
            if due[edge] > epoch + 1:
                continue
            due[edge] += every[edge]
            i, j = heads[edge], tails[edge]
            d0, d1 = y[i, 0] - y[j, 0], y[i, 1] - y[j, 1]
            square = d0 * d0 + d1 * d1
            if square > 0:
                pull = -two / (one + square)
                g0 = min(four, max(-four, pull * d0)) * rate
                g1 = min(four, max(-four, pull * d1)) * rate
                y[i, 0] += g0
                y[i, 1] += g1
                y[j, 0] -= g0
                y[j, 1] -= g1
            for _ in range(_NEGATIVES):
                # xorshift64: numba's own generator would share its state with other threads.
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                other = np.int64((state >> np.uint64(11)) % np.uint64(n))
                if other == i:
                    continue
                d0, d1 = y[i, 0] - y[other, 0], y[i, 1] - y[other, 1]
                square = d0 * d0 + d1 * d1
                push = two / ((least + square) * (one + square))
                y[i, 0] += min(four, max(-four, push * d0)) * rate
                y[i, 1] += min(four, max(-four, push * d1)) * rate
