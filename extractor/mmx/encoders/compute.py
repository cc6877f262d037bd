"""Device, precision and kernels of the torch encoders.

Every family builds its network with `prepared` and computes inside `forward_pass`; the rest follows
from there.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmx.encoders.base import Request
from mmx.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CLEARLY_FASTER = 1.25  # so that noise in the timing does not choose between equals
_NO_MEMORY = (
    "can't allocate memory", "out of memory", "could not create a memory object",
    "_STATUS_ALLOC_FAILED",
)  # fmt: skip


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
        raise UsageError(
            f"unknown device {request.device!r}; use cpu, cuda, cuda:1, ... or mps."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EncoderError(
            f"device {request.device}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EncoderError("device mps: not available on this machine; use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(
            f"device {request.device!r} is not supported; use cpu, cuda, cuda:1, ... or mps."
        )
    if request.precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    return device


def prepared(network: Any, device: torch.device, precision: str) -> Any:
    """Prepare a network for forward passes: no gradients, on its device, images channels-last.

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
    """Infer at a precision; `fp32` is exact on a GPU too: no TF32, deterministic convolutions.

    On the CPU, `torch.nn.functional.linear` is served by the faster of torch's two single-precision
    kernels (see `linear_kernel`).
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(exact_arithmetic)
        if precision != "fp32":
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        elif device.type == "cpu" and linear_kernel() == "onednn":
            stack.enter_context(_through_onednn()())
        yield


class _ExactArithmetic:
    """No TF32 on a GPU, and the same cuDNN algorithms every time, while any thread is inside.

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


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, of the device or of the machine."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # torch's allocators, oneDNN and cuBLAS raise plain RuntimeErrors.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def release_memory() -> None:
    """Give cached memory of the GPU back, after it ran out."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def linear_kernel() -> str:
    """What computes fp32 linear layers on this CPU: `onednn` where it is right and clearly faster, else `torch`.

    The BLAS that torch is built with leaves half of an AMD processor unused in single precision;
    oneDNN, also part of torch, does not. Both compute in full single precision. Measured once per
    process, in some milliseconds; written into the provenance of the sets, because the last bits
    depend on it.
    """
    return _taken_over[-1] if _taken_over else _faster_kernel()


def other_linear_kernel() -> str | None:
    """The kernel that `linear_kernel` is not; None where it cannot be used."""
    if linear_kernel() == "onednn":
        return "torch"
    return "onednn" if _onednn_is_right() else None


def take_over(kernel: str) -> None:
    """Let the process compute linear layers as a set was begun, by `kernel`; no forward pass may be under way."""
    _taken_over[:] = [kernel]


_taken_over: list[str] = []


@functools.cache
def _faster_kernel() -> str:
    return "onednn" if _onednn_is_right() and _onednn_is_faster() else "torch"


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # torch's own compiler calls this operator; it is not part of the documented interface, hence
    # the probes.
    import torch

    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def _through_onednn() -> Any:
    """A context in which calls of `torch.nn.functional.linear` go to oneDNN where both sides are fp32."""
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
                return _onednn(*args)
            return func(*args, **(kwargs or {}))

    return ThroughOneDnn


@functools.cache
def _onednn_is_right() -> bool:
    import torch

    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 17, 130, generator=generator)
    weight = torch.randn(33, 130, generator=generator)
    bias = torch.randn(33, generator=generator)
    bound = 1e-6 * (
        x.abs().double() @ weight.t().abs().double() + bias.abs()
    )  # a few roundings, far from half precision
    expected = x.double() @ weight.t().double() + bias
    layouts = [
        x,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    try:
        with torch.inference_mode():
            errors = [(_onednn(layout, weight, bias) - expected).abs() for layout in layouts]
    except (
        RuntimeError,
        TypeError,
    ):  # the operator is there but refuses, or its signature has changed
        return False
    return all(bool((error <= bound).all()) for error in errors)


def _onednn_is_faster() -> bool:
    import torch

    x, weight = torch.ones(512, 384), torch.ones(1536, 384)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers; other threads would only add noise

    best = dict.fromkeys((torch.nn.functional.linear, _onednn), float("inf"))
    try:
        with torch.inference_mode():
            for _ in range(
                9
            ):  # in turns: a busy moment slows both, and the same machine always chooses the same
                for routine in best:
                    start = time.perf_counter()
                    routine(x, weight)
                    best[routine] = min(best[routine], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best[torch.nn.functional.linear] >= _CLEARLY_FASTER * best[_onednn]


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
