"""Whether one system is better: paired tests, intervals, effect sizes, corrections.

All tests are two-sided and take the differences d_u = a_u - b_u of users u, shape (n,), n >= 2,
finite. Which to trust: Smucker, Allan, Carterette, A Comparison of Statistical Significance Tests
for Information Retrieval Evaluation, CIKM 2007 (randomisation, bootstrap and t-test agree;
Wilcoxon's signed ranks test another hypothesis and often disagree).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import ShapeError

Differences = NDArray[np.float64]

_BLOCK = 1 << 23  # signs or draws held in memory at once


def paired_t(d: Differences) -> float:
    """Return the p-value of Student's paired t-test; of equal differences 1 if zero, else 0."""
    from scipy.stats import t

    _check(d)
    spread = float(d.std(ddof=1))
    if spread == 0:
        return 1.0 if not d.any() else 0.0
    return float(2 * t.sf(abs(d.mean()) / (spread / math.sqrt(d.size)), d.size - 1))


def randomisation(d: Differences, *, samples: int = 10_000, seed: int = 0) -> float:
    """Return the p-value of the paired randomisation test.

    It is (1 + number of random sign assignments with |mean| >= |observed|) / (1 + samples).
    """
    _check(d)
    moving = d[d != 0]  # a sign does not change a zero
    if not moving.size:
        return 1.0
    rng = np.random.Generator(np.random.Philox(seed))
    observed, far = abs(float(moving.sum())), 0
    tolerance = 1e-12 * float(np.abs(moving).sum())  # the same sum in another order counts
    # One random bit per sign: sum of s_u d_u = 2 sum of the positive ones - sum of all. The sum of
    # the positive ones of each eight users is looked up by their byte.
    width = -(-moving.size // 8)
    eights = np.pad(moving, (0, 8 * width - moving.size)).reshape(width, 8)
    of_byte = (eights @ np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).T).ravel()
    starts = 256 * np.arange(width)
    for n in _blocks(samples, moving.size):
        drawn = rng.integers(0, 256, (n, width), np.uint8)
        sums = 2 * of_byte[starts + drawn].sum(1) - moving.sum()
        far += int(np.count_nonzero(np.abs(sums) >= observed - tolerance))
    # The observed assignment is one of the possible ones: p is never 0.
    return (1 + far) / (1 + samples)


def wilcoxon(d: Differences) -> float:
    """Return the p-value of Wilcoxon's signed-rank test: normal approximation, zeros by Pratt.

    It tests whether the differences are symmetric about zero, not whether their mean is zero.
    """
    from scipy import stats

    _check(d)
    if not d.any():
        return 1.0
    return float(stats.wilcoxon(d, zero_method="pratt", method="approx").pvalue)


