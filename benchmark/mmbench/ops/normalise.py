"""Rows of unit length, differentiated without a pass of temporaries over the matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.kernels import apply, array, run, split

SMALLEST_NORM = 1e-12


def normalise_rows(x: Tensor) -> Tensor:
    """Each row divided by max(its L2 norm, 1e-12): `rn` in the models' equations.

    Args:
        x: Shape (n, d).

    Returns:
        Shape (n, d); differentiable once. The derivative of a row whose norm is below the bound is
        that of a division by a constant, as in `torch.nn.functional.normalize`.

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
        if y.device.type != "cpu":
            along = (grad * y).sum(1, keepdim=True).masked_fill_(norm <= SMALLEST_NORM, 0.0)
            return torch.addcmul(grad, y, along, value=-1).div_(norm)
        from mmbench.ops.kernels import normalise

        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        bounds = split(y.shape[0], work=y.numel())
        smallest = array(norm).dtype.type(SMALLEST_NORM)
        run(normalise.backward, bounds, array(grad), array(y), array(norm), smallest, out.numpy())
        return out
