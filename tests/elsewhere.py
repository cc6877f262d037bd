"""A device for machines that have none: real values that say they live on `meta`.

Models, trainer and encoders take the paths that they take on a GPU, and tensors of two devices in
one operation are the error that they are there, so that what was forgotten to be moved is found on
any machine. The values are those of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")

_MAY_MIX = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Copies between devices, and indexing, where CUDA takes indices from the CPU, too."""

_aten = torch.ops.aten
_LAYOUT = {
    _aten.sym_size.default: lambda x: x.shape,
    _aten.sym_stride.default: lambda x: x.stride(),
    _aten.sym_storage_offset.default: lambda x: x.storage_offset(),
    _aten.sym_numel.default: lambda x: x.numel(),
    _aten.dim.default: lambda x: x.dim(),
    _aten.is_contiguous.default: lambda x: x.is_contiguous(),
    _aten.is_contiguous.memory_format: lambda x: x.is_contiguous(),
    _aten.is_strides_like_format.default: lambda x: False,
    _aten.is_non_overlapping_and_dense.default: lambda x: x.is_contiguous(),
}


class There(Tensor):
    """A tensor that says it lives elsewhere; `held` are its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            dtype=held.dtype,
            device=ELSEWHERE,
            dispatch_sizes_strides_policy="sizes",
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in _LAYOUT:
        return _LAYOUT[func](args[0].held)
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    here = [x for x in tensors if not isinstance(x, There) and x.dim()]
    name = func.__name__.split(".")[0]
    if there and here and name not in _MAY_MIX:
        shapes = [tuple(x.shape) for x in there], [tuple(x.shape) for x in here]
        raise RuntimeError(f"{name}: tensors of two devices, {shapes[0]} and {shapes[1]}")
    stays = bool(there) if name != "copy_" else isinstance(args[0], There)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
    result = func(*args, **kwargs)
    same = {id(x.held): x for x in there}  # operations in place give back what they were given
    return tree_map(
        lambda x: same.get(id(x), There(x)) if stays and isinstance(x, Tensor) else x, result
    )


def _tensor(data: Any, *, device: torch.device | str | None = None, **more: Any) -> Tensor:
    made = _tensor_here(data, **more)  # which of `meta` would forget the values
    return made if device is None else made.to(device)


_tensor_here = torch.tensor


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """While it lasts, modules and tensors can be moved to the device that it gives."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_: None
        )
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(
            torch, "inference_mode", torch.no_grad
        )  # tensors of Python have version counters
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Mode():
                yield ELSEWHERE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
