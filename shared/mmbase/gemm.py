"""The faster of torch's two exact single-precision matrix products on this CPU.

The BLAS that torch is built with leaves half of an AMD processor unused in single precision;
oneDNN, also part of torch, does not. A process measures both once and keeps to the winner: oneDNN
if it is correct to rounding and clearly faster. The last bits of a result depend on the choice, so
both tools record it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Kernel: TypeAlias = Literal["torch", "onednn"]

_CLEARLY_FASTER = 1.25  # so that noise in the timing does not choose between equals
_ROUNDS = 9

_choice: Kernel | None = None
_rates: dict[str, float] = {}


def chosen(sample: Callable[[], tuple[Tensor, Tensor]], threads: int | None = None) -> Kernel:
    """Return the kernel of this process, measured at the first call with that many threads.

    `sample` makes an input (n, in) and a weight (out, in) of the size that the tool multiplies.
    """
    global _choice
    if _choice is None:
        _choice = "onednn" if onednn_is_right() and _onednn_is_faster(sample, threads) else "torch"
    return _choice


def use(kernel: Kernel | None) -> None:
    """Fix the kernel of this process from now on; None measures anew at the next `chosen`."""
    global _choice
    if kernel == "onednn" and not onednn_is_right():
        raise RuntimeError("this build of torch has no working oneDNN; use the backend torch")
    _rates.clear()
    _choice = kernel


def rates() -> dict[str, float]:
    """Return the measured GFLOP/s of each kernel; empty if the choice was not measured."""
    return dict(_rates)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b by oneDNN, without derivative; float32 on the CPU only."""
    import torch

    # torch's own compiler calls this operator; it is undocumented, hence the probes below.
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def onednn_is_right() -> bool:
    """Return whether oneDNN is there and correct to rounding, for all memory layouts."""
    import torch

    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 17, 130, generator=generator)
    weight = torch.randn(33, 130, generator=generator)
    bias = torch.randn(33, generator=generator)
    expected = x.double() @ weight.double().t() + bias
    # A few roundings of single precision, far from half precision.
    bound = 1e-6 * (x.double().abs() @ weight.double().abs().t() + bias.abs())
    layouts = [
        (x, weight),
        (x.transpose(0, 1).contiguous().transpose(0, 1), weight),
        (x.transpose(1, 2).contiguous().transpose(1, 2), weight),
        (x, weight.t().contiguous().t()),
    ]
    try:
        with torch.inference_mode():
            errors = [(onednn(*layout, bias) - expected).abs() for layout in layouts]
    except (RuntimeError, TypeError):  # the operator refuses, or its signature has changed
        return False
    return all(bool((error <= bound).all()) for error in errors)


def _onednn_is_faster(sample: Callable[[], tuple[Tensor, Tensor]], threads: int | None) -> bool:
    import torch

    x, weight = sample()
    routines = {"torch": torch.nn.functional.linear, "onednn": onednn}
    best = dict.fromkeys(routines, float("inf"))
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            # In turns: a busy moment slows both, so that a machine always chooses the same.
            for _ in range(_ROUNDS):
                for name, routine in routines.items():
                    start = time.perf_counter()
                    routine(x, weight)
                    best[name] = min(best[name], time.perf_counter() - start)
    finally:
        if threads is not None:
            torch.set_num_threads(before)
    flops = 2 * x.numel() * weight.shape[0]
    _rates.update({name: flops / seconds / 1e9 for name, seconds in best.items()})
    return best["torch"] >= _CLEARLY_FASTER * best["onednn"]
