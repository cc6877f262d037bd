"""The graphs of the models and their normalisations, as sparse operators.

Nodes of the user-item graph: users are rows 0 … n_users-1, items follow. Degrees and weights are
computed in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.core.philox import Stream, unit
from mmbench.errors import ShapeError
from mmbench.ops import gpu
from mmbench.ops.kernels import apply
from mmbench.ops.rows import Grouped, add_rows, grouped
from mmbench.ops.sparse import SparseMatrix, SparsePattern

DEGREE_EPSILON = 1e-7  # what BM3's and FREEDOM's code adds to each degree


def bipartite(train: TrainSet) -> SparsePattern:
    """The user-item adjacency A over users and items: (u, i) and (i, u) for each training pair.

    The first n_edges entries are the pairs in the order of `train`; the others are sorted by (item,
    user), see `item_order`. Users and items without a pair have empty rows.
    """
    users, items = torch.from_numpy(train.users), torch.from_numpy(train.items)
    return bipartite_of(users, items, train.n_users, train.n_items)


def bipartite_of(users: Tensor, items: Tensor, n_users: int, n_items: int) -> SparsePattern:
    """`bipartite` of the pairs (users, items), (n,) each, sorted by user; on their device."""
    # Rows of users hold items, shifted by n_users; rows of items hold users.
    receivers, order = torch.cat([users, items + n_users]), item_order(items)
    degree = users.new_zeros(n_users + n_items)
    degree.index_add_(0, receivers, torch.ones_like(receivers))
    indptr = users.new_zeros(degree.numel() + 1)
    torch.cumsum(degree, 0, out=indptr[1:])
    return SparsePattern(indptr, torch.cat([items + n_users, users[order]]), degree.numel())


def item_order(items: Tensor) -> Tensor:
    """The permutation that sorts pairs by (item, user): item-side slot k is pair `order[k]`.

    `items` (n,) are those of pairs sorted by user.
    """
    # A stable sort keeps the order of the users within each item.
    return torch.argsort(items, stable=True)


def with_self_loops(pattern: SparsePattern) -> SparsePattern:
    """The pattern with every diagonal entry present: A + I for an adjacency without loops."""
    n = _square(pattern)
    loop = torch.arange(n, device=pattern.indices.device)
    # A loop that is there already is merged with the new one.
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


def mean_of_items(train: TrainSet, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    """R (n_users, n_items): row u averages over the items of u; zero for a user without any."""
    indptr, items = torch.from_numpy(train.indptr), torch.from_numpy(train.items)
    return row_normalised(SparsePattern(indptr, items, train.n_items), dtype=dtype)


def laplacian(pattern: SparsePattern, values: Tensor) -> Tensor:
    """The values of S^-1/2 W S^-1/2, S the row sums of W; differentiable.

    Rows whose sum is not positive get weight zero, in their row and in their column: cosines may be
    negative, and the square root of a negative sum would turn the whole graph into NaN.

    Source: Zhang et al., LATTICE (ACM MM 2021), equation 5, with the row sums on both sides.
    """
    _square(pattern)
    # The row sums carry gradient: a weight acts through its own entry and through both sums.
    sums = values.new_zeros(pattern.shape[0]).index_add(0, pattern.row, values)
    scale = _inverse_power(sums, 0.5)
    return values * scale[pattern.row] * scale[pattern.indices]


@dataclass(frozen=True, eq=False)
class NeighbourUnion:
    """The union of several lists of neighbours, and where the entries of each list are in it.

    A weighted sum of kNN graphs on one pattern: `union.combine([w * cosines for …])`.

    On other devices than the CPU, where a size must not depend on the data, the lists stand side by
    side instead: a pair on several lists has several entries, which products add up.

    Attributes:
        pattern: Shape (n, n), with every diagonal entry.
        entries: For each list the entry of each neighbour, shape (n, k_m).
        diagonal: The entry of each node's self loop, shape (n,).
        merged: Whether a pair has one entry.
    """

    pattern: SparsePattern
    entries: tuple[Tensor, ...]
    diagonal: Tensor
    merged: bool = True

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
        if gpu.static(node):
            columns = torch.cat([*neighbours, node[:, None]], 1)
            width = columns.shape[1]
            place = torch.arange(n * width, device=node.device).view(n, width)
            indptr = torch.arange(n + 1, device=node.device) * width
            *parts, diagonal = torch.split(place, [*(part.shape[1] for part in neighbours), 1], 1)
            pattern = SparsePattern(indptr, columns.reshape(-1), n)
            return cls(pattern, tuple(parts), diagonal.flatten(), merged=False)
        # All lists one after the other, then the diagonal; pairs that occur twice share an entry.
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
        """The sum of the weighted lists as values of `pattern`, differentiable.

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
        if unit_diagonal and not self.merged:
            # A list's own entry of a self loop counts nothing beside the diagonal's.
            node = self.pattern.indices[self.diagonal][:, None]
            given = [(e, w.masked_fill(self.pattern.indices[e] == node, 0.0)) for e, w in given]
        # A pair on several lists gets the sum of their weights.
        for entries, weight in given:
            values = values.index_add(0, entries.reshape(-1), weight.reshape(-1))
        # Overwritten last: with unit_diagonal the cosine of a loop gets no gradient.
        return values.index_fill(0, self.diagonal, 1.0) if unit_diagonal else values


