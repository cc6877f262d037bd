"""Counts the calls after which a program has waited for its device, on the stand-in device."""

from __future__ import annotations

from typing import Any

import torch
from tests.elsewhere import ELSEWHERE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_SHAPED_BY_VALUES = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
"""The shape of the result is known when the values are."""


class Synchronising(TorchDispatchMode):
    """Inside the block, what waits for the stand-in device, or copies to or from it.

    Attributes:
        names: Such calls, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in tensors if x.device == ELSEWHERE]
        if there and _waits(name, there, kwargs):
            self.names.append(name)
        elif name in ("copy_", "_to_copy") and _crosses(name, args, kwargs):
            self.names.append(f"{name} between devices")
        return func(*args, **kwargs)


def _waits(name: str, there: list[Tensor], kwargs: dict[str, Any]) -> bool:
    # A Python number (`item`, `bool`, `int`, a slice by a tensor) is a value that has arrived.
    if name == "_local_scalar_dense" or name in _SHAPED_BY_VALUES:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    # An index of truth values is turned into places first.
    return name.startswith(("index", "_index_put")) and any(
        x.dtype == torch.bool for x in there[1:]
    )


def _crosses(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name == "copy_":
        return bool(args[0].device != args[1].device)
    to = kwargs.get("device")
    return to is not None and torch.device(to) != args[0].device
