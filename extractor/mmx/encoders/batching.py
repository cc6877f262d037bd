"""Padded batches from items of different size, and one vector per item from a layer's output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = ("mean", "max", "cls", "flatten", "all")


def pad_batch(batch: NDArray[np.generic], size: int | None) -> NDArray[np.generic]:
    """Fill a batch with copies of its last row, so that every forward pass has the same shape.

    Args:
        batch: Shape (n, ...), n >= 1.
        size: Wanted number of rows; with None, or n rows already, the batch is returned as it is.
    """
    if size is None or len(batch) >= size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def pad_rows(
    rows: Sequence[NDArray[np.integer]], value: int, *, left: bool = False, width: int = 0
) -> NDArray[np.int64]:
    """Return rows of different length as one matrix, (len(rows), length of the longest).

    Args:
        rows: One-dimensional arrays, at least one.
        value: Fills the shorter rows.
        left: Fill before the row instead of after it.
        width: Least number of columns.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))[:, None]
    width = max(width, int(lengths.max()))
    columns = np.arange(width)
    padded = np.full((len(rows), width), value, dtype=np.int64)
    padded[columns >= width - lengths if left else columns < lengths] = np.concatenate(rows)
    return padded


def usual_width(longest: int, most: int) -> int:
    """Return the number of columns for rows of up to `longest` tokens, of which there are few.

    A multiple of 8 up to 64 and of 32 above, but no more than `most`, unless a row is longer.
    """
    step = 8 if longest <= 64 else 32
    return max(longest, min(-(-longest // step) * step, most))


def groups_of_equal(keys: Sequence[int]) -> list[list[int]]:
    """Group positions by equal key, groups in the order of their first position."""
    groups: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def equal_parts(length: int, longest: int) -> list[tuple[int, int]]:
    """Return bounds of the fewest parts of at most `longest`, equal to within one; both >= 1."""
    n_parts = -(-length // longest)
    bounds = [length * i // n_parts for i in range(n_parts + 1)]
    return list(itertools.pairwise(bounds))


def pool(x: Tensor, how: str, *, channels_last: bool = False) -> Tensor:
    """Pool a layer's output to one vector per item, shape (batch, dim), or to several.

    Args:
        x: Output of a layer: (batch, dim), (batch, positions, dim), (batch, channels, height,
            width) or, with `channels_last`, (batch, height, width, channels).
        how: `mean` or `max` over the positions, `cls` for the first position, `flatten` for all of
            them in a row, `none` for an output that has no positions; `all` keeps them, shape
            (batch, positions, dim). An output of shape (batch, dim) is returned as it is.
        channels_last: Where a four-dimensional output has its channels.

    Raises:
        ValueError: `how` does not fit the shape.
    """
    if x.ndim == 2:
        return x
    shape = tuple(x.shape)
    if x.ndim == 4 and not channels_last:
        x = x.permute(0, 2, 3, 1)  # (batch, height, width, channels)
    if x.ndim == 4:
        x = x.flatten(1, 2)
    if x.ndim != 3:
        raise ValueError(f"an output of shape {shape} can't be pooled to vectors")
    # x: (batch, positions, dim)
    match how:
        case "mean":
            return x.mean(dim=1)
        case "max":
            return x.amax(dim=1)
        case "cls" if len(shape) == 3:
            return x[:, 0]
        case "flatten":
            return x.flatten(1)
        case "all":
            return x
        case "none" if x.shape[1] == 1:
            return x[:, 0]
        case _:
            raise ValueError(f"pooling {how!r} does not fit an output of shape {shape}")


def pool_positions(states: Tensor, how: str, mask: Tensor | None) -> Tensor:
    """Pool the states of each item's own positions to one vector, shape (batch, dim).

    Args:
        states: Shape (batch, positions, dim), or (batch, dim, height, width) of convolutional
            networks.
        how: `cls` for the first position, `mean`, or `last` for the last one that the mask keeps.
        mask: 1 where a position is the item's own and 0 where it is padding, shape (batch,
            positions); None: all are.
    """
    import torch

    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    if how == "cls":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    if how == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    weights = mask.to(states.dtype)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)


def every_position(states: Tensor, mask: Tensor | None) -> list[NDArray[np.float32]]:
    """Return the states of each item's own positions, (k, dim) each; as `pool_positions`."""
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    rows: NDArray[np.float32] = states.float().cpu().numpy()
    lengths = [rows.shape[1]] * len(rows) if mask is None else mask.sum(1).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
