"""Kernels over maps: a 3 x 3 convolution, the maximum of 2 x 2 cells, ReLU, and the mean.

A map is x (n, s * s), row by row; kernels are (9, c), so that the channels are along the vector
lanes. A window is the 4 x 4 neighbourhood that the four positions of a cell see. Where it is zero,
as most are in a map of edges, all four are the bias, and nothing is multiplied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbench.ops.kernels import inlined_reduction, reduction

Array = Any  # numba specialises on the dtype: float32 or float64


@inlined_reduction
def _window(x: Array, side: int, row: int, column: int, patch: Array) -> bool:
    """Fill patch (4, 4) with the map around cell (row, column); whether anything is not zero."""
    found = False
    for y in range(4):
        for z in range(4):
            here, there = 2 * row + y - 1, 2 * column + z - 1
            value = patch.dtype.type(0)
            if 0 <= here < side and 0 <= there < side:
                value = x[here * side + there]
            patch[y, z] = value
            if value != 0:
                found = True
    return found


@inlined_reduction
def _responses(patch: Array, up: int, left: int, kernels: Array, bias: Array, out: Array) -> None:
    """out[c] = bias[c] + the convolution at one position of the cell."""
    for c in range(out.shape[0]):
        out[c] = bias[c]
    for k in range(9):
        value = patch[up + k // 3, left + k % 3]
        for c in range(out.shape[0]):
            out[c] += value * kernels[k, c]


@reduction
def pooled(lo: int, hi: int, x: Array, side: int, kernels: Array, bias: Array, out: Array) -> None:
    """out[i, c] = the mean over cells of max(0, the largest response in the cell)."""
    n_cells, n_channels = (side + 1) // 2, bias.shape[0]
    patch = np.empty((4, 4), x.dtype)
    one, best = np.empty(n_channels, x.dtype), np.empty(n_channels, x.dtype)
    zero = x.dtype.type(0)
    for i in range(lo, hi):
        empty = 0
        for c in range(n_channels):
            out[i, c] = zero
        for row in range(n_cells):
            for column in range(n_cells):
                if not _window(x[i], side, row, column, patch):
                    empty += 1
                    continue
                _responses(patch, 0, 0, kernels, bias, best)
                for position in range(1, 4):
                    up, left = position // 2, position % 2
                    # At the end of an odd side a cell has fewer positions.
                    if 2 * row + up < side and 2 * column + left < side:
                        _responses(patch, up, left, kernels, bias, one)
                        for c in range(n_channels):
                            best[c] = max(best[c], one[c])
                for c in range(n_channels):
                    out[i, c] += max(best[c], zero)
        for c in range(n_channels):
            out[i, c] += x.dtype.type(empty) * max(bias[c], zero)
            out[i, c] /= x.dtype.type(n_cells * n_cells)


@reduction
def pooled_backward(
    lo: int,
    hi: int,
    x: Array,
    side: int,
    kernels: Array,
    bias: Array,
    grad: Array,
    of_kernels: Array,
    of_bias: Array,
) -> None:
    """The gradients of each map, of_kernels (n, 9, c) and of_bias (n, c), from grad (n, c).

    The responses are computed again: to keep them would take c numbers for each position.
    """
    n_cells, n_channels = (side + 1) // 2, bias.shape[0]
    patch = np.empty((4, 4), x.dtype)
    each, best = np.empty((4, n_channels), x.dtype), np.empty(n_channels, x.dtype)
    first = np.empty(n_channels, np.int64)
    flow = np.empty(n_channels, x.dtype)
    zero = x.dtype.type(0)
    for i in range(lo, hi):
        empty = 0
        for c in range(n_channels):
            of_bias[i, c] = zero
            for k in range(9):
                of_kernels[i, k, c] = zero
        for row in range(n_cells):
            for column in range(n_cells):
                if not _window(x[i], side, row, column, patch):
                    empty += 1
                    continue
                _responses(patch, 0, 0, kernels, bias, best)
                for c in range(n_channels):
                    first[c] = 0
                for position in range(1, 4):
                    up, left = position // 2, position % 2
                    if 2 * row + up < side and 2 * column + left < side:
                        _responses(patch, up, left, kernels, bias, each[position])
                        for c in range(n_channels):
                            # The first of equal responses, as torch has it.
                            if each[position, c] > best[c]:
                                best[c] = each[position, c]
                                first[c] = position
                for position in range(4):
                    up, left = position // 2, position % 2
                    for c in range(n_channels):
                        chosen = first[c] == position and best[c] > zero
                        flow[c] = grad[i, c] if chosen else zero
                        of_bias[i, c] += flow[c]
                    for k in range(9):
                        value = patch[up + k // 3, left + k % 3]
                        for c in range(n_channels):
                            of_kernels[i, k, c] += value * flow[c]
        share = x.dtype.type(1) / x.dtype.type(n_cells * n_cells)
        for c in range(n_channels):
            if bias[c] > zero:
                of_bias[i, c] += x.dtype.type(empty) * grad[i, c]
            of_bias[i, c] *= share
            for k in range(9):
                of_kernels[i, k, c] *= share
