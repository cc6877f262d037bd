"""Forward passes over batches: check what an encoder returns, attribute what it raises.

An error of an item is recorded as corrupt with the reason; an error of memory leads to smaller
batches; an error of the device or of the encoder itself ends the run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.process import out_of_memory, release_gpu_memory
from mmx.encoders import Encoder
from mmx.encoders.base import plain_reason
from mmx.encoders.compute import DeviceTimes, device_times
from mmx.encoders.replaying import passes as gpu_passes
from mmx.errors import EncoderError, ToolError
from mmx.extraction.summary import Costs

NOT_AN_ITEMS_FAULT = (ToolError, ImportError)
"""Errors of `load` and `encode` that end the run, because they say nothing about an item."""

_DEVICE_LOST = ("CUDA error", "CUDA kernel errors", "HIP error")  # no later pass succeeds

Rows = NDArray[np.int64]
Loaded = Any
"""A decoded and preprocessed item, None (missing), or a ContentError (corrupt)."""
Turn = Callable[[bool], AbstractContextManager[None]]
"""The context of a forward pass; True asks to be alone with the memory."""


@dataclass
class WindowResult:
    """The outcome of the wanted rows of a window, or of a part of it.

    Attributes:
        rows: Rows with a vector, in any order, shape (n,).
        vectors: One for each of `rows`, shape (dim,), or of a ragged encoder (k, dim); they may
            hold NaN or infinity.
        missing: Rows without content.
        corrupt: Rows that could not be loaded or encoded, and why.
        noted: Rows whose content was read with a remark.
        costs: What this took.
    """

    rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    corrupt: list[tuple[int, str]] = field(default_factory=list)
    noted: list[tuple[int, str]] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)

    def add(self, other: WindowResult) -> None:
        """Add the result of another part of the window."""
        self.rows = np.concatenate([self.rows, other.rows])
        self.vectors += other.vectors
        self.missing += other.missing
        self.corrupt += other.corrupt
        self.noted += other.noted
        self.costs.add(other.costs)


class Batch(NamedTuple):
    """The b items of one forward pass.

    Rows that are not wanted only make the batch what it was in an earlier run.
    """

    rows: Rows  # (b,)
    wanted: NDArray[np.bool_]  # (b,)
    items: list[Any]


def is_on_cpu(encoder: Encoder) -> bool:
    """Whether an encoder computes on the processors that load its items."""
    return encoder.device == "cpu"


class PassClock:
    """How long passes keep their device busy.

    Between the CUDA events of a pass a GPU can also wait, for a thread that starts its kernels and
    can't go on. Passes of one shape take the device the same time, so the shortest of them tells
    for the others.

    Args:
        n_passes: How many can compute at a time: of processors their number, of GPUs theirs.
    """

    def __init__(self, n_passes: int = 1) -> None:
        self.n_passes = n_passes
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._lock = threading.Lock()

    def device_s(self, shape: tuple[int, int], measured: DeviceTimes) -> float:
        """Return what a pass adds to the seconds of its device.

        It is negative where the pass shows that those before it, which may have included the start
        of a library, were counted too long.

        Args:
            shape: Number and largest size of its items.
            measured: What it took by CUDA events.
        """
        with self._lock:
            if shape not in self._shapes and len(self._shapes) == _MAX_SHAPES:
                self._shapes.clear()
            return self._shapes.setdefault(shape, _Shape()).add(measured)


@dataclass
class _Shape:
    """Passes of one shape."""

    n: int = 0
    shortest_s: float = math.inf
    counted_s: float = 0.0

    def add(self, measured: DeviceTimes) -> float:
        """Return what a further pass adds to the seconds of all."""
        self.n += 1
        self.shortest_s = min(self.shortest_s, measured.whole_s)
        before = self.counted_s
        self.counted_s += min(measured.alone_s, self.shortest_s)
        self.counted_s = min(self.counted_s, self.n * self.shortest_s)
        return self.counted_s - before


_MAX_SHAPES = 10_000  # that a clock remembers


def encode_batch(
    encoder: Encoder,
    batch: Batch,
    turn: Turn = lambda alone: nullcontext(),
    clock: PassClock | None = None,
) -> WindowResult:
    """Return the vectors of a batch, encoded in halves once memory has run out.

    The halves ask for a `turn` alone: memory that other passes had says nothing about them. The
    smaller size stays in `encoder.batch_size`. An item that does not fit alone is corrupt, and so
    is one on which the encoder fails alone as it failed on its batch.

    Raises:
        EncoderError: The encoder returned arrays of another shape than its description says, or
            the device failed.
        Exception: The error of the encoder on a batch, if no single item causes it.
    """
    clock = clock or PassClock()
    began, began_cpu, began_gpu = time.perf_counter(), time.thread_time(), device_times()
    rows, wanted, items = batch
    vectors: list[NDArray[np.float32]] = []
    refused: dict[int, str] = {}
    alone = False
    while (start := len(vectors)) < len(items):
        size = min(encoder.batch_size or len(items), len(items) - start)
        try:
            with turn(alone):
                part = encoder.encode(items[start : start + size])
        except Exception as error:  # noqa: BLE001 - attributed below
            if not out_of_memory(error):
                own, reasons = _one_by_one(encoder, items[start : start + size], turn, error)
                vectors.extend(own)
                refused.update({start + place: why for place, why in reasons.items()})
                continue
            reason = " ".join(str(error).split())[:200]
        else:
            _check_shape(encoder, part, size)
            vectors.extend(part)
            encoder.proven = items[start]
            continue
        # Only now has the exception let go of the tensors that its traceback held.
        with gpu_passes.one():
            release_gpu_memory()
        if size > 1:
            if size <= (encoder.batch_size or size):  # else another thread has halved it meanwhile
                encoder.batch_size = size // 2
        elif alone:
            refused[start] = f"out of memory with this item alone ({reason})"
            vectors.append(np.empty(0, dtype=np.float32))
        alone = True
    cpu_s, waited_s = time.thread_time() - began_cpu, time.perf_counter() - began
    measured = device_times() - began_gpu
    if is_on_cpu(encoder):
        busy_s = cpu_s
    elif measured.whole_s > 0:
        largest = max(map(encoder.sort_key, items))
        busy_s = clock.device_s((len(items), largest), measured)
    else:  # nothing tells what the device did
        busy_s = waited_s
    places = np.flatnonzero(wanted).tolist()
    kept = [place for place in places if place not in refused]
    return WindowResult(
        rows[kept],
        [vectors[place] for place in kept],
        corrupt=[(int(rows[place]), refused[place]) for place in places if place in refused],
        costs=Costs(
            encode_s=busy_s,
            encode_wait_s=waited_s,
            device_busy_s=busy_s / clock.n_passes,
            n_truncated=sum(encoder.truncated(items[place]) for place in places),
            batch_size=encoder.batch_size or 0,
        ),
    )


def _one_by_one(
    encoder: Encoder, items: Sequence[Loaded], turn: Turn, error: Exception
) -> tuple[list[NDArray[np.float32]], dict[int, str]]:
    """Encode items alone whose batch raised `error`.

    Returns:
        A vector for each, empty where the encoder fails, and the reasons by the items' places.

    Raises:
        Exception: `error`, where none of the items is the reason for it: each can be encoded alone,
            or what could be encoded before can't be any more.
        EncoderError: The device failed.
    """
    _raise_if_fatal(encoder, error)
    vectors: list[NDArray[np.float32]] = []
    refused: dict[int, str] = {}
    for place, item in enumerate(items):
        try:
            with turn(True):
                part = encoder.encode([item])
        except Exception as own:  # noqa: BLE001 - recorded with the item
            _raise_if_fatal(encoder, own)
            refused[place] = unforeseen(own)
            vectors.append(np.empty(0, dtype=np.float32))
        else:
            _check_shape(encoder, part, 1)
            vectors.extend(part)
    if not refused or (len(refused) == len(items) and _is_out_of_order(encoder, turn)):
        raise error
    return vectors, refused


def _is_out_of_order(encoder: Encoder, turn: Turn) -> bool:
    """Whether an encoder fails on an item that it has encoded before."""
    if encoder.proven is None:
        return False
    try:
        with turn(True):
            encoder.encode([encoder.proven])
    except Exception:  # noqa: BLE001 - whatever it is
        return True
    return False


def _raise_if_fatal(encoder: Encoder, error: Exception) -> None:
    """Raise for errors that end the run: of the device, or such that no item can cause."""
    if isinstance(error, NOT_AN_ITEMS_FAULT):
        raise error
    if any(sign in str(error) for sign in _DEVICE_LOST):
        raise EncoderError(
            f"{encoder.spec.name}: the device failed ({plain_reason(error)}); an item may be the "
            "reason, which --device cpu finds and records"
        ) from error


def unforeseen(error: Exception) -> str:
    """Return the reason that is recorded with an item on which an encoder fails."""
    return f"the encoder fails on it ({type(error).__name__}: {plain_reason(error)})"


def _check_shape(encoder: Encoder, vectors: Any, n: int) -> None:
    dim = encoder.spec.dim
    if encoder.ragged:
        shapes = [part.shape for part in vectors]
        wrong = [shape for shape in shapes if len(shape) != 2 or shape[0] < 1 or shape[1] != dim]
        fits = len(shapes) == n and not wrong
        got = f"an array of shape {wrong[0]}" if wrong else f"{len(shapes)} arrays"
        expected = f"{n} of shape (k, {dim}), k >= 1"
    else:
        shape = vectors.shape if isinstance(vectors, np.ndarray) else None
        fits = shape == (n, dim)
        got, expected = f"shape {shape}" if shape else type(vectors).__name__, f"{(n, dim)}"
    if not fits:
        raise EncoderError(f"{encoder.spec.name}: encode returned {got} (expected {expected})")
