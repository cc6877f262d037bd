"""Operations on each row of a matrix on a GPU, a program per row; see `mmbench.ops.dense`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALLEST_NORM: Any = tl.constexpr(1e-12)  # of rows of unit length
_SMALLEST_FACTOR: Any = tl.constexpr(1e-8)  # of a cosine
_ROWS, _COLUMNS = 256, 32  # of a block that one program adds up
_ENTRIES = 4096  # whose squares one program adds up


@triton.jit
def _normalise(x, unit, norms, d, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    value = tl.load(x + row * d + column, within, 0.0)
    smallest = tl.full((), _SMALLEST_NORM, value.dtype)
    norm = tl.maximum(tl.sqrt(tl.sum(value * value, 0)), smallest)
    tl.store(norms + row, norm)
    tl.store(unit + row * d + column, value / norm, within)


@triton.jit
def _normalise_backward(unit, norms, grad, out, d, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    u = tl.load(unit + row * d + column, within, 0.0)
    g = tl.load(grad + row * d + column, within, 0.0)
    norm = tl.load(norms + row)
    # A norm at the bound is a constant: nothing is taken off.
    along = tl.where(norm > tl.full((), _SMALLEST_NORM, g.dtype), tl.sum(g * u, 0), 0.0)
    tl.store(out + row * d + column, (g - u * along) / norm, within)


@triton.jit
def _cosines(x, y, grad, out, d, BACKWARD: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    a = tl.load(x + row * d + column, within, 0.0)
    b = tl.load(y + row * d + column, within, 0.0)
    smallest = tl.full((), _SMALLEST_FACTOR, a.dtype)
    length = tl.sqrt(tl.sum(a * a, 0))
    norm = tl.maximum(length, smallest)
    b = b / tl.maximum(tl.sqrt(tl.sum(b * b, 0)), smallest)
    cosine = tl.sum(a * b, 0) / norm
    if BACKWARD:
        # As in torch a norm at the bound divides, and has the derivative of the norm itself.
        unit = tl.where(length > 0, a / length, 0.0)
        g = tl.load(grad + row)
        tl.store(out + row * d + column, g * (b - unit * cosine) / norm, within)
    else:
        tl.store(out + row, cosine)


@triton.jit
def _block_sums(x, out, n, d, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = (row < n)[:, None] & (column < d)[None, :]
    tile = tl.load(x + row[:, None] * d + column[None, :], within, 0.0)
    tl.store(out + block * d + column, tl.sum(tile, 0), column < d)


@triton.jit
def _squares(x, out, n, WIDTH: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    place = block * WIDTH + tl.arange(0, WIDTH)
    value = tl.load(x + place, place < n, 0.0)
    tl.store(out + block, tl.sum(value * value, 0))


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length (n, d), and the lengths they were divided by, (n, 1). Contiguous."""
    unit, norms = torch.empty_like(x), x.new_empty(len(x), 1)
    if x.numel():
        width = triton.next_power_of_2(x.shape[1])
        _normalise[(len(x),)](x, unit, norms, x.shape[1], WIDTH=width, num_warps=_warps(width))
    return unit, norms


def normalise_backward(unit: Tensor, norms: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the rows before, (n, d). Contiguous."""
    out, d = torch.empty_like(unit), unit.shape[1]
    if unit.numel():
        width = triton.next_power_of_2(d)
        _normalise_backward[(len(unit),)](
            unit, norms, grad, out, d, WIDTH=width, num_warps=_warps(width)
        )
    return out


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """The cosines of the rows of x and y, (n,). Contiguous."""
    return _of_rows(x, y, x, x.new_empty(len(x)), backward=False)


def cosines_backward(x: Tensor, y: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x, (n, d), from that of the cosines, (n,). Contiguous."""
    return _of_rows(x, y, grad, torch.empty_like(x), backward=True)


def column_sums(x: Tensor) -> Tensor:
    """The sum of the rows of x (n, d), in a fixed order, (d,). Contiguous."""
    if not x.numel():
        return x.sum(0)
    n, d = x.shape
    width = min(_COLUMNS, triton.next_power_of_2(d))
    # A program per block of rows: a GPU has more processors than x has columns.
    while True:
        out = x.new_empty(triton.cdiv(n, _ROWS), d)
        grid = len(out), triton.cdiv(d, width)
        _block_sums[grid](x, out, n, d, ROWS=_ROWS, WIDTH=width, num_warps=8)
        if len(out) == 1:
            return out[0]
        x, n = out, len(out)


def squares(x: Sequence[Tensor]) -> Tensor:
    """The sum of the squared entries of all, in a fixed order, a scalar. Contiguous."""
    blocks = [triton.cdiv(one.numel(), _ENTRIES) for one in x]
    parts = x[0].new_empty(sum(blocks))
    for one, part in zip(x, torch.split(parts, blocks), strict=True):
        if len(part):
            _squares[(len(part),)](one, part, one.numel(), WIDTH=_ENTRIES, num_warps=8)
    return parts.sum()


def _of_rows(x: Tensor, y: Tensor, grad: Tensor, out: Tensor, *, backward: bool) -> Tensor:
    if x.numel():
        width = triton.next_power_of_2(x.shape[1])
        _cosines[(len(x),)](
            x, y, grad, out, x.shape[1], BACKWARD=backward, WIDTH=width, num_warps=_warps(width)
        )
    return out


def _warps(width: int) -> int:
    return int(min(8, max(1, width // 256)))
