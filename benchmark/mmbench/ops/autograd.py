"""What the hand-written derivatives share."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """`function.apply(…)` of a function with one result, with its type."""
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


def array(tensor: Tensor) -> Any:
    """The memory of a CPU tensor as a C-contiguous array without gradient; a copy only if it is strided otherwise."""
    return tensor.detach().contiguous().numpy()
