"""Exact deferred Adam on a GPU: see `mmbench.ops.row_table` and `ops/kernels/rows.py`.

Step t, counted from 0 over the whole training, has the factors `schedule[:, t - base]`. Moments
have the bits of dense Adam on the CPU, for sums are not fused with products. Roots and quotients of
single precision are the GPU's own, within two units in the last place of an update: exact ones
would double the time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BETA1: Any = tl.constexpr(0.9)
BETA2: Any = tl.constexpr(0.999)
REST1: Any = tl.constexpr(1 - 0.9)
REST2: Any = tl.constexpr(1 - 0.999)
EPSILON: Any = tl.constexpr(1e-8)


@triton.jit
def _moved(p, m, v, scale, correction):
    """The value after a step with these moments."""
    return p - scale * m / (tl.sqrt(v) * correction + EPSILON)


@triton.jit
def _replay(
    index, last, steps, base, schedule, n_steps, values, first, second, out, d,
    IN_PLACE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    row = tl.load(index + i)
    # Only the first of equal rows counts: the others fill the index up.
    repeated = (i > 0) & (tl.load(index + tl.maximum(i - 1, 0)) == row)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = column < d
    place = row * d + column
    p = tl.load(values + place, within, 0.0)
    m = tl.load(first + place, within, 0.0)
    v = tl.load(second + place, within, 0.0)
    start = tl.load(base)
    for t in range(tl.load(last + row) - start, tl.load(steps) - start):
        m = BETA1 * m
        v = BETA2 * v
        p = _moved(p, m, v, tl.load(schedule + t), tl.load(schedule + n_steps + t))
    if IN_PLACE:
        tl.store(values + place, p, within)
        tl.store(first + place, m, within)
        tl.store(second + place, v, within)
    else:
        tl.store(out + i * d + column, tl.where(repeated, 0.0, p), within)


@triton.jit
def _update(
    index, skipped, last, steps, base, schedule, n_steps, values, first, second, current, gradient,
    d, REPLAY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    j = i + skipped
    row = tl.load(index + j)
    repeated = (j > 0) & (tl.load(index + tl.maximum(j - 1, 0)) == row)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = (column < d) & (repeated == 0)
    place = row * d + column
    p = tl.load(current + i * d + column, within, 0.0)
    g = tl.load(gradient + i * d + column, within, 0.0)
    m = tl.load(first + place, within, 0.0)
    v = tl.load(second + place, within, 0.0)
    now = tl.load(steps)
    if REPLAY:
        # The missed decays one by one, as in dense Adam: a power would round differently.
        for _ in range(tl.load(last + row), now):
            m = BETA1 * m
            v = BETA2 * v
    m = BETA1 * m + REST1 * g
    v = BETA2 * v + REST2 * (g * g)
    t = now - tl.load(base)
    p = _moved(p, m, v, tl.load(schedule + t), tl.load(schedule + n_steps + t))
    tl.store(values + place, p, within)
    tl.store(first + place, m, within)
    tl.store(second + place, v, within)


def replay(
    index: Tensor,
    last: Tensor,
    clock: tuple[Tensor, Tensor],
    schedule: Tensor,
    table: tuple[Tensor, Tensor, Tensor],
    out: Tensor | None,
) -> None:
    """Bring rows to the present step: into `out`, or where it is None into the table itself.

    Args:
        index: Rows, shape (k,), int64; of neighbours that are equal only the first counts, and the
            others become zero.
        last: The last step that each row has seen, shape (n_rows,), int64.
        clock: Number of steps so far, and the step at which `schedule` begins, int64 scalars.
        schedule: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) of the coming steps, (2, n_steps).
        table: Values and both moments, (n_rows, dim) each.
        out: Shape (k, dim).
    """
    values, width = table[0], _width(table[0])
    grid = (index.numel(), triton.cdiv(values.shape[1], width))
    target = values if out is None else out
    _replay[grid](
        index, last, *clock, schedule, schedule.shape[1], *table, target, values.shape[1],
        IN_PLACE=out is None, WIDTH=width, enable_fp_fusion=False,
    )  # fmt: skip


def update(
    index: Tensor,
    skipped: int,
    last: Tensor,
    clock: tuple[Tensor, Tensor],
    schedule: Tensor,
    table: tuple[Tensor, Tensor, Tensor],
    current: Tensor,
    gradient: Tensor,
    *,
    replays: bool,
) -> None:
    """Apply `gradient` (k, dim) to rows whose present values are `current` (k, dim).

    These are the rows index[skipped : skipped + k]. Where `replays`, their moments decay by the
    steps they have missed. Other arguments as for `replay`.
    """
    d, width = current.shape[1], _width(current)
    grid = (len(current), triton.cdiv(d, width))
    _update[grid](
        index, skipped, last, *clock, schedule, schedule.shape[1], *table, current, gradient, d,
        REPLAY=replays, WIDTH=width, enable_fp_fusion=False,
    )  # fmt: skip


def _width(x: Tensor) -> int:
    return int(min(1024, triton.next_power_of_2(x.shape[1])))
