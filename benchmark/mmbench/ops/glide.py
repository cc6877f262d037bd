"""What Adam makes of a row without gradient over many steps, as one sum.

A row that misses the steps l … s … now-1 has, with k = s - l + 1, moments beta1^k m and beta2^k v
at step s, and moves in all by

    m sum_s A_s / (sqrt(v) B_s + epsilon),   A_s = scale_s beta1^k,   B_s = correction_s beta2^(k/2)

(see `mmbench.ops.kernels.rows` for the two factors). The sum depends on the row by sqrt(v) alone,
and the B_s hardly differ: A falls by a tenth with each step, B by a two-thousandth. So the points
B_s with weights A_s are replaced by two points with the same four sums M_p = sum_s A_s B_s^p, which
is Gauss's quadrature. Its error is about 4 sigma^4 of the movement, sigma being the relative
spread of the B_s: 2e-8 from step 1,000 on, where the bias correction is nearly constant, and less
later. In float32 that is less than the rounding of the steps themselves. The sums come from

    M_p(l) = beta1 beta2^(p/2) (scale_l correction_l^p + M_p(l + 1))

backwards over an epoch whose learning rate is known, and those of a part of it from

    M_p(l … now-1) = M_p(l) - (beta1 beta2^(p/2))^(now - l) M_p(now).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmbench.ops.kernels.rows import Glide

BEGIN = 1_000
"""Steps of a training that are always replayed one by one: the bias correction changes fast."""

LEAST = 8
"""Missed steps below which they are replayed one by one."""

_NEVER = 1 << 62


def no_glide() -> Glide:
    """Return what makes the kernels replay every step."""
    from mmbench.ops.kernels.rows import Glide

    return Glide(np.zeros((1, 4)), _NEVER, LEAST)


def glide_of(factors: list[tuple[float, float]], taken: int, beta1: float, beta2: float) -> Glide:
    """Return the sums over the coming steps.

    Args:
        factors: `scale` and `correction` of each of them.
        taken: Steps taken before.
        beta1: As the table's precision holds it.
        beta2: As the table's precision holds it.
    """
    from mmbench.ops.kernels.rows import Glide

    sums = np.zeros((len(factors) + 1, 4))
    decay = beta1 * beta2 ** (np.arange(4) / 2)
    for step in range(len(factors) - 1, -1, -1):
        scale, correction = factors[step]
        sums[step] = decay * (scale * correction ** np.arange(4) + sums[step + 1])
    return Glide(sums, max(0, BEGIN - taken), LEAST)
