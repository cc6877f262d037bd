"""Fused operations on dense matrices: rows of unit length, and the wide product of MMGCN's layers.

Both exist for their backward: it makes no temporaries of the size of the matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.errors import ShapeError
from mmbench.ops.gemm import product
from mmbench.ops.kernels import apply, array, run, split

SMALLEST_NORM = 1e-12
SLOPE = 0.01
_BLOCK = 4096  # rows at once on the CPU: large enough for the products, small beside the matrices


def normalise_rows(x: Tensor) -> Tensor:
    """Each row of x (n, d) divided by max(its L2 norm, 1e-12): `rn` in the models' equations.

    Differentiable once. A norm below the bound counts as a constant, as in
    `torch.nn.functional.normalize`.

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
        # d/dx of x / |x| takes from the gradient its part along y.
        y, norm = ctx.saved_tensors
        if y.device.type != "cpu":
            along = (grad * y).sum(1, keepdim=True).masked_fill_(norm <= SMALLEST_NORM, 0.0)
            return torch.addcmul(grad, y, along, value=-1).div_(norm)
        from mmbench.ops.kernels import dense

        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        bounds = split(y.shape[0], work=y.numel())
        smallest = array(norm).dtype.type(SMALLEST_NORM)
        run(
            dense.normalise_backward,
            bounds,
            array(grad),
            array(y),
            array(norm),
            smallest,
            out.numpy(),
        )
        return out


def leaky_mix(x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
    """LR(X C) M^T + b with LR(x) = max(x, 0.01 x), differentiable once.

    Equal to the composition; LR(X C) is kept for the backward, but its gradient, as large, exists a
    block at a time.

    Args:
        x: X, shape (n, k).
        inner: C, shape (k, h).
        outer: M, shape (d, h).
        bias: b, shape (d,).

    Raises:
        ShapeError: The shapes do not fit.
    """
    fits = x.shape[1:] == inner.shape[:1] and inner.shape[1:] == outer.shape[1:]
    if not fits or bias.shape != outer.shape[:1]:
        shapes = [tuple(part.shape) for part in (x, inner, outer, bias)]
        raise ShapeError(f"leaky_mix: {shapes} do not fit")
    return apply(_LeakyMix, x, inner, outer, bias)


class _LeakyMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
        hidden = functional.leaky_relu(product(x, inner), SLOPE, inplace=True)  # (n, h)
        ctx.save_for_backward(x, inner, outer, hidden)
        return product(hidden, outer.t(), bias)  # (n, d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        x, inner, outer, hidden = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_inner = torch.zeros_like(inner)
        grad_outer = torch.zeros(outer.shape, dtype=x.dtype, device=x.device)
        step = _BLOCK if x.device.type == "cpu" else max(1, x.shape[0])
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            g, h = grad[part], hidden[part]
            grad_outer += product(g.t(), h)
            inside = torch.ops.aten.leaky_relu_backward(product(g, outer), h, SLOPE, True)  # (B, h)
            grad_inner += product(x[part].t(), inside)
            if grad_x is not None:
                grad_x[part] = product(inside, inner.t())
        return grad_x, grad_inner, grad_outer, grad.sum(0)
