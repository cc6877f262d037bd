"""Steps of a training as CUDA graphs: captured once for each shape of batch, then replayed.

A replay starts hundreds of kernels with one call, where Python needs ten milliseconds to start them
one by one. It repeats what the step did to the same memory: the batch is copied to where the
captured step reads it, and everything else that changes from step to step is on the device already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mmbench.core.sampling import Batch
from mmbench.ops import gpu

_BEFORE = 3  # steps before the first capture: moments are allocated, libraries set up
_OF_A_SHAPE = 1  # steps of each shape before its capture: its kernels are compiled


def capturable(device: torch.device) -> bool:
    """Whether steps can be captured on this device: an NVIDIA GPU, with Triton's kernels."""
    return device.type == "cuda" and gpu.serves(torch.empty(0, device=device))


class Captured:
    """Calls `take(batch)`, or replays what it did with an earlier batch of the same shape.

    A step that can't be captured, because it waits for the device for example, is taken call by
    call from then on.

    Args:
        take: One step. It reads the batch's tensors, never their values in Python, and writes to
            memory that stays where it is.
        device: Where it computes.

    Attributes:
        reason: Why nothing is captured any more; empty as long as nothing speaks against it.
    """

    def __init__(self, take: Callable[[Batch], None], device: torch.device) -> None:
        self._take, self._device = take, device
        # All on one stream of its own: a capture must not depend on work of other streams.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # An empty graph outlives the others, and with it their memory, which new ones use again.
        self._anchor = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            self._anchor.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=device)
            self._anchor.capture_end()
        self.reason = ""
        self._seen: dict[object, int] = {}
        self._skip = False
        self.forget()

    def forget(self) -> None:
        """Drop what has been captured: tensors that it reads have been replaced."""
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, Batch]] = {}

    def start_epoch(self, *, skip_first: bool) -> None:
        """Called before an epoch's first batch, which may differ from all others: `skip_first`."""
        self._skip = skip_first

    def __call__(self, batch: Batch) -> None:
        """Take one step."""
        shape, skip, self._skip = _shape(batch), self._skip, False
        self._seen[shape] = self._seen.get(shape, 0) + (not skip)
        default = torch.cuda.default_stream(self._device)
        self._stream.wait_stream(default)
        with torch.cuda.stream(self._stream):
            if skip or not (shape in self._graphs or self._captures(shape, batch)):
                self._take(batch)
            else:
                graph, held = self._graphs[shape]
                torch._foreach_copy_(_tensors(held), _tensors(batch))
                graph.replay()
        default.wait_stream(self._stream)

    def _captures(self, shape: object, batch: Batch) -> bool:
        if self.reason or self._seen[shape] <= (_OF_A_SHAPE if self._graphs else _BEFORE):
            return False
        copies: dict[str, Any] = {name: x.clone() for name, x in _named(batch).items()}
        held = replace(batch, **copies)
        graph = torch.cuda.CUDAGraph()
        # Before the capture, so that it allocates gradients in the graph's own memory.
        self._stream.synchronize()
        try:
            graph.capture_begin(pool=self._anchor.pool(), capture_error_mode="thread_local")
            try:
                self._take(held)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            self.reason = str(error).splitlines()[0]
            warnings.warn(f"training step by step: {self.reason}", stacklevel=2)
            return False
        self._graphs[shape] = graph, held
        return True


def _named(batch: Batch) -> dict[str, Tensor]:
    values = ((each.name, getattr(batch, each.name)) for each in fields(batch))
    return {name: value for name, value in values if isinstance(value, Tensor)}


def _tensors(batch: Batch) -> list[Tensor]:
    return list(_named(batch).values())


def _shape(batch: Batch) -> object:
    """What two batches have in common that one captured step serves."""
    values = [getattr(batch, each.name) for each in fields(batch)]
    parts = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values]
    return type(batch), tuple(parts)