def bootstrap_interval(
    d: Differences, *, level: float = 0.95, samples: int = 5_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean difference, resampling users."""
    _check(d)
    means = [d[drawn].mean(1) for drawn in _draws(d.size, samples, seed)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(d: Differences, *, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean, of values that are independent and about normal."""
    from scipy.stats import t

    _check(d)
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    half = float(t.ppf((1 + level) / 2, d.size - 1)) * spread / math.sqrt(d.size)
    return mean - half, mean + half


def effect_size(d: Differences) -> float:
    """Return Cohen's d_z, the mean over the standard deviation of the differences; 0 if all are."""
    spread, mean = float(d.std(ddof=1)), float(d.mean())
    return mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0


def superiority(d: Differences) -> float:
    """Return the share of users for whom the first system is better, ties counted half."""
    return float(np.mean((d > 0) + 0.5 * (d == 0)))


def welch(
    a: Sequence[float], b: Sequence[float], exact: tuple[bool, bool] = (False, False)
) -> float | None:
    """Return the p-value of Welch's t-test between the seeds of two systems.

    None with fewer than two seeds of a system, unless it is exact.

    Args:
        a: One value per seed.
        b: Likewise; the seeds need not be the same.
        exact: Whether a, and b, has no randomness, so that one value is all it can have: the test
            is then the one-sample t-test of the other's seeds against it.
    """
    from scipy import stats

    if any(len(values) < 2 and not known for values, known in zip((a, b), exact, strict=True)):
        return None
    if len(a) == len(b) == 1:
        return None  # both are exact: there is no variation to test
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    if min(len(a), len(b)) == 1:
        many, one = (a, b[0]) if len(b) == 1 else (b, a[0])
        return float(stats.ttest_1samp(many, one).pvalue)
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values to keep the chance of any false discovery at the level (Holm 1979)."""
    order, ascending = _ranked(p)
    # The smallest p times n, the next one times n - 1, …; none may fall below one before it.
    factors = np.arange(len(ascending), 0, -1.0)
    return _unranked(order, np.maximum.accumulate(ascending * factors))


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Correct p-values to keep the expected share of false discoveries at the level.

    Source: Benjamini and Hochberg (1995).
    """
    order, ascending = _ranked(p)
    # The p of rank r = 1, 2, … is multiplied by n / r, and no p may exceed one after it.
    factors = len(ascending) / np.arange(1.0, len(ascending) + 1)
    return _unranked(order, np.minimum.accumulate((ascending * factors)[::-1])[::-1])


def ranks(values: Sequence[float], towards: int = 1) -> list[float]:
    """Return the rank of each value, 1 for the best; equals share the mean of their ranks.

    Args:
        values: The values.
        towards: 1 if more is better, -1 if less is.
    """
    from scipy import stats

    return [float(rank) for rank in stats.rankdata(-towards * np.asarray(values, np.float64))]


def friedman(ranks_of: Sequence[Sequence[float]]) -> float:
    """Return the p-value of Friedman's test that k systems are alike on n datasets.

    It is by the F-distribution of Iman and Davenport (1980), which Demšar (2006) recommends: the
    chi-squared one is too conservative for few datasets.

    Args:
        ranks_of: The ranks of each system, (k, n), k and n >= 2.
    """
    from scipy import stats

    given = np.asarray(ranks_of, np.float64)
    k, n = given.shape
    chi = 12 * n / (k * (k + 1)) * (np.square(given.mean(1)).sum() - k * (k + 1) ** 2 / 4)
    rest = n * (k - 1) - chi
    if rest <= 1e-12 * n * k:  # every dataset has the same order
        return 0.0
    return float(stats.f.sf((n - 1) * chi / rest, k - 1, (k - 1) * (n - 1)))


def nemenyi_difference(k: int, n: int, alpha: float = 0.05) -> float:
    """Return by how much two mean ranks of k systems over n datasets must differ (Nemenyi).

    Source: Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


def _ranked(p: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    return order, values[order]


def _unranked(order: NDArray[np.int64], ascending: NDArray[np.float64]) -> list[float]:
    out = np.empty(len(order))
    out[order] = np.minimum(ascending, 1)
    return [float(value) for value in out]


def _draws(size: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield `samples` draws of `size` among as many, in blocks; few are kept for the next call."""
    if samples * size <= _BLOCK:
        yield _kept_draws(size, samples, seed)
        return
    rng = np.random.Generator(np.random.Philox(seed))
    for n in _blocks(samples, size):
        yield rng.integers(0, size, (n, size))


@functools.lru_cache(maxsize=1)
def _kept_draws(size: int, samples: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(seed)).integers(0, size, (samples, size))


def _blocks(samples: int, size: int) -> list[int]:
    """Split samples of `size` numbers each into blocks that bound the memory."""
    block = max(1, _BLOCK // size)
    return [min(block, samples - start) for start in range(0, samples, block)]


def _check(d: Differences) -> None:
    if d.ndim != 1 or d.size < 2 or not np.isfinite(d).all():
        raise ShapeError(f"differences: shape {d.shape} (expected at least 2 finite numbers)")


TESTS = {"randomisation": randomisation, "t": paired_t, "wilcoxon": wilcoxon}
"""Tests of a mean difference by name."""

CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg}
"""Corrections for many comparisons by name."""
