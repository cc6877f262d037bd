"""The graph of users who have items in common, and what each takes from whom.

Of each user the k with the most common items are kept: by count descending, equal counts by
ascending user row. Nobody is on their own list, nor is anyone without a common item, so that a list
may be shorter than k. Counts are never held for more than one user and thread at a time.

Sources: Wang et al., DualGNN (IEEE TMM 2023); Zhou et al., DRAGON (ECAI 2023).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.philox import Stream
from mmbench.ops.graph import item_order
from mmbench.ops.kernels import run, split
from mmbench.ops.sparse import SparseMatrix, SparsePattern

Weighting = Literal["softmax", "mean"]
"""What the users of a list weigh: softmax of the counts, or all the same; 1 together."""


def most_in_common(train: TrainSet, k: int) -> tuple[SparsePattern, Tensor]:
    """Of each user the k >= 1 others with the most common items.

    Returns:
        Pattern (n_users, n_users), a row's entries best first, and the counts, (nnz,) int64.
    """
    from mmbench.ops.kernels import co_users as kernels

    k = min(k, train.n_users)
    counts = np.zeros((train.n_users, k), np.int64)
    users = np.full((train.n_users, k), train.n_users, np.int64)
    item_users = train.users[item_order(torch.from_numpy(train.items)).numpy()]
    item_indptr = np.concatenate([[0], np.cumsum(train.popularity)])
    # Threads share the pairs of users that meet at an item, whose numbers are skewed.
    meetings = np.concatenate([[0], np.cumsum(train.popularity[train.items])])[train.indptr]
    bounds = split(train.n_users, work=int(meetings[-1]), indptr=meetings)
    graph = train.indptr, train.items, item_indptr, item_users
    run(kernels.most_in_common, bounds, *graph, counts, users)
    found = counts > 0
    indptr = np.concatenate([[0], np.cumsum(found.sum(1))])
    pattern = SparsePattern(torch.from_numpy(indptr), torch.from_numpy(users[found]), train.n_users)
    return pattern, torch.from_numpy(counts[found])


def co_users(
    train: TrainSet, k: int, weighting: Weighting, *, dtype: torch.dtype = torch.float32
) -> SparseMatrix:
    """The matrix (n_users, n_users) whose row u averages over the list of u; empty without one."""
    pattern, counts = most_in_common(train, k)
    if weighting == "mean":
        weights = torch.ones(pattern.nnz, dtype=torch.float64)
    else:
        # A list begins with its largest count: no exponential overflows.
        largest = counts[pattern.indptr[pattern.row]]
        weights = (counts - largest).double().exp()
    return SparseMatrix(pattern, _shares(pattern, weights).to(dtype))


def repeated(matrix: SparseMatrix, times: Tensor) -> SparseMatrix:
    """The matrix of `co_users` when users stand on a list more than once.

    `times` (nnz,) says how often: an entry weighs its own weight as many times, 1 together.
    """
    weights = _shares(matrix.pattern, matrix.values.double() * times)
    return SparseMatrix(matrix.pattern, weights.to(matrix.values.dtype))


def repetitions(pattern: SparsePattern, k: int, stream: Stream) -> Tensor:
    """How often each user stands on a list that is filled up to k, (nnz,) int64, every one once.

    The authors' code fills a list of n < k users up, one place after the other, by a random entry
    of the list so far. Then every way to share k places among n users, at least one each, is
    equally likely (Pólya's urn, which begins with one ball of each colour). Such a way is a choice
    of n - 1 of the k - 1 gaps between the places, drawn here at once.
    """
    times, lists = torch.zeros_like(pattern.indices), pattern.degree.nonzero().flatten()
    shape = len(lists), k - 1
    high, low, *_ = stream.words(shape[0] * shape[1])
    # The first n - 1 gaps in random order are those between two users.
    place = torch.argsort((high << 31 | low >> 1).view(shape), stable=True).argsort()
    between = place < pattern.degree[lists, None] - 1
    # Whose each place is, counted from the list's first entry.
    whose = torch.nn.functional.pad(between.cumsum(1), (1, 0)) + pattern.indptr[lists, None]
    return times.index_add_(0, whose.flatten(), torch.ones_like(whose).flatten())


def _shares(pattern: SparsePattern, weights: Tensor) -> Tensor:
    """The weights (nnz,), float64, divided by the sum of their row."""
    sums = weights.new_zeros(pattern.shape[0]).index_add_(0, pattern.row, weights)
    return weights / sums[pattern.row]
