"""Propagation whose layers are weighed, node by node, by their likeness to where they started."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.kernels import apply
from mmbench.ops.rows import Grouped, add_rows, grouped
from mmbench.ops.sparse import SparseMatrix

SMALLEST = 1e-8  # norm below which a cosine counts it as constant, as torch's cosine_similarity


def refine(
    matrix: SparseMatrix, x: Tensor, n_layers: int, *, rows: Tensor | Grouped | None = None
) -> Tensor:
    """The sum of y_1 … y_L, y_k = cos(A y_(k-1), x) * (A y_(k-1)) row by row, y_0 = x.

    Differentiable once. Kept for the backward are A y_(k-1) and its cosines, nothing else of the
    size of x; the last layer and its gradient are computed for `rows` alone.

    Args:
        matrix: A, shape (n, n).
        x: Shape (n, d).
        n_layers: L >= 1.
        rows: As in `mmbench.ops.graph.propagate`.

    Returns:
        Shape (n, d), or (k, d).

    Source: Zhou et al., LayerGCN (ICDE 2023), the refinement of layers, as its authors run it.
    """
    if matrix.shape != (len(x), len(x)) or n_layers < 1:
        raise ShapeError(
            f"refine: {matrix.shape[0]} x {matrix.shape[1]} with {len(x)} rows and {n_layers} "
            "layers (expected a square operator and at least one layer)"
        )
    known = rows if rows is None or isinstance(rows, Grouped) else grouped(rows)
    return apply(_Refinement, x, matrix, n_layers, known)


class _Refinement(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: SparseMatrix, n_layers: int, known: Grouped | None
    ) -> Tensor:
        ctx.matrix, ctx.known, kept = matrix, known, [x]
        norm, y, total = _norm(x), x, x.new_zeros(())
        for k in range(1, n_layers + 1):
            start, own = x, norm
            if k == n_layers and known is not None:
                h = matrix.rows(known.rows).multiply(y)
                start, own = x[known.rows], norm[known.rows]
                total = total[known.rows] if total.ndim else total
            else:
                h = matrix.pattern.multiply(matrix.values, y)
            length = _norm(h)
            cosine = _dots(h, start).div_(length).div_(own)  # (n, 1)
            y = h * cosine
            total = total + y
            kept += [h, cosine, length]
        ctx.save_for_backward(norm, *kept)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        norm, x, *kept = ctx.saved_tensors
        matrix, known = ctx.matrix, ctx.known
        layers = [kept[k : k + 3] for k in range(0, len(kept), 3)]
        h, cosine, length = layers.pop()
        if known is None:
            outer, of_x = grad, torch.zeros_like(x)
            g = _through(grad, h, x, cosine, length, norm, of_x)
            g = _transposed(matrix, g, outer if layers else None)
        else:
            rows, of_rows = known.rows, torch.zeros_like(grad)
            g = _through(grad, h, x[rows], cosine, length, norm[rows], of_rows)
            of_x = add_rows(torch.zeros_like(x), known, of_rows)
            # The rows' gradient on its way down enters every layer.
            outer = add_rows(torch.zeros_like(x), known, grad) if layers else of_x
            if matrix.pattern.compiled(g):
                g = matrix.rows(rows).multiply_transposed(g, plus=outer if layers else None)
            else:
                g = add_rows(torch.zeros_like(x), known, g)
                g = _transposed(matrix, g, outer if layers else None)
        for left in range(len(layers) - 1, -1, -1):
            h, cosine, length = layers[left]
            g = _through(g, h, x, cosine, length, norm, of_x)
            g = _transposed(matrix, g, outer if left else None)
        return of_x.add_(g), None, None, None


def _through(
    grad: Tensor, h: Tensor, x: Tensor, cosine: Tensor, length: Tensor, norm: Tensor, of_x: Tensor
) -> Tensor:
    """The gradient of h for that of y = cos(h, x) h; adds that of x to `of_x`."""
    along = _dots(grad, h)  # (n, 1): how y's gradient meets the cosine's
    mixed = along / (length * norm)
    # d cos / d x = h / (|h| |x|) - cos x / |x|², likewise of h; a norm at the bound is constant.
    own = along * cosine
    of_x.addcmul_(h, mixed).addcmul_(x, _unless_bound(own, norm), value=-1)
    g = grad * cosine
    return g.addcmul_(x, mixed).addcmul_(h, _unless_bound(own, length), value=-1)


def _unless_bound(own: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > SMALLEST, own / norm.square(), 0.0)


def _transposed(matrix: SparseMatrix, g: Tensor, plus: Tensor | None) -> Tensor:
    back = matrix.T
    product: Tensor = back.pattern.multiply(back.values, g, plus=plus)
    return product


def _norm(x: Tensor) -> Tensor:
    """Norms of the rows, at least `SMALLEST`, (n, 1)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST)
    return norm


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of equal rows, (n, 1)."""
    return (a * b).sum(1, keepdim=True)
