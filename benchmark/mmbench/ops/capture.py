"""Steps of a training as CUDA graphs: captured once for each shape of batch, then replayed.

A replay starts hundreds of kernels with one call, where Python needs ten milliseconds to start them
one by one. It repeats what the step did to the same memory: the batch is copied to where the
captured step reads it, and everything else that changes from step to step is on the device already.
Batches are drawn ahead, so that the device does not wait for them either.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mmbench.core.sampling import Batch, Sampler
from mmbench.ops import gpu

_BEFORE = 3  # steps before the first capture: moments are allocated, libraries set up
_OF_A_SHAPE = 1  # steps of each shape before its capture: its kernels are compiled


def capturable(device: torch.device) -> bool:
    """Whether steps can be captured on this device: an NVIDIA GPU, with Triton's kernels."""
    return device.type == "cuda" and gpu.serves(torch.empty(0, device=device))


class DrawnAhead:
    """The batches of a sampler, drawn while the steps before them still run.

    Otherwise the device would wait at the beginning of each epoch until Python has started the
    hundred small kernels that draw.

    Args:
        sampler: Draws the batches, each epoch's all at once.
        device: Where it draws.
    """

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        # A stream of its own: where drawing waits for a result, it waits for no step.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._drawn: dict[int, Iterator[Batch]] = {}
        self._begun = False

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch (1-based), in order."""
        batches = self._drawn.pop(epoch, None) or self._sampler.epoch(epoch)
        torch.cuda.default_stream(self._device).wait_stream(self._stream)
        middle = len(self._sampler) // 2
        for step, batch in enumerate(batches):
            yield batch
            if step == middle:  # there is work for the device, and `batches` holds its memory
                self._draw(epoch + 1)

    def _draw(self, epoch: int) -> None:
        if not self._begun:  # the sampler's tables were made on the default stream
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            self._begun = True
        with torch.cuda.stream(self._stream):
            batches = self._sampler.epoch(epoch)
            # The first batch is there as soon as all are drawn.
            self._drawn = {epoch: chain([next(batches)], batches)}


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
        self.forget()

    def forget(self) -> None:
        """Drop what has been captured: tensors that it reads have been replaced."""
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, Batch]] = {}

    def __call__(self, batch: Batch) -> None:
        """Take one step."""
        shape = _shape(batch)
        self._seen[shape] = self._seen.get(shape, 0) + 1
        default = torch.cuda.default_stream(self._device)
        self._stream.wait_stream(default)
        with torch.cuda.stream(self._stream):
            if shape in self._graphs or self._captures(shape, batch):
                graph, held = self._graphs[shape]
                torch._foreach_copy_(_tensors(held), _tensors(batch))
                graph.replay()
            else:
                self._take(batch)
        default.wait_stream(self._stream)

    def _captures(self, shape: object, batch: Batch) -> bool:
        early = sum(self._seen.values()) <= _BEFORE or self._seen[shape] <= _OF_A_SHAPE
        if self.reason or early:
            return False
        copies: dict[str, Any] = {name: x.clone() for name, x in _named(batch).items()}
        held = replace(batch, **copies)
        graph = torch.cuda.CUDAGraph()
        # Before the capture, so that it allocates gradients in the graph's own memory.
        self._stream.synchronize()
        try:
            with _no_collection():
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


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage while it lasts.

    The graphs of an earlier training may be among it; to free those breaks a capture.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _named(batch: Batch) -> dict[str, Tensor]:
    values = ((each.name, getattr(batch, each.name)) for each in fields(batch))
    return {name: value for name, value in values if isinstance(value, Tensor)}


def _tensors(batch: Batch) -> list[Tensor]:
    return list(_named(batch).values())


def _shape(batch: Batch) -> object:
    """What two batches have in common that one captured step serves.

    An epoch's first batch and its last one are of a shape of their own, for models may do something
    else with them.
    """
    values = [getattr(batch, each.name) for each in fields(batch)]
    parts = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values]
    return type(batch), tuple(parts)
