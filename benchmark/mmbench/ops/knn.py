"""Exact nearest neighbours by cosine, in blocks of a given size: no items x items array.

The blocks of cosines come from fast single-precision products, each unordered pair of blocks once,
and only shortlist candidates: `MARGIN` more than asked for. The shortlist is ranked by cosines
summed in double precision, so the lists do not depend on the routine that multiplies, on the block
size or on the number of threads. Ties are broken by ascending row. (Among more than `MARGIN`
candidates that agree to single precision, e.g. the copies of one stand-in picture, single precision
decides who is shortlisted.)

A zero row has cosine 0 to all others and 1 to itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmbench.errors import DataError, ShapeError
from mmbench.ops import dense, memory
from mmbench.ops.kernels import apply, array, run, split
from mmbench.ops.sparse import SparsePattern

MARGIN = 8
BLOCK_BYTES = 128 * 2**20
_ITSELF = 2.0  # above all cosines: each row is on its own shortlist, a zero row too


def cosine_knn(
    features: Tensor, k: int, *, block_bytes: int | None = None, finite: bool = False
) -> tuple[Tensor, Tensor]:
    """The k rows most similar to each row by cosine, itself included.

    Args:
        features: Shape (n, d), float32 or float64, finite; n >= k. No gradient flows: see
            `gathered_cosines`.
        k: Neighbours of each row, >= 1.
        block_bytes: Memory for the blocks that are multiplied and their cosines; None: 128 MiB on
            the CPU, elsewhere by what is free (`ops.memory`).
        finite: The caller will notice a feature that is not: the device is not waited for to look.
            On the CPU, where that costs nothing, it is looked for all the same.

    Returns:
        Row numbers (n, k) int64 and cosines (n, k) in [-1, 1] of the dtype of `features`; most
        similar first, ties by ascending row. A row is missing from its own list only if k others
        with a smaller number are equal to it.

    Raises:
        ShapeError: There are fewer than k rows, or not a matrix.
        DataError: A feature is NaN or infinite.
    """
    if features.ndim != 2 or not 1 <= k <= features.shape[0]:
        raise ShapeError(
            f"cosine_knn: k = {k} neighbours in a {tuple(features.shape)} matrix; needs 1 <= k <= "
            "rows"
        )
    x = features.detach().contiguous()
    if block_bytes is None:
        block_bytes = memory.block_bytes(x.device, BLOCK_BYTES)
    # A feature that is not finite makes its row's sum of squares so: one test per row.
    squares = squared_norms(x)
    bad = ~torch.isfinite(squares)
    if (x.device.type == "cpu" or not finite) and bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(
            f"cosine_knn: row {row} holds NaN or infinite features; check the store with `mmx "
            "store verify`"
        )
    shortlist = min(x.shape[0], k + MARGIN)
    if x.device.type == "cpu":
        candidates, cosines = _compiled(x, squares, shortlist, block_bytes)
    else:
        candidates, cosines = _plain(x, squares, shortlist, block_bytes)
    # Rounded before they are ranked: cosines equal in this precision are ties.
    return by_cosine(candidates, cosines.to(x.dtype), k)


def by_cosine(candidates: Tensor, cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row's candidates, (n, more than k), ties by ascending row."""
    # By ascending row first; the stable sort by cosine then keeps that order among ties.
    candidates, order = candidates.sort(dim=1)
    cosines, order = cosines.gather(1, order).sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order)[:, :k].contiguous(), cosines[:, :k].contiguous()


def gathered_cosines(x: Tensor, neighbours: Tensor) -> Tensor:
    """The cosines of each row with the rows listed for it, differentiable with respect to x.

    Args:
        x: Shape (n, d).
        neighbours: Row numbers, shape (n, k), int64.

    Returns:
        Shape (n, k), in [-1, 1] up to rounding. Where x has a zero row: 0, to itself 1, with
        gradient zero.

    Raises:
        ShapeError: There is not one list per row.
    """
    if neighbours.ndim != 2 or x.ndim != 2 or neighbours.shape[0] != x.shape[0]:
        raise ShapeError(
            f"gathered_cosines: lists {tuple(neighbours.shape)} for rows {tuple(x.shape)}"
        )
    return apply(_GatheredCosines, x, neighbours)


