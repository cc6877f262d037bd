"""Products of a matrix in compressed sparse rows (CSR) with a dense one.

In all of them: indptr (n_rows + 1,) int64, indices (nnz,) int64, values (nnz,); x, out and the like
are C-contiguous.
"""

from __future__ import annotations

from typing import Any

from mmbench.ops.kernels import kernel, reduction

Array = Any  # numba specialises on the dtype: float32 or float64


@kernel
def matmul(
    lo: int, hi: int, indptr: Array, indices: Array, values: Array, x: Array, out: Array
) -> None:
    """out[r] += sum over the entries e of row r of values[e] * x[indices[e]]."""
    for r in range(lo, hi):
        for e in range(indptr[r], indptr[r + 1]):
            column = indices[e]
            value = values[e]
            for j in range(x.shape[1]):
                out[r, j] += value * x[column, j]


@kernel
def matmul_rows(
    lo: int,
    hi: int,
    rows: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    x: Array,
    out: Array,
) -> None:
    """out[k] += row rows[k] of the matrix times x."""
    for k in range(lo, hi):
        r = rows[k]
        for e in range(indptr[r], indptr[r + 1]):
            column = indices[e]
            value = values[e]
            for j in range(x.shape[1]):
                out[k, j] += value * x[column, j]


@kernel
def scatter_rows(
    rows: Array, indptr: Array, indices: Array, values: Array, g: Array, out: Array
) -> None:
    """out[indices[e]] += values[e] * g[k] for each e of row rows[k]: `matmul_rows` transposed."""
    for k in range(rows.shape[0]):
        r = rows[k]
        for e in range(indptr[r], indptr[r + 1]):
            column = indices[e]
            value = values[e]
            for j in range(g.shape[1]):
                out[column, j] += value * g[k, j]


@reduction
def dots(lo: int, hi: int, indptr: Array, indices: Array, a: Array, b: Array, out: Array) -> None:
    """out[e] = <a[r], b[indices[e]]> for the entries e of each row r."""
    for r in range(lo, hi):
        for e in range(indptr[r], indptr[r + 1]):
            column = indices[e]
            total = a.dtype.type(0)
            for j in range(a.shape[1]):
                total += a[r, j] * b[column, j]
            out[e] = total
