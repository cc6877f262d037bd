"""Device, precision and kernels of the torch encoders.

Every family builds its network with `prepared` and computes inside `forward_pass`; the rest follows
from there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase import gemm
from mmbase.process import resolve_device
from mmx.encoders.base import Request
from mmx.encoders.batching import pad_batch
from mmx.encoders.replaying import passes
from mmx.errors import UsageError

if TYPE_CHECKING:
    import torch


def checked_device(request: Request) -> torch.device:
    """Return the device to compute on.

    Raises:
        UsageError: There is no such device here, or it can't compute at that precision.
    """
    import torch

    device = torch.device(resolve_device(request.device))
    if request.precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    return device


def prepared(network: Any, device: torch.device, precision: str) -> Any:
    """Return a network ready for forward passes: frozen, on its device, images channels-last.

    Below fp32 the batch norms of a `GraphModule` are folded into the convolutions before them,
    which changes roundings far less than the precision does and saves a fifth of the time. In fp32
    the network stays as its authors compute it.
    """
    import torch

    network = network.requires_grad_(False).train(False)
    if precision != "fp32" and isinstance(network, torch.fx.GraphModule):
        _fold_batch_norms(network)
    return network.to(device=device, memory_format=torch.channels_last)


@contextlib.contextmanager
def forward_pass(device: torch.device, precision: str) -> Iterator[None]:
    """Inference mode at a precision; fp32 on a GPU means no TF32 and deterministic convolutions.

    On the CPU, `torch.nn.functional.linear` is served by the kernel of this processor (see
    `linear_kernel`). On a GPU each thread has a stream of its own, so that one copies a batch while
    another computes, and CUDA events tell how long the device was busy (see `device_times`).
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(_on_own_stream(device))
            stack.enter_context(exact_arithmetic)
        if precision != "fp32":
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        elif device.type == "cpu" and linear_kernel() == "onednn":
            stack.enter_context(_through_onednn()())
        yield


class DeviceTimes(NamedTuple):
    """Seconds of passes on a GPU.

    Attributes:
        whole_s: From the beginning of each pass to its end.
        alone_s: The same without what passes of other threads cover: of any number of threads
            together, the time in which at least one pass was under way.
    """

    whole_s: float = 0.0
    alone_s: float = 0.0

    def __sub__(self, other: DeviceTimes) -> DeviceTimes:
        return DeviceTimes(self.whole_s - other.whole_s, self.alone_s - other.alone_s)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.times = DeviceTimes()
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.began: torch.cuda.Event | None = None
        self.has_begun = False  # whether the device has had something to do since then


_thread = _Thread()


def device_times() -> DeviceTimes:
    """Return the seconds of all passes of this thread on GPUs so far, by CUDA events."""
    return _thread.times


class _Timeline:
    """When passes of one GPU were under way, in milliseconds from an event that moves along."""

    MOVES_AFTER_MS: ClassVar[float] = 60_000  # events count in float32

    def __init__(self, origin: Any) -> None:
        self._origin = origin
        self._covered = 0.0
        self._lock = threading.Lock()

    def add(self, start: Any, end: Any) -> DeviceTimes:
        """Return what a pass adds, which lies between two events that have happened."""
        with self._lock:
            begins, ends = self._origin.elapsed_time(start), self._origin.elapsed_time(end)
            alone = max(0.0, ends - max(begins, self._covered))
            self._covered = max(self._covered, ends)
            if ends > self.MOVES_AFTER_MS:
                self._origin, self._covered = end, self._covered - ends
            return DeviceTimes((ends - begins) / 1e3, alone / 1e3)


_timelines: dict[Any, _Timeline] = {}
_timelines_lock = threading.Lock()


@contextlib.contextmanager
def _on_own_stream(device: torch.device) -> Iterator[None]:
    """Let a CUDA device compute on this thread's own stream, and count the time of the block."""
    import torch

    if _thread.began is not None:  # a part of the pass that is counted
        yield
        return
    stream = _thread.streams.get(device)
    if stream is None:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        _thread.streams[device] = stream
    stream.wait_stream(torch.cuda.current_stream(device))  # what was put there before, as weights
    with passes.one(), torch.cuda.stream(stream):
        _mark_start()
        try:
            yield
            # Such an event lets the thread sleep; others would keep a processor busy with waiting.
            event: Any = torch.cuda.Event  # untyped
            end = event(enable_timing=True, blocking=True)
            end.record(stream)
            end.synchronize()
            _count(stream, _thread.began, end)
        finally:
            _thread.began = None


