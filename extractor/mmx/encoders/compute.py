"""Device, precision and kernels of the torch encoders.

Every family builds its network with `prepared` and computes inside `forward_pass`; the rest follows
from there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmbase import gemm
from mmbase.process import resolve_device
from mmx.encoders.base import Request
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
    `linear_kernel`).
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
