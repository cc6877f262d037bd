"""Norms of whole matrices, with a backward that makes no temporaries.

On a GPU torch adds a large matrix up in steps that wait for each other, and goes back through its
own square and root; these are one launch a matrix, and one for each gradient. Other devices take
torch's operations. The sums have a fixed order everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbench.ops import gpu
from mmbench.ops.kernels import apply

_SMALLEST = 1e-30  # a norm below counts as zero, where it has no derivative: the gradient is 0


def squared_norm(*x: Tensor) -> Tensor:
    """Sum of the squared entries of all arguments, a scalar >= 0; differentiable once."""
    if gpu.serves(x[0]):
        return apply(_SquaredNorm, *x)
    return torch.stack([one.square().sum() for one in x]).sum()


def norm(x: Tensor) -> Tensor:
    """The Frobenius norm of x, a scalar >= 0; differentiable once, with gradient 0 at x = 0."""
    if gpu.serves(x):
        return apply(_Norm, x)
    length: Tensor = torch.linalg.vector_norm(x)
    return length


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *x: Tensor) -> Tensor:
        from mmbench.ops.gpu import rows as gpu_kernels

        ctx.save_for_backward(*x)
        return gpu_kernels.squares([one.contiguous() for one in x])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, needed = 2 * grad, ctx.needs_input_grad
        return tuple(
            factor * one if need else None
            for one, need in zip(ctx.saved_tensors, needed, strict=True)
        )


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from mmbench.ops.gpu import rows as gpu_kernels

        length = gpu_kernels.squares([x.contiguous()]).sqrt_()
        ctx.save_for_backward(x, length)
        return length

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, length = ctx.saved_tensors
        gradient: Tensor = x * (grad / length.clamp_min(_SMALLEST))
        return gradient