def _count(stream: torch.cuda.Stream, start: Any, end: Any) -> None:
    """Add a pass that has ended to the times of this thread."""
    with _timelines_lock:
        # One device can have two names, as cuda and cuda:0; a stream tells its number.
        timeline = _timelines.setdefault(stream.device_index, _Timeline(start))
    added, before = timeline.add(start, end), _thread.times
    _thread.times = DeviceTimes(before.whole_s + added.whole_s, before.alone_s + added.alone_s)


def _mark_start() -> None:
    """Count the time of the pass from here."""
    import torch

    _thread.has_begun = False
    _thread.began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    _thread.began.record()


def stacked(
    arrays: Sequence[NDArray[Any]], device: torch.device, size: int | None = None
) -> torch.Tensor:
    """Return arrays of one shape as one tensor on a device, filled up as by `pad_batch`.

    On the way to a GPU they are put together in page-locked memory, from which the copy goes on
    while this thread starts kernels. Such memory stays with torch, which gives it out again once
    the copy is done.

    Args:
        arrays: At least one.
        device: Where the tensor is wanted.
        size: Number of rows, at least; None: that of the arrays.
    """
    import torch

    if device.type != "cuda":
        return torch.from_numpy(pad_batch(np.stack(arrays), size)).to(device)
    n_rows = max(len(arrays), size or 0)
    kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    pinned = torch.empty((n_rows, *arrays[0].shape), dtype=kind, pin_memory=True)
    rows = pinned.numpy()
    np.stack(arrays, out=rows[: len(arrays)])
    rows[len(arrays) :] = rows[len(arrays) - 1]
    if _thread.began is not None and not _thread.has_begun:
        _mark_start()  # putting them together was no work of the device
        _thread.has_begun = True
    return pinned.to(device, non_blocking=True)


def fetched(vectors: torch.Tensor) -> NDArray[np.float32]:
    """Return a result as an fp32 array; while a GPU computes it, this thread sleeps."""
    import torch

    values = vectors.float()
    if values.device.type != "cuda":
        return values.cpu().numpy()
    # A plain copy would wait by asking the device over and over, on a processor that could load.
    pinned = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    there.record(torch.cuda.current_stream(values.device))
    there.synchronize()
    return pinned.numpy().copy()  # so that the page-locked memory is free again


class _ExactArithmetic:
    """No TF32 on a GPU and deterministic cuDNN algorithms while any thread is inside.

    Convolutions have TF32 unless told otherwise, matrix products where
    `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` is set, as it is in NVIDIA's containers. The settings belong
    to the process: the first thread in makes them, the last one out puts the former ones back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._flags: Any = None
        self._products = ""

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if self._inside == 0:
                self._flags = torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
                self._flags.__enter__()
                self._products = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        import torch

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_float32_matmul_precision(self._products)
                self._flags.__exit__(*error)


exact_arithmetic = _ExactArithmetic()
"""The context of exact fp32 arithmetic on GPUs; any thread may enter it at any time."""


def linear_kernel() -> gemm.Kernel:
    """Return the kernel of fp32 linear layers on this CPU.

    It is written into the provenance of the sets, whose last bits depend on it.
    """
    return gemm.chosen()


def other_linear_kernel() -> gemm.Kernel | None:
    """Return the kernel that `linear_kernel` is not; None where it cannot be used."""
    if linear_kernel() == "onednn":
        return "torch"
    return "onednn" if gemm.onednn_is_right() else None


@functools.cache
def _through_onednn() -> Any:
    """Return a context class in which fp32 `torch.nn.functional.linear` calls go to oneDNN."""
    import torch

    linear = torch.nn.functional.linear

    class ThroughOneDnn(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if (
                func is linear
                and not kwargs
                and args[0].dtype == args[1].dtype == torch.float32
                and args[0].ndim > 1
            ):
                return gemm.onednn(*args)
            return func(*args, **(kwargs or {}))

    return ThroughOneDnn


def _fold_batch_norms(network: torch.fx.GraphModule) -> None:
    """Fold each batch norm that is the only reader of a convolution into it, in place."""
    import torch

    modules = dict(network.named_modules())

    def calls(node: Any, kind: type) -> bool:
        return node.op == "call_module" and type(modules[node.target]) is kind

    for node in list(network.graph.nodes):
        if not calls(node, torch.nn.BatchNorm2d):
            continue
        before = node.args[0]
        if not calls(before, torch.nn.Conv2d) or len(before.users) > 1:
            continue
        folded = torch.nn.utils.fuse_conv_bn_eval(modules[before.target], modules[node.target])
        network.set_submodule(before.target, folded)
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.recompile()
    network.requires_grad_(False)
