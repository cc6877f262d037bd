"""Sparse products and rows of a batch on a GPU; see `mmbench.ops.sparse` and `mmbench.ops.rows`.

A product has one program per row. Degrees are skewed, and the longest row would last as long as all
others: what a row has beyond its first `PART` entries is summed by further programs, `PART` entries
each, before its own program adds everything up in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 64
_TILE = 1024  # numbers that a program loads together
_FEW = 8  # further parts that are loaded together


class Parts(NamedTuple):
    """The parts of the long rows beyond their first.

    Attributes:
        first: Parts of all rows before, shape (n_rows + 1,).
        rows: Row of each part, shape (nnz // PART,); n_rows where there is none.
        starts: Its first entry.
    """

    first: Tensor
    rows: Tensor
    starts: Tensor


def parts(indptr: Tensor, nnz: int) -> Parts:
    """The parts of a pattern; their number depends on `nnz` alone, so nothing waits for it."""
    further = (indptr.diff() - 1).clamp_(min=0) // PART
    first = torch.zeros_like(indptr)
    torch.cumsum(further, 0, out=first[1:])
    part = torch.arange(nnz // PART, device=indptr.device)
    rows = torch.searchsorted(first[1:].contiguous(), part, right=True)
    known = rows.clamp(max=len(further) - 1)
    starts = indptr[known] + (part - first[known] + 1) * PART
    return Parts(first, rows, starts)


@triton.jit
def _sum_parts(
    rows, starts, n_rows, indptr, indices, values, x, out, d,
    EDGES: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + k)
    if row < n_rows:
        column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        within = column < d
        start = tl.load(starts + k)
        end = tl.minimum(tl.load(indptr + row + 1), start + LENGTH)
        total = tl.zeros((EDGES, WIDTH), out.dtype.element_ty)
        for at in range(start, end, EDGES):
            entry = at + tl.arange(0, EDGES)
            there = entry < end
            source = tl.load(indices + entry, there, 0)
            value = tl.load(values + entry, there, 0.0)
            both = there[:, None] & within[None, :]
            total += value[:, None] * tl.load(x + source[:, None] * d + column[None, :], both, 0.0)
        tl.store(out + k * d + column, tl.sum(total, 0), within)


@triton.jit
def _multiply(
    rows, indptr, indices, values, x, plus, first, sums, out, d,
    SOME: tl.constexpr, PLUS: tl.constexpr,
    EDGES: tl.constexpr, LENGTH: tl.constexpr, FEW: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + k) if SOME else k
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < d
    start = tl.load(indptr + row)
    end = tl.minimum(tl.load(indptr + row + 1), start + LENGTH)
    total = tl.zeros((EDGES, WIDTH), out.dtype.element_ty)
    for at in range(start, end, EDGES):
        entry = at + tl.arange(0, EDGES)
        there = entry < end
        source = tl.load(indices + entry, there, 0)
        value = tl.load(values + entry, there, 0.0)
        both = there[:, None] & within[None, :]
        total += value[:, None] * tl.load(x + source[:, None] * d + column[None, :], both, 0.0)
    result = tl.sum(total, 0)
    last = tl.load(first + row + 1)
    for at in range(tl.load(first + row), last, FEW):
        part = at + tl.arange(0, FEW)
        both = (part < last)[:, None] & within[None, :]
        result += tl.sum(tl.load(sums + part[:, None] * d + column[None, :], both, 0.0), 0)
    if PLUS:
        result += tl.load(plus + row * d + column, within, 0.0)
    tl.store(out + k * d + column, result, within)


@triton.jit
def _dots(rows, indices, a, b, out, nnz, d, EDGES: tl.constexpr, WIDTH: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    there = entry < nnz
    row = tl.load(rows + entry, there, 0)
    source = tl.load(indices + entry, there, 0)
    total = tl.zeros((EDGES,), out.dtype.element_ty)
    for start in range(0, d, WIDTH):
        column = start + tl.arange(0, WIDTH)
        both = there[:, None] & (column < d)[None, :]
        mine = tl.load(a + row[:, None] * d + column[None, :], both, 0.0)
        theirs = tl.load(b + source[:, None] * d + column[None, :], both, 0.0)
        total += tl.sum(mine * theirs, 1)
    tl.store(out + entry, total, there)


@triton.jit
def _group(rows, order, starts, counts, ranks, k, MINE: tl.constexpr, TILE: tl.constexpr):
    j = tl.program_id(0) * MINE + tl.arange(0, MINE)
    mine = tl.load(rows + j, j < k, -1)
    smaller = tl.zeros((MINE, TILE), tl.int32)
    equal = tl.zeros((MINE, TILE), tl.int32)
    before = tl.zeros((MINE, TILE), tl.int32)
    for at in range(0, k, TILE):
        i = at + tl.arange(0, TILE)
        there = i < k
        other = tl.load(rows + i, there, -1)
        smaller += ((other[None, :] < mine[:, None]) & there[None, :]).to(tl.int32)
        same = other[None, :] == mine[:, None]
        equal += same.to(tl.int32)
        before += (same & (i[None, :] < j[:, None])).to(tl.int32)
    start = tl.sum(smaller, 1)
    rank = tl.sum(before, 1)
    tl.store(order + start + rank, j, j < k)
    tl.store(starts + j, start, j < k)
    tl.store(counts + j, tl.sum(equal, 1), j < k)
    tl.store(ranks + j, rank, j < k)


@triton.jit
def _add_groups(
    index, order, starts, counts, ranks, x, out, d,
    FEW: tl.constexpr, MANY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0)
    if tl.load(ranks + j) == 0:
        column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        within = column < d
        place = out + tl.load(index + j) * d + column
        total = tl.load(place, within, 0.0)
        start = tl.load(starts + j)
        end = start + tl.load(counts + j)
        # Most groups are small; the copies that fill an index up are one large group.
        many = start + (end - start) // MANY * MANY
        for at in range(start, many, MANY):
            i = tl.load(order + at + tl.arange(0, MANY)).to(tl.int64)
            both = (i >= 0)[:, None] & within[None, :]
            total += tl.sum(tl.load(x + i[:, None] * d + column[None, :], both, 0.0), 0)
        for at in range(many, end, FEW):
            near = at + tl.arange(0, FEW)
            there = near < end
            i = tl.load(order + near, there, 0).to(tl.int64)
            both = there[:, None] & within[None, :]
            total += tl.sum(tl.load(x + i[:, None] * d + column[None, :], both, 0.0), 0)
        tl.store(place, total, within)


@triton.jit
def _pair_scores(user, x, rows, out, k, d, WIDTH: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    u = tl.load(user + b * d + column, within, 0.0)
    pos = tl.load(x + tl.load(rows + b) * d + column, within, 0.0)
    neg = tl.load(x + tl.load(rows + k + b) * d + column, within, 0.0)
    tl.store(out + b, tl.sum(u * pos, 0))
    tl.store(out + k + b, tl.sum(u * neg, 0))


@triton.jit
def _pair_users(x, rows, grad, out, k, d, WIDTH: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    within = column < d
    pos = tl.load(x + tl.load(rows + b) * d + column, within, 0.0)
    neg = tl.load(x + tl.load(rows + k + b) * d + column, within, 0.0)
    total = tl.load(grad + b) * pos + tl.load(grad + k + b) * neg
    tl.store(out + b * d + column, total, within)


@triton.jit
def _pair_items(
    user, rows, order, starts, counts, ranks, grad, out, k, d,
    FEW: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0)
    if tl.load(ranks + j) == 0:
        column = tl.arange(0, WIDTH)
        within = column < d
        total = tl.zeros((WIDTH,), out.dtype.element_ty)
        start = tl.load(starts + j)
        end = start + tl.load(counts + j)
        for at in range(start, end, FEW):
            near = at + tl.arange(0, FEW)
            there = near < end
            i = tl.load(order + near, there, 0).to(tl.int64)
            of = tl.where(i < k, i, i - k)  # whose positive or negative it is
            both = there[:, None] & within[None, :]
            u = tl.load(user + of[:, None] * d + column[None, :], both, 0.0)
            total += tl.sum(tl.load(grad + i, there, 0.0)[:, None] * u, 0)
        tl.store(out + tl.load(rows + j) * d + column, total, within)


@triton.jit
def _distinct(rows, ranks, found, inverse, k, MINE: tl.constexpr, TILE: tl.constexpr):
    j = tl.program_id(0) * MINE + tl.arange(0, MINE)
    mine = tl.load(rows + j, j < k, -1)
    smaller = tl.zeros((MINE, TILE), tl.int32)
    repeats = tl.zeros((MINE, TILE), tl.int32)
    n_found = tl.zeros((TILE,), tl.int32)
    largest = tl.zeros((TILE,), tl.int64)
    for at in range(0, k, TILE):
        i = at + tl.arange(0, TILE)
        other = tl.load(rows + i, i < k, -1)
        first = tl.load(ranks + i, i < k, 1) == 0
        smaller += ((other[None, :] < mine[:, None]) & first[None, :]).to(tl.int32)
        repeats += ((i[None, :] < j[:, None]) & (first[None, :] == 0)).to(tl.int32)
        n_found += first.to(tl.int32)
        largest = tl.maximum(largest, other)
    slot = tl.sum(smaller, 1).to(tl.int64)
    tl.store(inverse + j, slot, j < k)
    # The first of equal rows fills its slot, any other a place at the end.
    is_first = tl.load(ranks + j, j < k, 1) == 0
    end = tl.sum(n_found) + tl.sum(repeats, 1)
    place = tl.where(is_first, slot, end.to(tl.int64))
    tl.store(found + place, tl.where(is_first, mine, tl.max(largest, 0)), j < k)


def multiply(
    pattern: Any,
    values: Tensor,
    x: Tensor,
    *,
    plus: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The product of a pattern with values (nnz,) and x (n, d), plus `plus`; or some rows of it.

    Contiguous arguments; `plus` goes with whole products.
    """
    indptr, indices, long = pattern.indptr, pattern.indices, pattern.parts
    d, width = x.shape[1], min(256, triton.next_power_of_2(x.shape[1]))
    blocks, n_parts, at_once = triton.cdiv(d, width), len(long.rows), min(_TILE // width, PART)
    sums = x.new_empty(n_parts, d)
    if n_parts:
        _sum_parts[(n_parts, blocks)](
            long.rows, long.starts, len(indptr) - 1, indptr, indices, values, x, sums, d,
            EDGES=at_once, LENGTH=PART, WIDTH=width, num_warps=1,
        )  # fmt: skip
    out = x.new_empty(len(indptr) - 1 if rows is None else len(rows), d)
    if len(out):
        _multiply[(len(out), blocks)](
            indptr if rows is None else rows, indptr, indices, values, x,
            x if plus is None else plus, long.first, sums, out, d,
            SOME=rows is not None, PLUS=plus is not None,
            EDGES=at_once, LENGTH=PART, FEW=_FEW, WIDTH=width, num_warps=1,
        )  # fmt: skip
    return out


def dots(pattern: Any, a: Tensor, b: Tensor) -> Tensor:
    """`<a[row], b[column]>` of each entry, (nnz,). Contiguous arguments."""
    out, width = a.new_empty(pattern.nnz), min(64, triton.next_power_of_2(a.shape[1]))
    if pattern.nnz:
        _dots[(triton.cdiv(pattern.nnz, 32),)](
            pattern.row, pattern.indices, a, b, out, pattern.nnz, a.shape[1], EDGES=32, WIDTH=width
        )
    return out


MOST = 1 << 14
"""Rows up to which `group` pays: it looks at every pair of them."""


class Groups(NamedTuple):
    """Equal rows of a list (k,) together, int32.

    Attributes:
        order: Places in the list, by row, then by place.
        starts: Where the group of each place begins in `order`.
        counts: The size of its group.
        ranks: How many of its group come before it.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor
    ranks: Tensor


def group(rows: Tensor) -> Groups:
    """The groups of equal rows, without sorting."""
    k = len(rows)
    groups = Groups(*torch.empty(4, k, dtype=torch.int32, device=rows.device))
    _group[(triton.cdiv(k, 16),)](rows, *groups, k, MINE=16, TILE=128)
    return groups


def distinct(rows: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """As `mmbench.ops.rows.distinct`, the second part without its groups."""
    found, inverse, k = torch.empty_like(rows), torch.empty_like(rows), len(rows)
    _distinct[(triton.cdiv(k, 16),)](rows, groups.ranks, found, inverse, k, MINE=16, TILE=128)
    return found, inverse


def add_rows(index: Tensor, groups: Groups, x: Tensor, out: Tensor) -> Tensor:
    """`out.index_add_(0, index, x)` for x (k, d), equal rows added in their order. Contiguous."""
    width = min(128, triton.next_power_of_2(x.shape[1]))
    _add_groups[(len(index), triton.cdiv(x.shape[1], width))](
        index, *groups, x, out, x.shape[1], FEW=8, MANY=64, WIDTH=width, num_warps=1
    )
    return out


def pair_scores(user: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """`<user[b], x[rows[b]]>` and `<user[b], x[rows[B + b]]>`, (2, B). Contiguous arguments."""
    (k, d), out = user.shape, user.new_empty(2, len(user))
    _pair_scores[(k,)](user, x, rows, out, k, d, WIDTH=triton.next_power_of_2(d), num_warps=1)
    return out


def pair_scores_backward(
    user: Tensor, x: Tensor, rows: Tensor, groups: Groups, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of user and x, from that of the scores, (2 B,). Contiguous arguments."""
    (k, d), grad_user, grad_x = user.shape, torch.empty_like(user), torch.zeros_like(x)
    width = triton.next_power_of_2(d)
    _pair_users[(k,)](x, rows, grad, grad_user, k, d, WIDTH=width, num_warps=1)
    _pair_items[(2 * k,)](user, rows, *groups, grad, grad_x, k, d, FEW=8, WIDTH=width, num_warps=1)
    return grad_user, grad_x
