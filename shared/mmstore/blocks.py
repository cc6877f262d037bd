"""How rows are grouped so that files are read and written in long sequential pieces. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mmstore.spec import BLOCK_BYTES


def block_rows(row_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Number of rows of `row_bytes` that fit in a block; at least 1."""
    return max(1, block_bytes // max(1, row_bytes))


def spans(n: int, step: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges `(start, stop)` of at most `step` that cover `range(n)` in order."""
    for start in range(0, n, step):
        yield start, min(start + step, n)


def runs(
    rows: NDArray[np.int64], *, max_gap: int = 0, max_span: int | None = None
) -> Iterator[tuple[int, int]]:
    """Positions `(i, j)` such that `rows[i:j]` lie close together.

    Args:
        rows: Ascending row numbers, shape (b,); repetitions are allowed.
        max_gap: How many absent rows in between do not end a run.
        max_span: A run never crosses a multiple of this, so it covers at most this many rows.
    """
    if rows.size == 0:
        return
    ends = np.diff(rows) > max_gap + 1
    if max_span is not None:
        block = rows // max_span
        ends |= block[1:] != block[:-1]
    edges = np.concatenate(([0], np.flatnonzero(ends) + 1, [rows.size]))
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
