"""Convolved and pooled maps, in one operation that keeps nothing of a map's size but the map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.errors import ShapeError
from mmbench.ops.kernels import apply, array, run, split


def pooled_maps(x: Tensor, side: int, kernels: Tensor, bias: Tensor) -> Tensor:
    """Return mean(relu(max(conv x + b))) of square maps, differentiable once.

    The convolution is 3 x 3 with zeros around the map, the maximum over cells of 2 x 2 (fewer at
    the end of an odd side), the mean over the map.

    Args:
        x: Maps, row by row, shape (n, side * side).
        side: Of a map, >= 1.
        kernels: Row by row, shape (channels, 9).
        bias: Shape (channels,).

    Returns:
        Shape (n, channels), >= 0.

    Raises:
        ShapeError: The shapes do not fit.
    """
    shapes = tuple(x.shape), tuple(kernels.shape), tuple(bias.shape)
    if shapes != ((len(x), side * side), (len(bias), 9), (len(bias),)):
        raise ShapeError(f"pooled_maps: {shapes} with maps of {side} x {side}")
    if x.device.type == "cpu" and not x.requires_grad:
        return apply(_PooledMaps, x, side, kernels, bias)
    # A product of matrices, not a convolution, which cuDNN would round to 10 bits.
    places = functional.unfold(x.view(-1, 1, side, side), 3, padding=1)  # (n, 9, side * side)
    y = (kernels @ places + bias[:, None]).view(len(x), -1, side, side)
    # relu after the maximum: the same, on a quarter of the numbers.
    return functional.max_pool2d(y, 2, ceil_mode=True).relu().mean((2, 3))


class _PooledMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int, kernels: Tensor, bias: Tensor) -> Tensor:
        from mmbench.ops.kernels import maps

        ctx.side = side
        ctx.save_for_backward(x, kernels, bias)
        out = x.new_empty(len(x), len(bias))
        columns = array(kernels.t())
        run(maps.pooled, _bounds(x, bias), array(x), side, columns, array(bias), out.numpy())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor]:
        from mmbench.ops.kernels import maps

        x, kernels, bias = ctx.saved_tensors
        # Of each map by itself, then added up: the bits do not depend on the threads.
        of_kernels, of_bias = x.new_empty(len(x), 9, len(bias)), x.new_empty(len(x), len(bias))
        inputs = (array(x), ctx.side, array(kernels.t()), array(bias), array(grad))
        run(
            maps.pooled_backward,
            _bounds(x, bias),
            *inputs,
            of_kernels.numpy(),
            of_bias.numpy(),
        )
        return None, None, of_kernels.sum(0).t(), of_bias.sum(0)


def _bounds(x: Tensor, bias: Tensor) -> Any:
    return split(len(x), work=9 * x.numel() * len(bias))
