"""The wide product of MMGCN's layers and what follows it, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.errors import ShapeError
from mmbench.ops.gemm import product
from mmbench.ops.kernels import apply

SLOPE = 0.01
_BLOCK = 4096  # rows at once on the CPU: large enough for the products, small beside the matrices


def leaky_mix(x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
    """LR(X C) M^T + b with LR(x) = max(x, 0.01 x).

    Equal to the composition; LR(X C) is kept for the backward, but its gradient, as large, exists a
    block at a time.

    Args:
        x: X, shape (n, k).
        inner: C, shape (k, h).
        outer: M, shape (d, h).
        bias: b, shape (d,).

    Returns:
        Shape (n, d); differentiable once.

    Raises:
        ShapeError: The shapes do not fit.
    """
    if (
        x.shape[1:] != inner.shape[:1]
        or inner.shape[1:] != outer.shape[1:]
        or bias.shape != outer.shape[:1]
    ):
        raise ShapeError(
            f"leaky_mix: {[tuple(part.shape) for part in (x, inner, outer, bias)]} do not fit"
        )
    return apply(_LeakyMix, x, inner, outer, bias)


class _LeakyMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
        hidden = functional.leaky_relu(product(x, inner), SLOPE, inplace=True)
        ctx.save_for_backward(x, inner, outer, hidden)
        return product(hidden, outer.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        x, inner, outer, hidden = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_inner, grad_outer = (
            torch.zeros_like(inner),
            torch.zeros(outer.shape, dtype=x.dtype, device=x.device),
        )
        step = _BLOCK if x.device.type == "cpu" else max(1, x.shape[0])
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            g, h = grad[part], hidden[part]
            grad_outer += product(g.t(), h)
            inside = torch.ops.aten.leaky_relu_backward(product(g, outer), h, SLOPE, True)
            grad_inner += product(x[part].t(), inside)
            if grad_x is not None:
                grad_x[part] = product(inside, inner.t())
        return grad_x, grad_inner, grad_outer, grad.sum(0)
