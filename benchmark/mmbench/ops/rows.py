"""Rows of a batch: the distinct ones among them, and gathering with a cheap, ordered backward.

Shapes on a GPU must not depend on the data, or each step would wait for the device. There
`distinct` fills its list up with copies of the last row. Everything that is computed for a row
alone is then computed for copies too, and they get no gradient, for the places of a batch point at
the first of equal rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.ops import gpu
from mmbench.ops.kernels import apply


@dataclass(frozen=True, eq=False)
class Grouped:
    """Row numbers of a batch, and which of them are equal where a backward looks that up.

    Attributes:
        rows: Shape (k,), int64, any order, repetitions allowed.
        groups: See `mmbench.ops.gpu.sparse.Groups`; None where nobody needs them.
    """

    rows: Tensor
    groups: Any = None

    @cached_property
    def distinct(self) -> tuple[Tensor, Grouped]:
        """See the function of this name."""
        return _distinct(self)


def grouped(rows: Tensor) -> Grouped:
    """Row numbers for several `take`s, whose backwards share what they look up."""
    if gpu.serves(rows) and len(rows):
        from mmbench.ops.gpu import sparse as gpu_kernels

        if len(rows) <= gpu_kernels.MOST:
            rows = rows.contiguous()
            return Grouped(rows, gpu_kernels.group(rows))
    return Grouped(rows)


def distinct(rows: Tensor | Grouped) -> tuple[Tensor, Grouped]:
    """The distinct rows of a batch, and where each of its rows is among them.

    Args:
        rows: Row numbers, shape (k,), int64, k >= 1.

    Returns:
        The distinct ones, ascending; on other devices than the CPU the last one repeated up to
        shape (k,). And the places (k,) with `found[places.rows] == rows`.
    """
    return (rows if isinstance(rows, Grouped) else grouped(rows)).distinct


def _distinct(known: Grouped) -> tuple[Tensor, Grouped]:
    rows = known.rows
    if not gpu.static(rows):
        found, inverse = torch.unique(rows, return_inverse=True)
        return found, Grouped(inverse)
    if known.groups is not None:
        from mmbench.ops.gpu import sparse as gpu_kernels

        found, inverse = gpu_kernels.distinct(known.rows, known.groups)
        return found, Grouped(inverse, known.groups)  # equal rows have equal places
    ordered, place = rows.sort()
    # A row's slot: how many different ones come before it.
    slot = torch.zeros_like(ordered)
    torch.cumsum(ordered[1:] != ordered[:-1], 0, out=slot[1:])
    found = ordered[-1].repeat(len(rows)).scatter_(0, slot, ordered)
    return found, Grouped(torch.empty_like(place).scatter_(0, place, slot))


def take(x: Tensor, index: Tensor | Grouped) -> Tensor:
    """`x[index]` of a matrix x (n, d) for rows (k,), any order; differentiable once in x.

    The backward adds up the gradients of equal rows in their order, so that its bits repeat.
    """
    if not gpu.static(x):
        return functional.embedding(index.rows if isinstance(index, Grouped) else index, x)
    return apply(_Take, x, index if isinstance(index, Grouped) else grouped(index))


def pair_scores(user: Tensor, x: Tensor, places: Grouped) -> tuple[Tensor, Tensor]:
    """The inner products of each user with two rows of x, its positive and its negative.

    Args:
        user: Shape (B, d).
        x: Shape (n, d).
        places: Rows of x: the B positives, then the B negatives.

    Returns:
        Scores of the positives (B,) and of the negatives (B,); differentiable once.
    """
    if places.groups is not None:
        pos, neg = _PairScores.apply(user, x, places)  # type: ignore[no-untyped-call]
        return pos, neg
    pair, size = take(x, places), len(user)
    return (user * pair[:size]).sum(1), (user * pair[size:]).sum(1)


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user: Tensor, x: Tensor, places: Grouped) -> tuple[Tensor, Tensor]:
        from mmbench.ops.gpu import sparse as gpu_kernels

        user, x = user.contiguous(), x.contiguous()
        ctx.places = places
        ctx.save_for_backward(user, x)
        scores = gpu_kernels.pair_scores(user, x, places.rows)
        return scores[0], scores[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_pos: Tensor, of_neg: Tensor) -> tuple[Tensor, Tensor, None]:
        from mmbench.ops.gpu import sparse as gpu_kernels

        user, x = ctx.saved_tensors
        rows, groups, grad = ctx.places.rows, ctx.places.groups, torch.cat([of_pos, of_neg])
        grad_user, grad_x = gpu_kernels.pair_scores_backward(user, x, rows, groups, grad)
        return grad_user, grad_x, None


def add_rows(out: Tensor, index: Tensor | Grouped, x: Tensor) -> Tensor:
    """`out.index_add_(0, index, x)` for x (k, d), in place.

    Equal rows are added in their order, but for lists of more than 16,384 rows on a GPU.
    """
    index = index if isinstance(index, Grouped) else grouped(index)
    if index.groups is None:
        return out.index_add_(0, index.rows, x)
    from mmbench.ops.gpu import sparse as gpu_kernels

    return gpu_kernels.add_rows(index.rows, index.groups, x.contiguous(), out)


def occurrences(places: Grouped, like: Tensor) -> Tensor:
    """How often a batch has each of its distinct rows: for the `places` that `distinct` gives.

    Returns:
        Shape (n,) for n distinct rows, in the dtype of `like` (n, d) and on its device; 0 for the
        copies that fill the list up.
    """
    ones = like.new_ones(len(places.rows), 1)
    return add_rows(like.new_zeros(len(like), 1), places, ones).flatten()


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Grouped) -> Tensor:
        ctx.index, ctx.shape = index, x.shape
        return x.index_select(0, index.rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return add_rows(grad.new_zeros(ctx.shape), ctx.index, grad), None
