"""The exact selection as it was when it looked for NaN at every level: the reference of today's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmbench.ops.dense import NanScoreError

# Columns per block, coarse level first, and how much shorter a level must make the rows.
_BLOCK_WIDTHS = (32, 8)
_WORTHWHILE = 2


def earlier_top_k(scores: Tensor, k: int) -> Tensor:
    found = min(k, scores.shape[1])
    items = _first_positions(scores, found)  # (B, found)
    # -inf ranks last, so that only the end of a list can hold it.
    items = items.masked_fill(scores.gather(1, items) == -math.inf, -1)
    return torch.nn.functional.pad(items, (0, k - found), value=-1)


def _first_positions(values: Tensor, k: int) -> Tensor:
    """Columns of each row's k <= n largest values, (B, k): largest first, ties by column."""
    columns = values.shape[1]
    for width in _BLOCK_WIDTHS:
        # The k best blocks and the rest have fewer than (k + 1) width columns.
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
    # Candidates stand in the order of columns, so that ties by position are ties by column.
    position = _first_positions(torch.cat([candidates, rest], 1), k)  # (B, k)
    # Back to columns: positions below k * width lie in a chosen block, the others in the rest. The
    # clamp keeps the gather in range where the rest is taken.
    block = position.div(width, rounding_mode="floor")
    in_chosen = chosen.gather(1, block.clamp(max=k - 1)) * width + position % width
    in_rest = position + (n_blocks - k) * width
    return torch.where(block < k, in_chosen, in_rest)


def _refuse_nan(values: Tensor) -> None:
    """Raise for the first row that holds a NaN."""
    bad = values.isnan().any(1)
    if bool(bad.any()):
        raise NanScoreError(int(bad.nonzero()[0, 0]))
