"""Which of torch's two exact single-precision matrix products serves this processor.

The last bits of a result depend on the choice, so it follows from the processor alone, never from
a measurement: the same command makes the same choice on a busy machine, and both tools record it.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Kernel: TypeAlias = Literal["torch", "onednn"]

_choice: Kernel | None = None


def chosen() -> Kernel:
    """Return the kernel of this process: the one that `use` fixed, else that of the processor."""
    return _choice or _of_this_processor()


def use(kernel: Kernel | None) -> None:
    """Fix the kernel of this process from now on; None: that of the processor.

    Raises:
        RuntimeError: This build of torch lacks it.
    """
    global _choice
    if kernel == "onednn" and not onednn_is_right():
        raise RuntimeError("this build of torch has no working oneDNN; use the backend torch")
    _choice = kernel


@contextmanager
def kept() -> Iterator[None]:
    """Let `use` hold inside the block only."""
    global _choice
    before = _choice
    try:
        yield
    finally:
        _choice = before


@functools.cache
def _of_this_processor() -> Kernel:
    import torch

    return by_processor(_vendor(), torch.backends.cpu.get_cpu_capability())


def by_processor(vendor: str, capability: str) -> Kernel:
    """Return the kernel for a processor.

    MKL, the BLAS of torch's builds for x86, leaves the AVX-512 units of AMD's processors unused;
    oneDNN, also part of torch, does not, and multiplies a few per cent faster in one thread. On
    other processors torch keeps its default.

    Args:
        vendor: As the processor names it, e.g. `AuthenticAMD`; empty if unknown.
        capability: The widest instructions that torch uses, e.g. `AVX512`.
    """
    wide = vendor == "AuthenticAMD" and capability.startswith("AVX512")
    return "onednn" if wide and onednn_is_right() else "torch"


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux; Windows' name ends in the vendor
        return platform.processor().rpartition(", ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line[:9] == "vendor_id"), "")


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
