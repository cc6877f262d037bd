"""The compiled convolution of maps against torch's, values and gradients, in both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmbench.errors import ShapeError
from mmbench.ops.maps import pooled_maps


def problem(side: int, share: float, dtype: torch.dtype, n: int = 6) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(side)
    maps = torch.rand(n, side * side, generator=draw, dtype=dtype)
    maps *= torch.rand(n, side * side, generator=draw) < share
    maps[0] = 0.0
    kernels, bias = (torch.randn(*s, generator=draw, dtype=dtype) for s in ((5, 9), (5,)))
    return maps, kernels.requires_grad_(), bias.requires_grad_()


def gradients(x: Tensor, side: int, kernels: Tensor, bias: Tensor) -> list[Tensor]:
    out = pooled_maps(x, side, kernels, bias)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [kernels, bias])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", [1, 2, 5, 16])
@pytest.mark.parametrize("share", [0.03, 0.4, 1.0])
def test_the_kernel_is_the_convolution(side: int, share: float, dtype: torch.dtype) -> None:
    x, kernels, bias = problem(side, share, dtype)
    # A gradient of the maps themselves goes through torch's own operations.
    theirs = gradients(x.clone().requires_grad_(), side, kernels, bias)
    for ours, expected in zip(gradients(x, side, kernels, bias), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4 if dtype is torch.float32 else 1e-11,
                                   atol=1e-5 if dtype is torch.float32 else 1e-12)  # fmt: skip


def test_the_threads_do_not_change_the_bits() -> None:
    x, kernels, bias = problem(64, 0.2, torch.float32, n=40)
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(gradients(x, 64, kernels, bias)[:2])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][0], found[2][0])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="with maps of 4 x 4"):
        pooled_maps(torch.zeros(2, 15), 4, torch.zeros(3, 9), torch.zeros(3))
