"""The graphs of the models and their normalisations, as sparse operators.

Nodes of the user-item graph: users are rows 0 … n_users-1, items follow. Degrees and weights are
computed in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.errors import ShapeError
from mmbench.ops.sparse import SparseMatrix, SparsePattern

DEGREE_EPSILON = 1e-7  # what BM3's and FREEDOM's code adds to each degree


def bipartite(train: TrainSet) -> SparsePattern:
    """The user-item adjacency A over users and items: (u, i) and (i, u) for each training pair.

    The first n_edges entries are the pairs in the order of `train`; the others are sorted by (item,
    user), see `item_order`. Users and items without a pair have empty rows.

    Args:
        train: The training pairs.

    Returns:
        A symmetric pattern of n_users + n_items rows and 2 n_edges entries.
    """
    order = item_order(train)
    degree = np.concatenate([train.user_degree, train.popularity])
    indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int64)
    indices = np.concatenate([train.items + train.n_users, train.users[order]])
    return SparsePattern(torch.from_numpy(indptr), torch.from_numpy(indices), degree.size)


def item_order(train: TrainSet) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The permutation that sorts the training pairs by (item, user): slot k of the item side is pair `order[k]`."""
    return np.argsort(train.items, kind="stable").astype(np.int64)


def with_self_loops(pattern: SparsePattern) -> SparsePattern:
    """The pattern with every diagonal entry present: A + I for an adjacency without loops."""
    n = _square(pattern)
    loop = torch.arange(n, device=pattern.indices.device)
    rows, columns = torch.cat([pattern.row, loop]), torch.cat([pattern.indices, loop])
    return SparsePattern.from_edges(rows, columns, (n, n))[0]


def symmetric_normalised(
    pattern: SparsePattern,
    *,
    power: float = 0.5,
    epsilon: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> SparseMatrix:
    """D^-p A D^-p of a symmetric adjacency: entry (r, c) weighs (d_r + eps)^-p (d_c + eps)^-p.

    BM3 and FREEDOM: p = 1/2 with `DEGREE_EPSILON`. LightGCN: p = 1/2. LATTICE as the paper's
    framework runs it: p = 1 on `with_self_loops`, whose degrees are those of A + I.

    Args:
        pattern: A, symmetric; the degrees are its row counts.
        power: p.
        epsilon: Added to each degree.
        dtype: Of the values.
    """
    _square(pattern)
    scale = _inverse_power(pattern.degree.double() + epsilon, power)
    return SparseMatrix(
        pattern, (scale[pattern.row] * scale[pattern.indices]).to(dtype), symmetric=True
    )


def row_normalised(pattern: SparsePattern, *, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    """D^-1 A: the mean over the entries of each row, zero for an empty one; not symmetric.

    MMGCN on the adjacency; LATTICE as its authors run it on `with_self_loops`.
    """
    scale = _inverse_power(pattern.degree.double(), 1.0)
    return SparseMatrix(pattern, scale[pattern.row].to(dtype))


def laplacian(pattern: SparsePattern, values: Tensor) -> Tensor:
    """The values of S^-1/2 W S^-1/2, S the row sums of W; differentiable with respect to the values.

    Rows whose sum is not positive get weight zero, in their row and in their column: cosines may be
    negative, and the square root of a negative sum would turn the whole graph into NaN.

    Args:
        pattern: Where the entries of W are, square.
        values: W, shape (nnz,).

    Returns:
        w_ij / sqrt(s_i s_j), shape (nnz,).

    Source: Zhang et al., LATTICE (ACM MM 2021), equation 5, with the row sums on both sides.
    """
    _square(pattern)
    sums = values.new_zeros(pattern.shape[0]).index_add(0, pattern.row, values)
    scale = _inverse_power(sums, 0.5)
    return values * scale[pattern.row] * scale[pattern.indices]


@dataclass(frozen=True, eq=False)
class NeighbourUnion:
    """The union of several lists of neighbours, and where the entries of each list are in it.

    A weighted sum of kNN graphs on one pattern: `union.combine([w * cosines for …])`.

    Attributes:
        pattern: Shape (n, n), with every diagonal entry.
        entries: For each list the entry of each neighbour, shape (n, k_m).
        diagonal: The entry of each node's self loop, shape (n,).
    """

    pattern: SparsePattern
    entries: tuple[Tensor, ...]
    diagonal: Tensor

    @classmethod
    def of(cls, *neighbours: Tensor) -> NeighbourUnion:
        """The union of lists of neighbours, each of shape (n, k_m), int64, and of the diagonal."""
        n = neighbours[0].shape[0]
        if any(part.ndim != 2 or part.shape[0] != n for part in neighbours):
            raise ShapeError(
                f"NeighbourUnion: lists {[tuple(part.shape) for part in neighbours]} must have "
                "equal rows"
            )
        node = torch.arange(n, device=neighbours[0].device)
        rows = torch.cat([node.repeat_interleave(part.shape[1]) for part in neighbours] + [node])
        columns = torch.cat([part.reshape(-1) for part in neighbours] + [node])
        pattern, entry = SparsePattern.from_edges(rows, columns, (n, n))
        sizes = [part.numel() for part in neighbours]
        *parts, diagonal = torch.split(entry, [*sizes, n])
        return cls(
            pattern,
            tuple(e.view(part.shape) for e, part in zip(parts, neighbours, strict=True)),
            diagonal,
        )

    def combine(self, weights: Sequence[Tensor | None], *, unit_diagonal: bool = False) -> Tensor:
        """The sum of the weighted lists as values of `pattern`; differentiable with respect to the weights.

        Args:
            weights: For each list the weight of each neighbour, shape (n, k_m); None leaves the
                list out.
            unit_diagonal: Set each self loop to exactly 1, whatever the lists say.

        Returns:
            Shape (nnz,); an entry that no list weighs is zero.

        Raises:
            ShapeError: Not one weight array per list, or none at all.
        """
        given = [(e, w) for e, w in zip(self.entries, weights, strict=True) if w is not None]
        if not given or any(e.shape != w.shape for e, w in given):
            raise ShapeError(
                "NeighbourUnion.combine: give each list weights of its own shape, or None"
            )
        values = given[0][1].new_zeros(self.pattern.nnz)
        for entries, weight in given:
            values = values.index_add(0, entries.reshape(-1), weight.reshape(-1))
        return values.index_fill(0, self.diagonal, 1.0) if unit_diagonal else values


def _inverse_power(sums: Tensor, power: float) -> Tensor:
    # The inner where keeps 0 ** -p, and its infinite derivative, out of the backward.
    positive = sums > 0
    return torch.where(positive, torch.where(positive, sums, 1.0) ** -power, 0.0)


def _square(pattern: SparsePattern) -> int:
    if pattern.shape[0] != pattern.shape[1]:
        raise ShapeError(
            f"a graph needs a square matrix (got {pattern.shape[0]} x {pattern.shape[1]})"
        )
    return pattern.shape[0]
