"""Dense products by the faster exact kernel of this CPU, forward and backward.

`mmbase.gemm` measures the kernels at the first large product of a process. Both compute in full
single precision; double precision and other devices always take torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmbase import gemm as kernels
from mmbench.errors import ShapeError
from mmbench.ops.kernels import apply

_MIN_WORK = 1 << 18  # multiply-adds below which the detour costs more than it saves


def _sample() -> tuple[Tensor, Tensor]:
    return torch.ones(512, 1024), torch.ones(1024, 256).t()


def describe() -> dict[str, str | float]:
    """Return the kernel as `gemm`, and rates in GFLOP/s if measured, for the run record."""
    kernel = kernels.chosen(_sample)
    rates = {f"{name}_gflops": round(rate, 1) for name, rate in kernels.rates().items()}
    return {"gemm": kernel, **rates}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, differentiable once.

    Args:
        x: Shape (n, in).
        weight: W, shape (out, in).
        bias: b, shape (out,).

    Returns:
        Shape (n, out).

    Raises:
        ShapeError: The shapes do not fit.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ShapeError(f"linear: {tuple(x.shape)} with a weight of {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"linear: a bias of {tuple(bias.shape)} for a weight of {tuple(weight.shape)}"
        )
    return apply(_Linear, x, weight, bias)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias without derivative: the routine behind `linear`, for other kernels."""
    m, k, n = *a.shape, b.shape[1]
    large = (
        m * k * n >= _MIN_WORK
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
    )
    if large and kernels.chosen(_sample) == "onednn":
        with torch.no_grad():
            return kernels.onednn(a.detach(), b.detach().t(), bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight) if ctx.needs_input_grad[0] else None
        grad_weight = product(grad.t(), x) if ctx.needs_input_grad[1] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias
