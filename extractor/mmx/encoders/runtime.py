"""Device and precision of the torch encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmx.encoders.base import Request
from mmx.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch


def checked_device(request: Request) -> torch.device:
    """The device to compute on.

    Raises:
        UsageError: No device has that name, or it can't compute at that precision.
        EncoderError: This machine has no such device.
    """
    import torch

    try:
        device = torch.device(request.device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {request.device!r}; use cpu, cuda, cuda:1, ... or mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EncoderError(
            f"device {request.device}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EncoderError("device mps: not available on this machine; use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {request.device!r} is not supported; use cpu, cuda, cuda:1, ... or mps.")
    if request.precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    return device


@contextlib.contextmanager
def forward_pass(device: torch.device, precision: str) -> Iterator[None]:
    """Inference mode at a precision; `fp32` means fp32 on a GPU too (no TF32), with deterministic convolutions."""
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            )
        if precision != "fp32":
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        yield
