"""Rows of unit length, differentiated without a pass of temporaries over the matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.core.autograd import apply
from mmbench.errors import ShapeError

SMALLEST_NORM = 1e-12
_BLOCK = 1 << 19  # entries handled at once, so that temporaries stay in the cache


def normalise_rows(x: Tensor) -> Tensor:
    """Each row divided by max(its L2 norm, 1e-12): `rn` in the models' equations.

    Args:
        x: Shape (n, d).

    Returns:
        Shape (n, d); differentiable once. The derivative of a row whose norm is below the bound is that of a division
        by a constant, as in `torch.nn.functional.normalize`.

    Raises:
        ShapeError: `x` is no matrix.
    """
    if x.ndim != 2:
        raise ShapeError(f"normalise_rows: a matrix is needed (got {tuple(x.shape)})")
    return apply(_Normalise, x)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST_NORM)  # (n, 1)
        y: Tensor = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, norm = ctx.saved_tensors
        out = torch.empty_like(y)
        step = max(1, _BLOCK // max(1, y.shape[1])) if y.device.type == "cpu" else max(1, y.shape[0])
        for parts in zip(*(tensor.split(step) for tensor in (grad, y, norm, out)), strict=True):
            g, unit, length, result = parts
            along = (g * unit).sum(1, keepdim=True).masked_fill_(length <= SMALLEST_NORM, 0.0)
            torch.addcmul(g, unit, along, value=-1, out=result).div_(length)
        return out
