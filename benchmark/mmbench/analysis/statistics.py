"""Is one system better than another? Paired tests on per-user values, intervals, effect sizes, corrections.

All tests are two-sided and about the mean of the differences d_u = a_u - b_u over users u. Which to
trust and why: Smucker, Allan, Carterette, A Comparison of Statistical Significance Tests for
Information Retrieval Evaluation, CIKM 2007 (randomisation, bootstrap and t-test agree; Wilcoxon's
signed ranks test another hypothesis and often disagree).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import ShapeError

Differences = NDArray[np.float64]

_BLOCK = 1 << 23  # signs or draws held at once


def paired_t(d: Differences) -> float:
    """The p-value of Student's paired t-test; 1 where all differences are zero, 0 where they are one other number.

    Args:
        d: Differences, shape (n,), n >= 2, finite.
    """
    from scipy.stats import t

    _check(d)
    spread = float(d.std(ddof=1))
    if spread == 0:
        return 1.0 if not d.any() else 0.0
    return float(2 * t.sf(abs(d.mean()) / (spread / math.sqrt(d.size)), d.size - 1))


def randomisation(d: Differences, *, samples: int = 10_000, seed: int = 0) -> float:
    """The p-value of the paired randomisation test: how often random signs give a mean as far from zero.

    Args:
        d: Differences, shape (n,), n >= 2, finite.
        samples: Random assignments of signs; p is at least 1 / (samples + 1).
        seed: Any integer.

    Returns:
        (1 + number of assignments with |mean| >= |observed|) / (1 + samples).
    """
    _check(d)
    moving = d[d != 0]  # a zero keeps its sign
    if not moving.size:
        return 1.0
    rng = np.random.Generator(np.random.Philox(seed))
    observed, far, done = abs(float(moving.sum())), 0, 0
    tolerance = 1e-12 * float(np.abs(moving).sum())  # the same sum in another order
    width = -(-moving.size // 8)
    while done < samples:
        n = min(samples - done, max(1, _BLOCK // moving.size))
        bits = np.unpackbits(rng.integers(0, 256, (n, width), np.uint8), axis=1, count=moving.size)
        sums = 2 * (bits @ moving) - moving.sum()
        far += int(np.count_nonzero(np.abs(sums) >= observed - tolerance))
        done += n
    return (1 + far) / (1 + samples)


def wilcoxon(d: Differences) -> float:
    """The p-value of Wilcoxon's signed-rank test, normal approximation with zeros by Pratt; 1 where all differences are zero.

    It tests whether the differences are symmetric about zero, not whether their mean is zero; see
    the module's text.

    Args:
        d: Differences, shape (n,), n >= 2, finite.
    """
    from scipy import stats

    _check(d)
    if not d.any():
        return 1.0
    return float(stats.wilcoxon(d, zero_method="pratt", method="approx").pvalue)


def bootstrap_interval(
    d: Differences, *, level: float = 0.95, samples: int = 5_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean difference.

    Args:
        d: Differences, shape (n,), n >= 2, finite.
        level: Coverage, in (0, 1).
        samples: Resamples of the users.
        seed: Any integer.
    """
    _check(d)
    rng = np.random.Generator(np.random.Philox(seed))
    means = np.empty(samples)
    for start in range(0, samples, block := max(1, _BLOCK // d.size)):
        n = min(block, samples - start)
        means[start : start + n] = d[rng.integers(0, d.size, (n, d.size))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def effect_size(d: Differences) -> float:
    """Cohen's d_z: the mean difference in standard deviations of the differences; 0 where all are zero."""
    spread = float(d.std(ddof=1))
    mean = float(d.mean())
    return mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0


def superiority(d: Differences) -> float:
    """Share of users for whom the first system is better, ties counted half: in [0, 1], 0.5 for equals."""
    return float(np.mean((d > 0) + 0.5 * (d == 0)))


def welch(
    a: Sequence[float], b: Sequence[float], exact: tuple[bool, bool] = (False, False)
) -> float | None:
    """The p-value of Welch's t-test between two systems' runs, seeds being the replicates; None with fewer than two of either.

    Args:
        a: One value a seed.
        b: Likewise; the seeds need not be the same.
        exact: Whether a single value is all that a system can have, because it has no randomness:
            the test is then the one-sample t-test of the other's seeds against it. For a, for b.
    """
    from scipy import stats

    if any(len(values) < 2 and not known for values, known in zip((a, b), exact, strict=True)):
        return None
    if len(a) == len(b) == 1:
        return None  # nothing varies that a test could be about
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    if min(len(a), len(b)) == 1:
        many, one = (a, b[0]) if len(b) == 1 else (b, a[0])
        return float(stats.ttest_1samp(many, one).pvalue)
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false discovery stays at the level (Holm 1979)."""
    return _stepped(p, lambda rank, n: n - rank, np.maximum.accumulate, reverse=False)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values corrected so that the expected share of false discoveries stays at the level (Benjamini & Hochberg 1995)."""
    return _stepped(p, lambda rank, n: n / (rank + 1), np.minimum.accumulate, reverse=True)


def _stepped(
    p: Sequence[float],
    factor: Callable[[int, int], float],
    accumulate: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    reverse: bool,
) -> list[float]:
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.array([values[i] * factor(rank, values.size) for rank, i in enumerate(order)])
    scaled = accumulate(scaled[::-1])[::-1] if reverse else accumulate(scaled)
    out = np.empty(values.size)
    out[order] = np.minimum(scaled, 1)
    return [float(value) for value in out]


def _check(d: Differences) -> None:
    if d.ndim != 1 or d.size < 2 or not np.isfinite(d).all():
        raise ShapeError(f"differences: shape {d.shape} (expected at least 2 finite numbers)")


TESTS = {"randomisation": randomisation, "t": paired_t, "wilcoxon": wilcoxon}
"""Tests of a mean difference by name."""

CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg}
"""Corrections for many comparisons by name."""
