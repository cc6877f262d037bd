"""Dense products by the fastest exact routine of this machine, forward and backward.

On AMD processors the BLAS that torch is built with leaves half of the machine unused in single
precision; oneDNN, also part of torch, does not. Which one serves is found out at the first large
product: oneDNN if it is right to rounding and clearly faster. Both compute in full single
precision; double precision and other devices always take torch's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.kernels import apply

Backend = Literal["auto", "torch", "onednn"]

_MIN_WORK = 1 << 18  # multiply-adds below which the detour costs more than it saves
_CLEARLY_FASTER = 1.25  # so that noise in the timing does not choose between equals

_choice: Literal["torch", "onednn"] | None = None
_measured: dict[str, float] = {}


def use(backend: Backend) -> None:
    """Say what multiplies from now on in this process; `auto` finds out anew at the next large product.

    No run calls this: each process finds out for itself, and what it found stands in the run's
    record.

    Raises:
        RuntimeError: oneDNN is asked for where it is absent or wrong.
    """
    global _choice
    _measured.clear()
    if backend == "onednn" and not _onednn_is_right():
        raise RuntimeError(
            "matrix products: this build of torch has no working oneDNN; use the backend torch"
        )
    _choice = None if backend == "auto" else backend


def describe() -> dict[str, str | float]:
    """What multiplies, for the run record: `gemm`, and the rates in GFLOP/s if they were measured."""
    return {
        "gemm": _chosen(),
        **{f"{name}_gflops": round(rate, 1) for name, rate in _measured.items()},
    }


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b, differentiable once.

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
    """A b + bias without derivative: the routine behind `linear`, for use in other kernels."""
    m, k, n = *a.shape, b.shape[1]
    large = (
        m * k * n >= _MIN_WORK
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
    )
    if large and _chosen() == "onednn":
        return _onednn(a, b, bias)
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


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    # torch's own compiler calls this operator; it is not part of the documented interface, hence
    # the probe below.
    with torch.no_grad():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            a.detach(), b.detach().t(), bias, "none", [], ""
        )
    return result


def _chosen() -> Literal["torch", "onednn"]:
    global _choice
    if _choice is None:
        _choice = "onednn" if _onednn_is_right() and _onednn_is_faster() else "torch"
    return _choice


def _onednn_is_right() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(67, 130, generator=generator), torch.randn(130, 33, generator=generator)
    bias = torch.randn(33, generator=generator)
    bound = 1e-6 * (
        a.abs().double() @ b.abs().double() + bias.abs()
    )  # a few roundings, far from half precision
    layouts = [(a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())]
    try:
        errors = [
            (_onednn(x, y, bias) - torch.addmm(bias.double(), a.double(), b.double())).abs()
            for x, y in layouts
        ]
    except (
        RuntimeError,
        TypeError,
    ):  # the operator is there but refuses, or its signature has changed
        return False
    return all(bool((error <= bound).all()) for error in errors)


def _onednn_is_faster() -> bool:
    a, b = torch.ones(512, 1024), torch.ones(1024, 256)
    routines: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "torch": torch.matmul,
        "onednn": _onednn,
    }
    best = dict.fromkeys(routines, float("inf"))
    for _ in range(
        9
    ):  # in turns: a busy moment slows both, and the same machine always chooses the same
        for name, routine in routines.items():
            start = time.perf_counter()
            routine(a, b)
            best[name] = min(best[name], time.perf_counter() - start)
    _measured.update(
        {name: 2 * a.numel() * b.shape[1] / seconds / 1e9 for name, seconds in best.items()}
    )
    return best["torch"] >= _CLEARLY_FASTER * best["onednn"]
