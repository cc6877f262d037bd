"""Content vectors that a model reads and never changes, rounded to half precision.

A number of float16 has 11 significant bits: from 6e-5 to 65,504 its relative error is at most
2^-11, below that its absolute error at most 3e-8. Products are formed in the precision of the
weights, some rows at a time, so that the table exists in half precision alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmbench.errors import DataError
from mmbench.ops.dense import column_sums, linear, product
from mmbench.ops.kernels import apply

_BLOCK_ROWS = 4096  # rows that are widened at once


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, _BLOCK_ROWS)


def in_half(vectors: Tensor) -> Tensor:
    """Return the vectors as float16, shape as given.

    Raises:
        DataError: A number is larger than half precision holds.
    """
    limit = torch.finfo(torch.float16).max
    halved = torch.empty_like(vectors, dtype=torch.float16)
    for wide, half in zip(_blocks(vectors), _blocks(halved), strict=True):
        half.copy_(wide)
        if not half.isfinite().all():
            raise DataError(
                f"--approximate half-features: the vectors hold numbers up to "
                f"{float(wide.abs().max()):.3g}, and half precision up to {limit:,.0f}; scale them "
                "(--scaling l2), or leave half-features out"
            )
    return halved


class HalfTable(nn.Module):
    """A table (n_rows, dim) that stays as it is, kept as float16; no part of the state dict.

    Args:
        vectors: What it is rounded from.

    Raises:
        DataError: See `in_half`.
    """

    values: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", in_half(vectors), persistent=False)

    def project(self, index: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`linear(values[index], weight, bias)`, shape (k, out), in the weight's precision.

        Args:
            index: Row numbers, shape (k,), int64; None for the whole table.
            weight: Shape (out, dim).
            bias: Shape (out,).
        """
        if index is not None:
            return linear(self.values[index].to(weight.dtype), weight, bias)
        return apply(_Projection, weight, bias, self.values)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
        ctx.values = values
        out = weight.new_empty(len(values), len(weight))
        for rows, half in zip(_blocks(out), _blocks(values), strict=True):
            rows.copy_(product(half.to(weight.dtype), weight.t(), bias))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # dW = G^T X, a block of rows at a time.
        grad_weight = grad.new_zeros(grad.shape[1], ctx.values.shape[1])
        for part, half in zip(_blocks(grad), _blocks(ctx.values), strict=True):
            grad_weight += product(part.t(), half.to(grad.dtype))
        return grad_weight, column_sums(grad) if ctx.needs_input_grad[1] else None, None
