"""Batches from items of different size: padding, groups of equal length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pad_batch(batch: NDArray[np.generic], size: int | None) -> NDArray[np.generic]:
    """The batch with copies of its last row up to `size` rows, so that every forward pass has the same shape.

    Args:
        batch: Shape (n, ...), n >= 1.
        size: Wanted number of rows; None, or one that is reached already: the batch as it is.
    """
    if size is None or len(batch) >= size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def pad_rows(
    rows: Sequence[NDArray[np.integer]], value: int, *, left: bool = False
) -> NDArray[np.int64]:
    """Rows of different length as one matrix.

    Args:
        rows: One-dimensional arrays, at least one.
        value: Fills the shorter rows.
        left: Fill before the row instead of after it.

    Returns:
        Shape (len(rows), length of the longest).
    """
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, slice(width - len(row), width) if left else slice(len(row))] = row
    return padded


def groups_of_equal(keys: Sequence[int]) -> list[list[int]]:
    """Positions grouped by equal key, groups in the order of their first position."""
    groups: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def equal_parts(length: int, longest: int) -> list[tuple[int, int]]:
    """Bounds that cut a sequence into the fewest parts of at most `longest`, equal to within one.

    Args:
        length: Length of the sequence, >= 1.
        longest: Longest part, >= 1.
    """
    n_parts = -(-length // longest)
    bounds = [length * i // n_parts for i in range(n_parts + 1)]
    return list(itertools.pairwise(bounds))
