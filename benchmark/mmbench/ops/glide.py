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

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from mmbench.ops.kernels.rows import Jumps

BEGIN = 1_000
"""Steps of a training that are always replayed one by one: the bias correction changes fast."""

LEAST = 8
"""Missed steps below which they are replayed one by one."""


class Glide:
    """The sums of an epoch's steps.

    Args:
        factors: `scale` and `correction` of each coming step.
        taken: Steps taken before.
        beta1: As the table's precision holds it.
        beta2: As the table's precision holds it.
    """

    def __init__(
        self,
        factors: list[tuple[float, float]] | None = None,
        taken: int = 0,
        beta1: float = 1.0,
        beta2: float = 1.0,
    ) -> None:
        factors = factors or []
        self._begin = max(0, BEGIN - taken)
        self._logs = np.log(beta1), np.log(beta2)
        self._sums = np.zeros((len(factors) + 1, 4))
        powers = np.arange(4)
        decay = beta1 * beta2 ** (powers / 2)
        for step in range(len(factors) - 1, -1, -1):
            scale, correction = factors[step]
            self._sums[step] = decay * (scale * correction**powers + self._sums[step + 1])

    def jumps(self, last: NDArray[np.int64], now: int, dtype: DTypeLike) -> Jumps:
        """Return what rows that have seen the steps before `last`, shape (k,), are to do.

        Steps count from the start of the epoch; those after its end are taken one by one.
        """
        from mmbench.ops.kernels.rows import Jumps

        if now >= len(self._sums):
            return Jumps(np.full(len(last), now), np.zeros((0, 6), dtype))
        start = np.maximum(last, self._begin)
        summed = now - start >= LEAST
        factors = np.zeros((len(last) if summed.any() else 0, 6), dtype)
        if len(factors):
            factors[summed] = self._two_points(start[summed], now)
        return Jumps(np.where(summed, start, now), factors)

    def _two_points(self, start: NDArray[np.int64], now: int) -> NDArray[Any]:
        """Gauss's quadrature with two points for the steps from `start` on, and beta^n."""
        n = (now - start)[:, None]
        left = np.exp(n * (self._logs[0] + self._logs[1] * np.arange(4) / 2))
        sums = self._sums[start] - left * self._sums[now]
        total, (mean, second, third) = sums[:, 0], (sums[:, 1:] / sums[:, :1]).T
        variance = second - mean**2
        skew = (third - 3 * mean * second + 2 * mean**3) / variance
        spread = np.sqrt(skew**2 + 4 * variance)
        low, high = (skew - spread) / 2, (skew + spread) / 2
        weights = total * high / spread, -total * low / spread
        fade = left[:, 0], np.exp(n[:, 0] * self._logs[1])
        return np.stack([*weights, mean + low, mean + high, *fade], axis=1)
