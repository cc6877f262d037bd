"""The derivative of rows of unit length; see `mmbench.ops.dense`."""

from __future__ import annotations

from typing import Any

from mmbench.ops.kernels import reduction

Array = Any


@reduction
def normalise_backward(
    lo: int, hi: int, grad: Array, unit: Array, norm: Array, smallest_norm: Any, out: Array
) -> None:
    """out[r] = (grad[r] - unit[r] <unit[r], grad[r]>) / norm[r]; a clamped norm is a constant."""
    for r in range(lo, hi):
        along = grad.dtype.type(0)
        if norm[r, 0] > smallest_norm:
            for j in range(grad.shape[1]):
                along += grad[r, j] * unit[r, j]
        scale = grad.dtype.type(1) / norm[r, 0]
        for j in range(grad.shape[1]):
            out[r, j] = (grad[r, j] - unit[r, j] * along) * scale
