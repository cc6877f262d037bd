"""LightGCN's propagation: the mean of the layers of a linear graph network, all nodes or some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.autograd import apply
from mmbench.ops.sparse import SparseMatrix


def propagate(
    matrix: SparseMatrix, x: Tensor, n_layers: int, *, rows: Tensor | None = None
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
    return (
        apply(_Propagation, x, matrix, n_layers)
        if rows is None
        else apply(_PropagationRows, x, matrix, n_layers, rows)
    )


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, n_layers: int) -> Tensor:
        ctx.matrix, ctx.n_layers = matrix, n_layers
        return _horner(matrix, x, n_layers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _horner(ctx.matrix.T, grad, ctx.n_layers), None, None


def _horner(matrix: SparseMatrix, x: Tensor, n_layers: int) -> Tensor:
    total = x
    for _ in range(n_layers):
        total = matrix.pattern.multiply(matrix.values, total, plus=x)
    return total.div_(n_layers + 1) if n_layers else x.clone()


class _PropagationRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseMatrix, n_layers: int, rows: Tensor) -> Tensor:
        ctx.matrix, ctx.n_layers, ctx.rows = matrix, n_layers, rows
        if n_layers == 0:
            return x[rows]
        total = x
        for _ in range(n_layers - 1):
            total = matrix.pattern.multiply(matrix.values, total, plus=x)
        return (matrix.rows(rows).multiply(total) + x[rows]).div_(n_layers + 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        matrix, n_layers, rows = ctx.matrix, ctx.n_layers, ctx.rows
        grad = grad / (n_layers + 1)
        outer = grad.new_zeros(matrix.shape[1], grad.shape[1]).index_add_(0, rows, grad)
        if n_layers == 0:
            return outer, None, None, None
        total = matrix.rows(rows).multiply_transposed(grad, plus=outer)
        for _ in range(n_layers - 1):
            total = matrix.T.pattern.multiply(matrix.T.values, total, plus=outer)
        return total, None, None, None
