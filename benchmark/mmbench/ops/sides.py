"""Propagation on the two sides of the user-item graph, kept apart.

Users receive from items alone and items from users alone, so that the square graph of
`mmbench.ops.graph.propagate` has two empty blocks: without them no array of all nodes is put
together or taken apart, and the last layer of either side can be limited to rows by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.core.interactions import TrainSet
from mmbench.errors import ShapeError
from mmbench.ops.rows import Grouped, add_rows
from mmbench.ops.sparse import SparseMatrix, SparsePattern


def normalised_sides(train: TrainSet, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    """D_u^-1/2 R D_i^-1/2 (n_users, n_items) of the training pairs R, as LightGCN has it."""
    users, items = torch.from_numpy(train.users), torch.from_numpy(train.items)
    degrees = torch.from_numpy(train.user_degree)[users] * torch.from_numpy(train.popularity)[items]
    pattern = SparsePattern(torch.from_numpy(train.indptr), items, train.n_items)
    return SparseMatrix(pattern, degrees.double().rsqrt().to(dtype))


def propagate_sides(
    matrix: SparseMatrix,
    users: Tensor,
    items: Tensor,
    n_layers: int,
    *,
    rows: Tensor | Grouped | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of the nodes' vectors and their first `n_layers` propagations; differentiable once.

    Equal up to rounding to (L + 1) `propagate(A, [users; items], L)` with A = [[0, R], [R^T, 0]].

    Args:
        matrix: R, shape (n_users, n_items).
        users: Shape (n_users, d).
        items: Shape (n_items, d).
        n_layers: L >= 0.
        rows: Items whose sums are wanted, shape (k,), int64; None for all.

    Returns:
        Shape (n_users, d), and (n_items, d) or (k, d).

    Raises:
        ShapeError: `n_layers` is negative.

    Source: He et al., LightGCN (SIGIR 2020), equations 3 and 4.
    """
    if n_layers < 0:
        raise ShapeError(f"propagate_sides: n_layers must be at least 0 (got {n_layers})")
    if isinstance(rows, Tensor):
        rows = Grouped(rows)
    found = _Sides.apply(users, items, matrix, n_layers, rows)  # type: ignore[no-untyped-call]
    return found[0], found[1]


class _Sides(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        matrix: SparseMatrix,
        n_layers: int,
        rows: Grouped | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.matrix, ctx.n_layers, ctx.rows = matrix, n_layers, rows
        # From the inside, x + A (x + A (…)): no other pass over the nodes than the products'.
        u, i = users, items
        for left in reversed(range(n_layers)):
            if rows is None or left:
                u, i = _sent(matrix, i, users), _sent(matrix.T, u, items)
            else:
                some = matrix.T.rows(rows.rows).multiply(u)
                u, i = _sent(matrix, i, users), some.add_(items[rows.rows])
        if n_layers:
            return u, i
        return users.clone(), items.clone() if rows is None else items[rows.rows]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_users: Tensor, of_items: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        # A is symmetric, and so is a sum of its powers: the same scheme.
        matrix, left, rows = ctx.matrix, ctx.n_layers, ctx.rows
        of_users, of_items = of_users.contiguous(), of_items.contiguous()
        u, i = of_users, of_items
        if rows is not None:
            zeros = i.new_zeros(matrix.shape[1], i.shape[1])
            some, i = i, add_rows(zeros, rows, i)
            of_items = i
            if left:  # the items' first product meets few rows
                u = matrix.T.rows(rows.rows).multiply_transposed(some, plus=of_users)
                i = _sent(matrix.T, of_users, of_items)
                left -= 1
        for _ in range(left):
            u, i = _sent(matrix, i, of_users), _sent(matrix.T, u, of_items)
        return u, i, None, None, None


def _sent(matrix: SparseMatrix, x: Tensor, plus: Tensor) -> Tensor:
    return matrix.pattern.multiply(matrix.values, x, plus=plus)
