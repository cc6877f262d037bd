"""Kernels over rows: sparse products, Adam's updates and replay, and rows of unit length.

Sparse matrices are in compressed rows (CSR): indptr (n_rows + 1,) int64, indices (nnz,) int64,
values (nnz,); x, out and the like are C-contiguous.

Step s of Adam multiplies the moments by beta1 and beta2, adds the gradient's part, and moves the
value by `scale[s] m / (sqrt(v) correction[s] + epsilon)`. Here s counts from 0 at the table's last
flush; `scale[s]` is lr / (1 - beta1^t) and `correction[s]` is 1 / sqrt(1 - beta2^t) of that step's
own lr and t. Rows are worked on in pieces that stay in the first-level cache, so that replaying
many steps costs arithmetic, not memory traffic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mmbench.ops.kernels import kernel, reduction
from mmbench.ops.kernels.prefetch import AHEAD, prefetch

Array = Any  # numba specialises on the dtype: float32 or float64


@kernel
def matmul(
    lo: int, hi: int, indptr: Array, indices: Array, values: Array, x: Array, out: Array
) -> None:
    """out[r] += sum over the entries e of row r of values[e] * x[indices[e]]."""
    # One thread sums a row, in the order of its entries: the bits do not depend on the threads.
    for r in range(lo, hi):
        for e in range(indptr[r], indptr[r + 1]):
            if e + AHEAD < len(indices):
                prefetch(x, indices[e + AHEAD])
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
            if e + AHEAD < indptr[r + 1]:
                prefetch(x, indices[e + AHEAD])
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
            # Of the array's dtype: a plain 0 would make the sum double precision.
            total = a.dtype.type(0)
            for j in range(a.shape[1]):
                total += a[r, j] * b[column, j]
            out[e] = total


Scalar = Any  # of the table's dtype


class Table(NamedTuple):
    """A table and its moments, (n_rows, dim) each."""

    values: Array
    first: Array
    second: Array


class Steps(NamedTuple):
    """`scale` and `correction` of one step, or of each step since the last flush."""

    scale: Any
    correction: Any


class Constants(NamedTuple):
    """Adam's constants; `rest1` is 1 - beta1, `rest2` is 1 - beta2."""

    beta1: Scalar
    beta2: Scalar
    rest1: Scalar
    rest2: Scalar
    epsilon: Scalar
    tiny: Scalar


class Jumps(NamedTuple):
    """Which of the missed steps are summed up, and to what: see `mmbench.ops.glide`.

    Attributes:
        until: Of each row, the step before which they are taken one by one, (k,).
        factors: Two weights, the two points that they belong to, and what the moments are
            multiplied by, (k, 6); not read where `until` is the present step.
    """

    until: Array
    factors: Array


_PIECE = 512  # entries of a row worked on at once: 4 x 2 KiB in float32
_ROWS_AHEAD = 4  # rows of a table between asking for one and reading it
_LOOK_EVERY = 16  # replayed steps between two looks whether anything still moves


# One array at a time, cut out before the loop, and only pieces in the arithmetic: an index `at + j`
# might be negative and count from the end, and many arrays in one loop might overlap; either keeps
# the compiler from vectorising.


@kernel
def _load(source: Array, row: int, at: int, width: int, piece: Array) -> None:
    part = source[row, at : at + width]
    for j in range(width):
        piece[j] = part[j]


@kernel
def _store(piece: Array, target: Array, row: int, at: int, width: int) -> None:
    part = target[row, at : at + width]
    for j in range(width):
        part[j] = piece[j]