class EdgePruning:
    """Draws the edges that an epoch keeps, without replacement, (u, i) ~ (d_u d_i)^-1/2.

    Drawing n edges one after the other, each with probability proportional to its weight, is the
    same as keeping the n smallest of E / weight with E ~ Exp(1) independent (Efraimidis & Spirakis,
    IPL 2006): one pass, no rejection. Source: Zhou & Shen, FREEDOM (ACM MM 2023), section 3.2.

    E (1 - rho) of E edges are kept, rounded down, in double precision as the authors' code has it:
    0.2 of 197,338 edges, at rho = 0.8, are 39,467, for 1 - 0.8 is a little less than 0.2.

    Args:
        train: The training pairs; degrees are those of all of them.
        rate: rho, the share of edges that is dropped, in [0, 1).
        device: Where edges are drawn.

    Attributes:
        users: User of each training pair, shape (n_edges,), on the device.
        items: Item of each training pair.
        n_kept: Number of edges that are kept.

    Raises:
        ShapeError: The rate is out of range.
    """

    def __init__(self, train: TrainSet, rate: float, device: torch.device | str = "cpu") -> None:
        if not 0 <= rate < 1:
            raise ShapeError(f"EdgePruning: rate is {rate}, must be in [0, 1)")
        self.n_kept = int(train.n_edges * (1.0 - rate))
        self.users = torch.from_numpy(train.users).to(device)
        self.items = torch.from_numpy(train.items).to(device)
        # 1 / w_ui = (d_u d_i)^1/2 with the degrees of the whole graph, in every epoch.
        degrees = train.user_degree[train.users] * train.popularity[train.items]
        self._inverse_weights = torch.from_numpy(np.sqrt(degrees)).to(device)

    def draw(self, stream: Stream, *, uniform: bool = False) -> Tensor:
        """Ascending positions in the training pairs, (n_kept,), int64, on the device.

        `uniform`: every edge is as likely as any other, instead of by its degrees.
        """
        high, low, *_ = stream.words(len(self.users))
        # Keys E / w with E ~ Exp(1): the order of the draws is the order of the keys.
        keys = -torch.log1p(-unit(high, low))
        keys = keys if uniform else keys * self._inverse_weights
        # Which edges are drawn matters, not in which order: no need to sort all of them.
        return keys.topk(self.n_kept, largest=False, sorted=False).indices.sort().values


def propagate(
    matrix: SparseMatrix, x: Tensor, n_layers: int, *, rows: Tensor | Grouped | None = None
) -> Tensor:
    """The mean of x and its first `n_layers` propagations: (x + A x + … + A^L x) / (L + 1).

    Evaluated from the inside, x + A (x + A (…)), forward and backward: L products each and no other
    pass over the nodes. Equal to the sum of layers up to rounding.

    Args:
        matrix: A, shape (n, n).
        x: Shape (n, d).
        n_layers: L >= 0.
        rows: Row numbers, shape (k,), int64, any order, repetitions allowed: the result is these
            rows alone, and the last layer and its gradient are computed for them alone. None for
            all.

    Returns:
        Shape (n, d), or (k, d).

    Source: He et al., LightGCN (SIGIR 2020), equation 8 with equal layer weights.
    """
    if matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(
            f"propagate: the operator must be square (got {matrix.shape[0]} x {matrix.shape[1]})"
        )
    if n_layers < 0:
        raise ShapeError(f"propagate: n_layers must be at least 0 (got {n_layers})")
    if rows is None:
        return apply(_Propagation, x, matrix, n_layers)
    rows = rows if isinstance(rows, Grouped) else grouped(rows)
    return apply(_PropagationRows, x, matrix, n_layers, rows)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, n_layers: int) -> Tensor:
        ctx.matrix, ctx.n_layers = matrix, n_layers
        return _horner(matrix, x, n_layers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # The transpose of a mean of powers of A is that of powers of A^T: the same scheme.
        return _horner(ctx.matrix.T, grad, ctx.n_layers), None, None


def _horner(matrix: SparseMatrix, x: Tensor, n_layers: int) -> Tensor:
    """(x + A (x + A (…))) / (n_layers + 1), from the inside."""
    total = x
    for _ in range(n_layers):
        total = matrix.pattern.multiply(matrix.values, total, plus=x)
    # In place, unless no layer has made a new array: then `total` is x itself.
    return total.div_(n_layers + 1) if n_layers else x.clone()


class _PropagationRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, n_layers: int, known: Grouped) -> Tensor:
        ctx.matrix, ctx.n_layers, ctx.rows, rows = matrix, n_layers, known, known.rows
        if n_layers == 0:
            return x[rows]
        total = x
        # Every layer but the last runs over all nodes: the rows' neighbours may be any of them.
        for _ in range(n_layers - 1):
            total = matrix.pattern.multiply(matrix.values, total, plus=x)
        return (matrix.rows(rows).multiply(total) + x[rows]).div_(n_layers + 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        matrix, n_layers, rows = ctx.matrix, ctx.n_layers, ctx.rows
        # The rows' gradient on its way down enters every layer, as x does in the forward.
        grad = grad / (n_layers + 1)
        outer = add_rows(grad.new_zeros(matrix.shape[1], grad.shape[1]), rows, grad)
        if n_layers == 0:
            return outer, None, None, None
        # Backwards the last layer comes first: A[rows]^T g, scattered to all nodes.
        if matrix.pattern.compiled(grad):
            total = matrix.rows(rows.rows).multiply_transposed(grad, plus=outer)
        else:  # the scattered gradient is there already
            total = matrix.T.pattern.multiply(matrix.T.values, outer, plus=outer)
        for _ in range(n_layers - 1):
            total = matrix.T.pattern.multiply(matrix.T.values, total, plus=outer)
        return total, None, None, None


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
