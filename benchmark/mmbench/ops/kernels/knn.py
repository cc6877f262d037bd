"""The best candidates of each row while blocks of cosines pass by, and their exact cosines."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import kernel, reduction

Array = Any

_CHUNK = 64  # cosines compared with the threshold before looking for the one that passed


@kernel
def insert(value: Any, index: int, values: Array, indices: Array) -> None:
    """Into a list sorted by value, largest first, then by index; its last entry drops out."""
    # Not better than the worst entry: by value, then by the smaller index.
    at = values.shape[0] - 1
    if value < values[at] or (value == values[at] and index > indices[at]):
        return
    # Worse entries move down one place each, until the new one fits.
    while at > 0 and (
        values[at - 1] < value or (values[at - 1] == value and indices[at - 1] > index)
    ):
        values[at] = values[at - 1]
        indices[at] = indices[at - 1]
        at -= 1
    values[at] = value
    indices[at] = index


@kernel
def offer_rows(
    lo: int, hi: int, block: Array, row0: int, column0: int, values: Array, indices: Array
) -> None:
    """Offer block[r, c] to row row0 + r under the index column0 + c, for all c and lo <= r < hi."""
    width = block.shape[1]
    for r in range(lo, hi):
        best, who, cosines = values[row0 + r], indices[row0 + r], block[r]
        for start in range(0, width, _CHUNK):
            chunk = cosines[start : min(start + _CHUNK, width)]
            worst = best[-1]
            # Few chunks hold a new neighbour; a test without branches is vectorised.
            passing = 0
            for c in range(chunk.shape[0]):
                passing |= chunk[c] >= worst
            if passing:
                for c in range(chunk.shape[0]):
                    # `worst` may be out of date by now; insert compares anew.
                    insert(chunk[c], column0 + start + c, best, who)


@kernel
def offer_columns(
    lo: int, hi: int, block: Array, row0: int, column0: int, values: Array, indices: Array
) -> None:
    """Offer block[r, c] to row column0 + c under the index row0 + r, for all r and lo <= c < hi."""
    last = values.shape[1] - 1
    # Thresholds of a chunk of columns, so that the block is read along its rows.
    worst = np.empty(_CHUNK, block.dtype)
    for start in range(lo, hi, _CHUNK):
        width = min(_CHUNK, hi - start)
        for c in range(width):
            worst[c] = values[column0 + start + c, last]
        for r in range(block.shape[0]):
            chunk = block[r, start : start + width]
            passing = 0
            for c in range(width):
                passing |= chunk[c] >= worst[c]
            if passing:
                for c in range(width):
                    if chunk[c] >= worst[c]:
                        row = column0 + start + c
                        insert(chunk[c], row0 + r, values[row], indices[row])
                        worst[c] = values[row, last]


@reduction
def _dot(a: Array, b: Array) -> Any:
    total = 0.0
    for j in range(a.shape[0]):
        # In double precision, products of float32 numbers are exact.
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@kernel
def squared_norms(lo: int, hi: int, x: Array, out: Array) -> None:
    """out[r] = <x[r], x[r]>, summed in double precision in the same order as `refine` does."""
    for r in range(lo, hi):
        out[r] = _dot(x[r], x[r])


@kernel
def refine(lo: int, hi: int, x: Array, squares: Array, indices: Array, out: Array) -> None:
    """out[r, k] = cosine of rows r and indices[r, k]; 1 to itself, 0 to a zero row.

    Summed in double precision. Equal rows get equal cosines, and rows equal to r get exactly 1:
    sqrt(s s) is s.
    """
    for r in range(lo, hi):
        for k in range(indices.shape[1]):
            c = indices[r, k]
            scale = np.sqrt(squares[r] * squares[c])
            if c == r:
                out[r, k] = 1.0
            elif scale > 0:
                out[r, k] = min(1.0, max(-1.0, _dot(x[r], x[c]) / scale))
            else:
                out[r, k] = 0.0
