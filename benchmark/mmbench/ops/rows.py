"""Rows of a batch: the distinct ones among them, and gathering with a cheap, ordered backward.

Shapes on a GPU must not depend on the data, or each step would wait for the device. There
`distinct` fills its list up with copies of the last row. Everything that is computed for a row
alone is then computed for copies too, and they get no gradient, for `inverse` points at the first
of equal rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.ops import gpu
from mmbench.ops.kernels import apply


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of a batch, and where each of its rows is among them.

    Args:
        rows: Row numbers, shape (k,), int64, k >= 1.

    Returns:
        The distinct ones, ascending; on other devices than the CPU the last one repeated up to
        shape (k,). And (k,) with `found[inverse] == rows`.
    """
    if not gpu.static(rows):
        found, inverse = torch.unique(rows, return_inverse=True)
        return found, inverse
    if gpu.serves(rows):
        from mmbench.ops.gpu import sparse as gpu_kernels

        if len(rows) <= gpu_kernels.MOST:
            return gpu_kernels.distinct(rows.contiguous())
    ordered, place = rows.sort()
    # A row's slot: how many different ones come before it.
    slot = torch.zeros_like(ordered)
    torch.cumsum(ordered[1:] != ordered[:-1], 0, out=slot[1:])
    found = ordered[-1].repeat(len(rows)).scatter_(0, slot, ordered)
    return found, torch.empty_like(place).scatter_(0, place, slot)


def take(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` of a matrix x (n, d) for rows (k,), any order; differentiable once in x.

    The backward adds up the gradients of equal rows in their order, so that its bits repeat.
    """
    return apply(_Take, x, index)


def add_rows(out: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """`out.index_add_(0, index, x)` for x (k, d), in place.

    Equal rows are added in their order, but for lists of more than 16,384 rows on a GPU.
    """
    if gpu.serves(x) and len(index):
        from mmbench.ops.gpu import sparse as gpu_kernels

        if len(index) <= gpu_kernels.MOST:
            return gpu_kernels.add_rows(index, x.contiguous(), out)
    return out.index_add_(0, index, x)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        if not gpu.static(grad):
            n = ctx.shape[0]
            return torch.ops.aten.embedding_dense_backward(grad, index, n, -1, False), None
        return add_rows(grad.new_zeros(ctx.shape), index, grad), None
