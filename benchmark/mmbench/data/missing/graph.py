"""The graph of items that the same users have, of training pairs alone.

    C        = X^T X, X the binary training pairs (n_users, n_items): C_ij users have both i and j
    near(i)  = the `k` items of the largest C_ij

`corrected`: near(i) holds no items that no user has beside i, and not i itself; of equal C_ij the
less popular j comes first (the larger cosine). A_ij = 1 if j is in near(i) or i in near(j).

`paper`: what the code behind arXiv 2408.11767 does. near(i) always holds k items: i itself, which
has the largest C_ij, and, where fewer than k items co-occur with i, items that never do. A_ij = 1
if j is in near(i), so that A is not symmetric and every row has the sum k.

Ties that are left are broken by a fixed order of the ids that is random with respect to all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.ops.sparse import SparseMatrix, SparsePattern

_PRODUCTS = 1 << 24  # multiplications of C that are done at once: bounds the memory


@dataclass(frozen=True, eq=False)
class ItemGraph:
    """An adjacency A among the items of training.

    Attributes:
        adjacency: Shape (n_items, n_items), CSR, ones, columns ascending within a row.
        k: Neighbours that were asked for, at most n_items.
    """

    adjacency: sp.csr_matrix
    k: int

    def without_loops(self) -> ItemGraph:
        """The same graph, no item its own neighbour."""
        a = self.adjacency.copy()
        a.setdiag(0)
        a.eliminate_zeros()
        return ItemGraph(a, self.k)

    def normalised(self, *, loops: bool) -> SparseMatrix:
        """D^-1/2 A D^-1/2, D the rows' sums; with `loops` of A + I. Isolated items have zeros."""
        a = self.adjacency
        if loops:
            a = (a + sp.eye(a.shape[0], format="csr")).tocsr()
        sums = np.asarray(a.sum(1), np.float64).ravel()
        root = np.divide(1, np.sqrt(sums), out=np.zeros_like(sums), where=sums > 0)
        rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
        values = a.data * root[rows] * root[a.indices]
        return matrix(sp.csr_matrix((values, a.indices, a.indptr), shape=a.shape))


def matrix(a: sp.csr_matrix) -> SparseMatrix:
    """The same matrix with float32 values, for the compiled product."""
    indptr, indices = (torch.from_numpy(x.astype(np.int64)) for x in (a.indptr, a.indices))
    values = torch.from_numpy(a.data.astype(np.float32))
    return SparseMatrix(SparsePattern(indptr, indices, a.shape[1]), values)


def corrected(train: TrainSet, k: int, order: NDArray[np.int64]) -> ItemGraph:
    """The graph in its `corrected` form.

    Args:
        train: The training pairs.
        k: Neighbours that each item may choose, >= 1.
        order: Each item's place among equals, shape (n_items,), distinct.
    """
    place = np.empty(train.n_items, np.int64)  # less popular items first
    place[np.lexsort((order, train.popularity))] = np.arange(train.n_items)
    rows, columns, _ = _nearest(train, k, place, itself=False)
    shape = (train.n_items, train.n_items)
    chosen = sp.csr_matrix((np.ones(rows.size, np.float32), (rows, columns)), shape=shape)
    both = chosen.maximum(chosen.T).tocsr()
    both.sort_indices()
    return ItemGraph(both, min(k, train.n_items))


def as_published(train: TrainSet, k: int, order: NDArray[np.int64]) -> ItemGraph:
    """The graph in its `paper` form; arguments as for `corrected`."""
    n, k = train.n_items, min(k, train.n_items)
    rows, columns, found = _nearest(train, k, order, itself=True)
    # Rows that are not full take the first items of the order that they don't have.
    first, extra = np.argsort(order), []
    indptr = np.concatenate([[0], np.cumsum(found)])
    for row in np.flatnonzero(found < k):
        own = columns[indptr[row] : indptr[row + 1]]
        # Among the first k there are k - |own| that are not its own.
        others = first[:k][~np.isin(first[:k], own)][: k - own.size]
        extra.append(np.stack([np.full(others.size, row), others]))
    if extra:
        more = np.concatenate(extra, 1)
        rows, columns = np.append(rows, more[0]), np.append(columns, more[1])
    a = sp.csr_matrix((np.ones(rows.size, np.float32), (rows, columns)), shape=(n, n))
    a.sort_indices()
    return ItemGraph(a, k)


def _nearest(
    train: TrainSet, k: int, place: NDArray[np.int64], *, itself: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the k largest co-counts of each row, and how many each row has.

    `itself`: an item's own count takes part, and comes first among equals.
    """
    shape = (train.n_users, train.n_items)
    ones = np.ones(train.n_edges, np.float32)
    seen = sp.csr_matrix((ones, train.items, train.indptr), shape=shape)
    by_item = seen.T.tocsr()
    all_rows, all_columns = [], []
    for part in _parts(train):
        block = (by_item[part] @ seen).tocoo()
        rows, columns, counts = block.row + part.start, block.col.astype(np.int64), block.data
        if not itself:
            others = rows != columns
            rows, columns, counts = rows[others], columns[others], counts[others]
        first = np.where(rows == columns, -1, place[columns])
        chosen = np.lexsort((first, -counts, rows))
        rows, columns = rows[chosen].astype(np.int64), columns[chosen]
        kept = np.arange(rows.size) - np.searchsorted(rows, rows) < k
        all_rows.append(rows[kept])
        all_columns.append(columns[kept])
    rows = np.concatenate(all_rows)
    return rows, np.concatenate(all_columns), np.bincount(rows, minlength=train.n_items)


def _parts(train: TrainSet) -> Iterator[slice]:
    """Ranges of items, of which each needs a bounded number of multiplications."""
    # The row of i is the sum of the rows of the users of i.
    cost = np.bincount(train.items, train.user_degree[train.users], train.n_items)
    total, start = np.cumsum(cost), 0
    while start < train.n_items:
        before = total[start - 1] if start else 0
        end = int(np.searchsorted(total, before + _PRODUCTS, side="right"))
        yield slice(start, max(end, start + 1))
        start = max(end, start + 1)


def product(a: SparseMatrix, x: Tensor) -> Tensor:
    """A x without gradients, whatever back end training uses."""
    with torch.no_grad():
        return a.pattern.multiply(a.values, x)
