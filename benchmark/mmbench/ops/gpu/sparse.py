"""Sparse products on a GPU: a program per row and block of columns; see `mmbench.ops.sparse`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_EDGES = 32  # entries of a row that are loaded at once


@triton.jit
def _multiply(
    rows, indptr, indices, values, x, plus, out, d,
    SOME: tl.constexpr, PLUS: tl.constexpr, EDGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + k) if SOME else k
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < d
    end = tl.load(indptr + row + 1)
    total = tl.zeros((EDGES, WIDTH), out.dtype.element_ty)
    for at in range(tl.load(indptr + row), end, EDGES):
        entry = at + tl.arange(0, EDGES)
        there = entry < end
        source = tl.load(indices + entry, there, 0)
        value = tl.load(values + entry, there, 0.0)
        both = there[:, None] & within[None, :]
        total += value[:, None] * tl.load(x + source[:, None] * d + column[None, :], both, 0.0)
    result = tl.sum(total, 0)
    if PLUS:
        result += tl.load(plus + row * d + column, within, 0.0)
    tl.store(out + k * d + column, result, within)


@triton.jit
def _dots(indptr, indices, a, b, out, d, EDGES: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(indptr + row + 1)
    for at in range(tl.load(indptr + row), end, EDGES):
        entry = at + tl.arange(0, EDGES)
        there = entry < end
        source = tl.load(indices + entry, there, 0)
        total = tl.zeros((EDGES,), out.dtype.element_ty)
        for start in range(0, d, WIDTH):
            column = start + tl.arange(0, WIDTH)
            within = column < d
            mine = tl.load(a + row * d + column, within, 0.0)
            both = there[:, None] & within[None, :]
            theirs = tl.load(b + source[:, None] * d + column[None, :], both, 0.0)
            total += tl.sum(mine[None, :] * theirs, 1)
        tl.store(out + entry, total, there)


@triton.jit
def _add_rows(index, x, out, k, d, TILE: tl.constexpr, WIDTH: tl.constexpr):
    j = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < d
    mine = tl.load(index + j)
    lane = tl.arange(0, TILE)
    # The first of equal rows adds up all of them, in their order.
    earlier = 0
    for at in range(0, j, TILE):
        other = tl.load(index + at + lane, at + lane < j, -1)
        earlier += tl.sum((other == mine).to(tl.int32))
    if earlier == 0:
        total = tl.zeros((WIDTH,), out.dtype.element_ty)
        for at in range(j, k, TILE):
            i = at + lane
            same = tl.load(index + i, i < k, -1) == mine
            if tl.sum(same.to(tl.int32)) > 0:
                both = same[:, None] & within[None, :]
                part = tl.load(x + i[:, None].to(tl.int64) * d + column[None, :], both, 0.0)
                total += tl.sum(part, 0)
        place = out + mine * d + column
        tl.store(place, tl.load(place, within, 0.0) + total, within)


def multiply(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    x: Tensor,
    out: Tensor,
    *,
    plus: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The product of a matrix in compressed rows with x (n, d), plus `plus`, into `out`.

    With `rows` (k,) only of these rows. Contiguous arguments.
    """
    width = min(64, triton.next_power_of_2(x.shape[1]))
    _multiply[(len(out), triton.cdiv(x.shape[1], width))](
        indptr if rows is None else rows, indptr, indices, values, x, x if plus is None else plus,
        out, x.shape[1], SOME=rows is not None, PLUS=plus is not None, EDGES=_EDGES, WIDTH=width,
    )  # fmt: skip
    return out


def dots(indptr: Tensor, indices: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`<a[row], b[column]>` of each entry, into `out` (nnz,). Contiguous arguments."""
    width = min(128, triton.next_power_of_2(a.shape[1]))
    _dots[(len(indptr) - 1,)](indptr, indices, a, b, out, a.shape[1], EDGES=16, WIDTH=width)
    return out


MOST_ADDED = 1 << 14
"""Rows up to which `add_rows` pays: it looks at every pair of them."""


def add_rows(index: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """`out.index_add_(0, index, x)` for x (k, d), equal rows added in their order. Contiguous."""
    width = min(128, triton.next_power_of_2(x.shape[1]))
    _add_rows[(len(index), triton.cdiv(x.shape[1], width))](
        index, x, out, len(index), x.shape[1], TILE=64, WIDTH=width
    )
    return out
