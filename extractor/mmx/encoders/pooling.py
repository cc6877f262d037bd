"""From a layer's output to one vector per item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = ("mean", "max", "cls", "flatten")


def pool(x: Tensor, how: str, *, channels_last: bool = False) -> Tensor:
    """One vector per item.

    Args:
        x: Output of a layer: (batch, dim), (batch, positions, dim), (batch, channels, height,
            width) or, with `channels_last`, (batch, height, width, channels).
        how: `mean` or `max` over the positions, `cls` for the first position, `flatten` for all of
            them in a row, `none` for an output that has no positions. An output of shape (batch,
            dim) is returned as it is.
        channels_last: Where a four-dimensional output has its channels.

    Returns:
        Shape (batch, dim).

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
        case "none" if x.shape[1] == 1:
            return x[:, 0]
        case _:
            raise ValueError(f"pooling {how!r} does not fit an output of shape {shape}")


def pool_positions(states: Tensor, how: str, mask: Tensor | None) -> Tensor:
    """One vector per item from the states of its positions.

    Args:
        states: Shape (batch, positions, dim), or (batch, dim, height, width) of convolutional
            networks.
        how: `cls` for the first position, `mean`, or `last` for the last one that the mask keeps.
        mask: 1 where a position is the item's own and 0 where it is padding, shape (batch,
            positions); None: all are.

    Returns:
        Shape (batch, dim).
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
    """The states of each item's own positions, (k, dim) each; arguments as of `pool_positions`."""
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    rows: NDArray[np.float32] = states.float().cpu().numpy()
    lengths = [rows.shape[1]] * len(rows) if mask is None else mask.sum(1).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