@kernel
def _decay(piece: Array, width: int, beta: Scalar, n: int) -> None:
    """Multiply by beta n times, each product rounded: a power would round differently."""
    part = piece[:width]
    if n > 8 and not part.any():  # of a row that nothing has moved yet
        return
    # Eight in a row stay in registers; one at a time waits for its own store.
    for _ in range(n // 8):
        for j in range(width):
            x = part[j] * beta * beta * beta * beta
            part[j] = x * beta * beta * beta * beta
    for _ in range(n % 8):
        for j in range(width):
            part[j] *= beta


@kernel
def _jump(
    piece_p: Array, piece_m: Array, piece_v: Array, width: int, factors: Array, epsilon: Scalar
) -> None:
    """Move the values by the sum of many steps; the moments stay as they are."""
    p, m, v = piece_p[:width], piece_m[:width], piece_v[:width]
    weight, other_weight, b, other_b = factors[0], factors[1], factors[2], factors[3]
    for j in range(width):
        root = np.sqrt(v[j])
        by = weight / (root * b + epsilon) + other_weight / (root * other_b + epsilon)
        p[j] -= m[j] * by


@kernel
def _fade(piece: Array, width: int, factor: Scalar) -> None:
    part = piece[:width]
    for j in range(width):
        part[j] *= factor


@kernel
def replay(
    lo: int,
    hi: int,
    rows: Array,
    last: Array,
    now: int,
    settle_from: int,
    steps: Steps,
    constants: Constants,
    table: Table,
    out: Array,
    in_place: bool,
    jumps: Jumps,
) -> None:
    """Bring rows[i] from step last[row] to step `now`: into out[i], or into the table itself.

    From step `settle_from` on no lr rises any more. There, once a step leaves a piece as it is, all
    later ones do: each update is smaller than the one before, its ratio being at most about beta1.
    That argument fails only where the moments have become subnormal, hence the look at `tiny`: a
    value larger than that is out of reach of such updates.
    """
    beta1, beta2, epsilon, tiny = (
        constants.beta1,
        constants.beta2,
        constants.epsilon,
        constants.tiny,
    )
    values, first, second = table.values, table.first, table.second
    piece_p = np.empty(_PIECE, values.dtype)
    piece_m = np.empty(_PIECE, values.dtype)
    piece_v = np.empty(_PIECE, values.dtype)
    for i in range(lo, hi):
        r = rows[i]
        if i + _ROWS_AHEAD < hi:
            prefetch(values, rows[i + _ROWS_AHEAD])
            prefetch(first, rows[i + _ROWS_AHEAD])
            prefetch(second, rows[i + _ROWS_AHEAD])
        for at in range(0, values.shape[1], _PIECE):
            width = min(_PIECE, values.shape[1] - at)
            _load(values, r, at, width, piece_p)
            _load(first, r, at, width, piece_m)
            _load(second, r, at, width, piece_v)
            # All missed steps run on the pieces: the table is read and written once.
            s = last[r]
            until = jumps.until[i]
            moving = True
            while moving and s < until:
                a = steps.scale[s]
                b = steps.correction[s]
                # The step of the other branch, plus a look whether any entry still moves.
                if s >= settle_from and (s - last[r]) % _LOOK_EVERY == _LOOK_EVERY - 1:
                    restless = 0
                    for j in range(width):
                        m = beta1 * piece_m[j]
                        v = beta2 * piece_v[j]
                        p = piece_p[j] - a * m / (np.sqrt(v) * b + epsilon)
                        # Still moving, or so close to 0 that a later update may show.
                        restless |= (p != piece_p[j]) | ((abs(p) <= tiny) & (m != 0))
                        piece_m[j] = m
                        piece_v[j] = v
                        piece_p[j] = p
                    moving = restless != 0
                else:
                    for j in range(width):
                        m = beta1 * piece_m[j]
                        v = beta2 * piece_v[j]
                        piece_m[j] = m
                        piece_v[j] = v
                        piece_p[j] -= a * m / (np.sqrt(v) * b + epsilon)
                s += 1
            if moving and until < now:
                _jump(piece_p, piece_m, piece_v, width, jumps.factors[i], epsilon)
            if in_place:
                # At rest: p keeps its value, while the moments decay on.
                _decay(piece_m, width, beta1, until - s)
                _decay(piece_v, width, beta2, until - s)
                if until < now:
                    _fade(piece_m, width, jumps.factors[i, 4])
                    _fade(piece_v, width, jumps.factors[i, 5])
                _store(piece_p, values, r, at, width)
                _store(piece_m, first, r, at, width)
                _store(piece_v, second, r, at, width)
            else:
                # The table keeps what it had at step last[r].
                _store(piece_p, out, i, at, width)


@kernel
def update(
    lo: int,
    hi: int,
    rows: Array,
    last: Array,
    now: int,
    step: Steps,
    constants: Constants,
    current: Array,
    gradient: Array,
    table: Table,
    jumps: Jumps,
) -> None:
    """Apply gradient[i] to rows[i], whose value after `now` steps is current[i].

    Its moments are those of step last[row].
    """
    scale, correction, epsilon = step.scale, step.correction, constants.epsilon
    beta1, beta2, rest1, rest2 = constants.beta1, constants.beta2, constants.rest1, constants.rest2
    values, first, second = table.values, table.first, table.second
    piece_p = np.empty(_PIECE, values.dtype)
    piece_g = np.empty(_PIECE, values.dtype)
    piece_m = np.empty(_PIECE, values.dtype)
    piece_v = np.empty(_PIECE, values.dtype)
    for i in range(lo, hi):
        r = rows[i]
        if i + _ROWS_AHEAD < hi:
            prefetch(values, rows[i + _ROWS_AHEAD])
            prefetch(first, rows[i + _ROWS_AHEAD])
            prefetch(second, rows[i + _ROWS_AHEAD])
        for at in range(0, values.shape[1], _PIECE):
            width = min(_PIECE, values.shape[1] - at)
            _load(current, i, at, width, piece_p)
            _load(gradient, i, at, width, piece_g)
            _load(first, r, at, width, piece_m)
            _load(second, r, at, width, piece_v)
            # The missed decays, as in `replay`.
            until = jumps.until[i]
            _decay(piece_m, width, beta1, until - last[r])
            _decay(piece_v, width, beta2, until - last[r])
            if until < now:
                _fade(piece_m, width, jumps.factors[i, 4])
                _fade(piece_v, width, jumps.factors[i, 5])
            for j in range(width):
                # Adam's step with the gradient; `current` has been replayed already.
                g = piece_g[j]
                m = beta1 * piece_m[j] + rest1 * g
                v = beta2 * piece_v[j] + rest2 * (g * g)
                piece_m[j] = m
                piece_v[j] = v
                piece_p[j] -= scale * m / (np.sqrt(v) * correction + epsilon)
            _store(piece_p, values, r, at, width)
            _store(piece_m, first, r, at, width)
            _store(piece_v, second, r, at, width)


@reduction
def normalise_backward(
    lo: int, hi: int, grad: Array, unit: Array, norm: Array, smallest_norm: Any, out: Array
) -> None:
    """out[r] = (grad[r] - unit[r] <unit[r], grad[r]>) / norm[r]; a clamped norm is a constant."""
    for r in range(lo, hi):
        along = grad.dtype.type(0)
        if norm[r, 0] > smallest_norm:
            for j in range(grad.shape[1]):
                along += grad[r, j] * unit[r, j]
        scale = grad.dtype.type(1) / norm[r, 0]
        for j in range(grad.shape[1]):
            out[r, j] = (grad[r, j] - unit[r, j] * along) * scale
