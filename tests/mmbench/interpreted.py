"""Triton's kernels on a CPU: its interpreter runs them on tensors that stay where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
from torch import Tensor

from mmbench.ops import gpu


@contextmanager
def interpreted() -> Iterator[None]:
    """While it lasts, the CPU takes the paths of an NVIDIA GPU."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled here; TRITON_INTERPRET=1 interprets them")
    interpreter = import_module("triton.runtime.interpreter")
    patch_tensor = interpreter._patch_lang_tensor

    def with_bounds(tensor: Any, scope: Any) -> None:
        """Its tensors have one entry where they have no shape, which NumPy makes no number."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", with_bounds)
        patch.setattr(gpu, "serves", _serves)
        yield


def _serves(x: Tensor) -> bool:
    return x.device.type == "cpu"
