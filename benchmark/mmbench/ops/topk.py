"""The k best items of each row of scores, exactly and reproducibly.

Ties are broken by ascending item row, at the boundary too, so that the same scores give the same
lists on every device and with every library version. Long rows are never sorted: cut into blocks of
neighbouring columns, the k blocks that come first by maximum (equal maxima by block order) hold the
k best items, because any item outside them has k items before it, one in each of those blocks. The
same argument then holds inside the chosen blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmbench.errors import DataError, ShapeError

# Columns per block, coarse level first, and how much shorter a level must make the rows.
_BLOCK_WIDTHS = (32, 8)
_WORTHWHILE = 2


class NanScoreError(DataError):
    """A candidate's score is NaN.

    Attributes:
        row: The first such row of the scores.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"scores, row {row}: NaN (expected real numbers)")
        self.row = row


def top_k(scores: Tensor, k: int) -> Tensor:
    """The items of the k highest scores of each row, best first.

    Args:
        scores: Shape (B, n_items), floating point, on any device; -inf marks items that are no
            candidates.
        k: Length of the lists, >= 1.

    Returns:
        Item rows, shape (B, k), int64: by score descending, equal scores by row ascending. A row
        with fewer than k candidates ends in -1.

    Raises:
        ShapeError: `scores` is not 2-D floating point, or `k` < 1.
        NanScoreError: A score is NaN; it has the first such row of `scores`.
    """
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ShapeError(
            f"top_k: scores must be (B, n_items) floating point, got {tuple(scores.shape)} "
            f"{scores.dtype}"
        )
    if k < 1:
        raise ShapeError(f"top_k: k must be at least 1, got {k}")
    found = min(k, scores.shape[1])
    items = _first_positions(scores, found)  # (B, found)
    items = items.masked_fill(scores.gather(1, items) == -math.inf, -1)
    return torch.nn.functional.pad(items, (0, k - found), value=-1)


def _first_positions(values: Tensor, k: int) -> Tensor:
    """Columns of each row's k <= n largest values, (B, k): largest first, ties by column."""
    columns = values.shape[1]
    for width in _BLOCK_WIDTHS:
        if columns >= _WORTHWHILE * (k + 1) * width:
            return _among_best_blocks(values, k, width)
    _refuse_nan(values)
    if values.dtype == torch.float64:  # does not fit into the integer key below
        return torch.sort(values, dim=1, descending=True, stable=True).indices[:, :k]
    # The bits of a float, read as an integer, grow with a positive float and fall with a negative
    # one. Adding zero turns -0.0 into 0.0. The column, counted from the right, goes into the lower
    # half of the key and decides ties.
    bits = (values.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = ordered.long().bitwise_left_shift_(32)
    key |= torch.arange(columns - 1, -1, -1, device=values.device)
    return columns - 1 - (key.topk(k, dim=1).values & 0xFFFFFFFF)


def _among_best_blocks(values: Tensor, k: int, width: int) -> Tensor:
    """`_first_positions` of rows of k blocks or more: in the best blocks and the short rest."""
    n_blocks = values.shape[1] // width
    blocks = values[:, : n_blocks * width].view(-1, n_blocks, width)  # (B, n_blocks, width)
    rest = values[:, n_blocks * width :]  # (B, < width)
    maxima = blocks.amax(2)  # (B, n_blocks)
    _refuse_nan(torch.cat([maxima, rest], 1))  # a NaN anywhere in a block is its maximum
    chosen = _first_positions(maxima, k).sort(1).values  # ascending: in the order of columns
    rows = torch.arange(values.shape[0], device=values.device)
    candidates = blocks[rows[:, None], chosen].flatten(1)  # (B, k * width)
    position = _first_positions(torch.cat([candidates, rest], 1), k)  # (B, k)
    block = position.div(width, rounding_mode="floor")
    in_chosen = chosen.gather(1, block.clamp(max=k - 1)) * width + position % width
    in_rest = position + (n_blocks - k) * width
    return torch.where(block < k, in_chosen, in_rest)


def _refuse_nan(values: Tensor) -> None:
    """Raise for the first row that holds a NaN."""
    bad = values.isnan().any(1)
    if bool(bad.any()):
        raise NanScoreError(int(bad.nonzero()[0, 0]))
