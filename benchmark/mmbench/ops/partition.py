"""Logarithms of sums of exponentials over many rows, in blocks: no array of rows x rows is kept.

The sum is a loss, whose gradients are known up to a factor when its value is: the forward leaves
them behind, so that each block of exponentials is made once and never stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops import memory
from mmbench.ops.dense import product
from mmbench.ops.kernels import apply

_BLOCK = 1 << 16  # entries of a block on the CPU for each column of x: it stays in its caches


def log_partition(x: Tensor, y: Tensor, weights: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return sum over b of weights_b log(sum over c of counts_c exp <x_b, y_c>), a scalar.

    Args:
        x: Shape (n, d), n >= 0.
        y: Shape (m, d), m >= 1.
        weights: Shape (n,), floating point, >= 0; a constant.
        counts: Shape (m,), floating point, >= 0, not all zero; a constant. None: ones.

    Returns:
        Differentiable once in x and y.

    Raises:
        ShapeError: The shapes do not fit.
    """
    counted = counts is None or counts.shape == y.shape[:1]
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or weights.shape != x.shape[:1] or not counted:
        shapes = [tuple(part.shape) for part in (x, y, weights, counts) if part is not None]
        raise ShapeError(f"log_partition: {shapes} do not fit")
    return apply(_LogPartition, x, y, weights, counts)


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, counts: Tensor | None) -> Tensor:
        wanted, total = any(ctx.needs_input_grad), x.new_zeros(())
        # With y on its side no product has to turn a block of terms.
        columns = y.t().contiguous()  # (d, m)
        grad_x, grad_columns = torch.empty_like(x), torch.zeros_like(columns)
        logs = None if counts is None else counts.log()  # n terms e^l are one of l + log n
        # Wide rows want blocks of many rows: each block adds to the whole gradient of y.
        entries = memory.LARGEST // x.element_size()
        if x.device.type == "cpu":
            entries = _BLOCK * max(16, x.shape[1])
        step = max(1, entries // len(y))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            terms = product(x[part], columns, logs)  # (b, m)
            # Less the largest of its row, so that no exponential overflows.
            largest = terms.amax(1, keepdim=True)
            terms = terms.sub_(largest).exp_()
            sums = terms.sum(1)
            total += (weights[part] * (sums.log() + largest[:, 0])).sum()
            if wanted:
                # d/d <x_b, y_c> is share_b terms(b, c).
                share = (weights[part] / sums)[:, None]
                grad_x[part] = product(terms, y) * share
                grad_columns += product((x[part] * share).t().contiguous(), terms)
        if wanted:
            ctx.save_for_backward(grad_x, grad_columns)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_columns = ctx.saved_tensors
        return grad * grad_x, (grad * grad_columns).t(), None, None
