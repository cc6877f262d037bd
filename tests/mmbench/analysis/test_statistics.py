"""Tests, intervals and corrections against scipy's, exact enumeration and values worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmbench.analysis import statistics as s
from mmbench.errors import ShapeError

DIFFERENCES = st.lists(st.integers(-4, 4), min_size=2, max_size=10).map(
    lambda d: np.array(d, float) / 4
)


@given(DIFFERENCES)
def test_t_is_scipys(d: np.ndarray) -> None:
    if d.std() == 0:
        assert s.paired_t(d) == (0.0 if d.any() else 1.0)
    else:
        assert s.paired_t(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)


@given(DIFFERENCES)
def test_randomisation_approaches_the_exact_test(d: np.ndarray) -> None:
    sums = [abs(float(np.dot(signs, d))) for signs in itertools.product((-1, 1), repeat=d.size)]
    exact = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    p = s.randomisation(d, samples=4000)
    assert p == pytest.approx(exact, abs=0.04)
    assert p == s.randomisation(d, samples=4000)
    assert (
        p == s.randomisation(-d, samples=4000) or abs(p - s.randomisation(-d, samples=4000)) < 0.05
    )


def test_randomisation_in_blocks_is_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(0).normal(0.1, 1, 300)
    whole = s.randomisation(d, samples=3000)
    monkeypatch.setattr(s, "_BLOCK", 1)
    assert s.randomisation(d, samples=3000) == pytest.approx(whole, abs=0.04)
    assert s.randomisation(np.full(40, 1.0), samples=99) == 0.01
    assert s.randomisation(np.zeros(5)) == 1


def test_wilcoxon_is_scipys_and_knows_equals() -> None:
    d = np.random.default_rng(1).normal(0.2, 1, 50)
    assert s.wilcoxon(d) == pytest.approx(
        stats.wilcoxon(d, zero_method="pratt", method="approx").pvalue
    )
    assert s.wilcoxon(np.zeros(9)) == 1


def test_p_values_are_uniform_under_the_null() -> None:
    """At most about 5 % false alarms at 0.05, and not far fewer."""
    rng = np.random.default_rng(2)
    draws = [rng.normal(size=60) * (rng.random(60) < 0.3) for _ in range(300)]
    for test in (s.paired_t, lambda d: s.randomisation(d, samples=400)):
        share = np.mean([test(d) < 0.05 for d in draws])
        assert 0.02 <= share <= 0.085


def test_intervals_cover() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for number in range(200):
        low, high = s.bootstrap_interval(rng.normal(0.5, 1, 80), samples=400, seed=number)
        assert low < high
        hits += low <= 0.5 <= high
    assert 0.9 <= hits / 200 <= 0.99
    assert s.bootstrap_interval(np.full(5, 2.0)) == (2, 2)


def test_effect_sizes_by_hand() -> None:
    d = np.array([1.0, 1, 0, -1])
    assert s.effect_size(d) == pytest.approx(0.25 / np.sqrt(2.75 / 3))
    assert s.superiority(d) == pytest.approx((2 + 0.5) / 4)
    assert s.effect_size(np.zeros(3)) == 0
    assert s.effect_size(np.ones(3)) == np.inf


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert s.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert s.holm([0.6, 0.7]) == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_keep_order_and_never_help(p: list[float]) -> None:
    for correct in s.CORRECTIONS.values():
        out = correct(p)
        assert all(value >= raw - 1e-15 and value <= 1 for raw, value in zip(p, out, strict=True))
        order = np.argsort(p, kind="stable")
        assert (np.diff(np.array(out)[order]) >= -1e-15).all()
    assert all(
        bh <= holm + 1e-12 for bh, holm in zip(s.benjamini_hochberg(p), s.holm(p), strict=True)
    )


def test_welch_needs_two_seeds() -> None:
    assert s.welch([0.1], [0.2, 0.3]) is None
    assert s.welch([0.1, 0.1], [0.1, 0.1]) == 1
    assert s.welch([0.1, 0.1], [0.2, 0.2]) == 0
    a, b = [0.1, 0.12, 0.09], [0.2, 0.25]
    assert s.welch(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)


@pytest.mark.parametrize("d", [np.array([1.0]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_no_numbers_no_test(d: np.ndarray) -> None:
    for test in (s.paired_t, s.randomisation, s.wilcoxon, s.bootstrap_interval):
        with pytest.raises(ShapeError):
            test(d)
