"""Dense missing-content policies: whole matrices, inverses and exponentials, from the formulas.

Everything is float64 and as plain as it can be; nothing here is shared with mmbench.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
REACHED = 1e-4  # smaller sums of weights don't count, as documented


def co_counts(users: NDArray[np.int64], items: NDArray[np.int64], n: int) -> Matrix:
    """C = X^T X."""
    x = np.zeros((users.max() + 1, n))
    x[users, items] = 1
    return x.T @ x


def adjacency(c: Matrix, k: int, order: NDArray[np.int64], form: str) -> Matrix:
    """A; `order` breaks the ties that the form leaves."""
    n, popularity = len(c), np.diag(c)
    a = np.zeros((n, n))
    for i in range(n):
        if form == "corrected":
            near = [j for j in range(n) if j != i and c[i, j] > 0]
            near.sort(key=lambda j: (-c[i, j], popularity[j], order[j]))
        else:
            near = sorted(range(n), key=lambda j: (-c[i, j], j != i, order[j]))
        a[i, near[:k]] = 1
    return np.maximum(a, a.T) if form == "corrected" else a


def normalised(a: Matrix) -> Matrix:
    degree = a.sum(1)
    root = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-300)), 0)
    return root[:, None] * a * root[None, :]


def operator(a: Matrix, policy: str, form: str, k: int, alpha: float, t: float) -> Matrix:
    """S of a policy."""
    n = len(a)
    if policy == "neighbours":
        return a if form == "corrected" else a / min(k, n)
    if policy == "multihop":
        return normalised(a - np.diag(np.diag(a)))
    h = normalised(a + np.eye(n))
    if policy == "pagerank":
        s = alpha * np.linalg.inv(np.eye(n) - (1 - alpha) * h)
    else:
        s = scipy.linalg.expm(-t * (np.eye(n) - h))
    if form == "paper":
        for j in range(n):
            steps = np.round(s[:, j] / s[:, j].max() * 4096)  # less than a step apart is equal
            s[np.argsort(-steps, kind="stable")[min(k, n) :], j] = 0
        total = s.sum(0)
        s = s / np.where(total > 0, total, 1)
    return s


def fill(
    s: Matrix, x: Matrix, known: NDArray[np.bool_], hops: int, form: str
) -> tuple[Matrix, NDArray[np.bool_]]:
    """The filled vectors, and which rows have one."""
    x, there = np.where(known[:, None], x, 0), known.copy()
    for _ in range(hops):
        if form == "paper":
            x, there = np.where(known[:, None], x, s @ x), np.ones_like(known)
            continue
        weights = s[:, there].sum(1)
        taken = ~known & (weights > REACHED)
        new = x.copy()
        new[taken] = (s[:, there] @ x[there])[taken] / weights[taken][:, None]
        x, there = new, there | taken
    return x, there


def harmonic(a: Matrix, x: Matrix, known: NDArray[np.bool_]) -> Matrix:
    """The limit of feature propagation: known rows held, all others solve (I - Ã) x = 0.

    Every item must have a way to a known one.
    """
    h, out = normalised(a), x.copy()
    free = ~known
    system = np.eye(free.sum()) - h[np.ix_(free, free)]
    out[free] = np.linalg.solve(system, h[np.ix_(free, known)] @ x[known])
    return out