class _GatheredCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor) -> Tensor:
        n, k = neighbours.shape
        indptr = torch.arange(n + 1, device=x.device) * k
        pattern = SparsePattern(indptr, neighbours.reshape(-1), n)
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        # 1 / |x|, or 0 for a zero row: then its cosines and its gradient are 0.
        inverse = torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
        unit = x * inverse  # (n, d)
        ctx.pattern = pattern
        ctx.save_for_backward(unit, inverse)
        cosines = pattern.dots(unit, unit).view(n, k)
        own = neighbours == torch.arange(n, device=x.device)[:, None]
        return cosines.masked_fill_(own & (norms == 0), 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, inverse = ctx.saved_tensors
        # d cos(i, j) / d x_i = (u_j - cos(i, j) u_i) / |x_i| with the unit rows u.
        weights = grad.reshape(-1)
        transpose, order = ctx.pattern.transpose
        # A pair moves both of its rows: g_ij u_j goes to i, g_ij u_i to j.
        towards = ctx.pattern.multiply(weights, unit)
        towards = transpose.multiply(weights[order], unit, plus=towards)
        # The terms - cos(i, j) u_i add up to minus the part of `towards` along u_i.
        return (towards - unit * (unit * towards).sum(1, keepdim=True)).mul_(inverse), None


def _block_rows(n: int, d: int, element_bytes: int, block_bytes: int) -> int:
    # Two blocks of b rows and their b x b cosines: b (b + 2 d) elements.
    elements = block_bytes / element_bytes
    # The positive root of b² + 2 d b = elements.
    return max(1, min(n, int(math.sqrt(d * d + elements) - d)))


def unit_rows(x: Tensor, squares: Tensor) -> Tensor:
    """Each row of x (n, d) divided by the root of its square (n,), a zero row as it is."""
    return x * torch.where(squares > 0, squares, 1.0).rsqrt().to(x.dtype)[:, None]


def squared_norms(x: Tensor) -> Tensor:
    """The inner product of each row of x (n, d) with itself, (n,), float64."""
    if x.device.type != "cpu":
        return torch.cat([part.double().square().sum(1) for part in torch.split(x, 4096)])
    from mmbench.ops.kernels import knn

    squares = torch.empty(x.shape[0], dtype=torch.float64)
    run(knn.squared_norms, split(x.shape[0], work=x.numel()), array(x), squares.numpy())
    return squares


def _compiled(x: Tensor, squares: Tensor, k: int, block_bytes: int) -> tuple[Tensor, Tensor]:
    from mmbench.ops.kernels import knn

    n, d = x.shape
    # Empty places: value -inf, row n. Any candidate comes before them.
    values = torch.full((n, k), -math.inf, dtype=x.dtype)
    indices = torch.full((n, k), n, dtype=torch.int64)
    lists = values.numpy(), indices.numpy()
    size = _block_rows(n, d, x.element_size(), block_bytes)
    for i in range(0, n, size):
        rows = unit_rows(x[i : i + size], squares[i : i + size])
        for j in range(i, n, size):
            # Cosines are symmetric: the block of rows i and rows j serves the lists of both.
            columns = rows if i == j else unit_rows(x[j : j + size], squares[j : j + size])
            cosines = dense.product(rows, columns.t())
            if i == j:
                cosines.fill_diagonal_(_ITSELF)
            block = array(cosines)
            work = block.size * 8
            run(knn.offer_rows, split(block.shape[0], work=work), block, i, j, *lists)
            if i != j:
                run(knn.offer_columns, split(block.shape[1], work=work), block, i, j, *lists)
            del columns, cosines, block  # before the next ones are made
    return indices, exact_cosines(x, squares, indices)


def exact_cosines(x: Tensor, squares: Tensor, near: Tensor) -> Tensor:
    """The cosines of each row of x (n, d) with those listed, (n, k), on the CPU, in float64.

    `squares` (n,) are the rows' `squared_norms`.
    """
    from mmbench.ops.kernels import knn

    exact = torch.empty(near.shape, dtype=torch.float64)
    everything = split(len(x), work=near.numel() * x.shape[1])
    run(knn.refine, everything, array(x), squares.numpy(), near.numpy(), exact.numpy())
    return exact


def _plain(x: Tensor, squares: Tensor, k: int, block_bytes: int) -> tuple[Tensor, Tensor]:
    """As `_compiled`, by torch's operations, none of which waits for the device."""
    n, d = x.shape
    size = max(1, min(n, block_bytes // (x.element_size() * (n + d))))
    unit = unit_rows(x, squares)
    indices = torch.empty((n, k), dtype=torch.int64, device=x.device)
    for start in range(0, n, size):
        block = unit[start : start + size] @ unit.t()
        block.diagonal(start).fill_(_ITSELF)
        # Ties by row, as in `_compiled`: items without content share a vector, and more of them
        # than the margin holds are equally near.
        indices[start : start + size] = dense.unchecked_top_k(block, k)[0]
        del block  # before the next one is made
    # Per row, the k neighbours' features as stored, in double precision, and times the row's.
    step = max(1, block_bytes // ((x.element_size() + 16) * k * d))
    exact = torch.empty((n, k), dtype=torch.float64, device=x.device)
    for start in range(0, n, step):
        rows = torch.arange(start, min(n, start + step), device=x.device)
        near = indices[rows]
        # |x_i| |x_j| as one root: for equal rows it is exactly the squared norm.
        scale = (squares[rows, None] * squares[near]).sqrt()
        dots = (x[rows, None].double() * x[near].double()).sum(2)
        part = torch.where(scale > 0, dots / torch.where(scale > 0, scale, 1.0), 0.0).clamp(-1, 1)
        exact[start : start + step] = part.masked_fill(near == rows[:, None], 1.0)
    return indices, exact
