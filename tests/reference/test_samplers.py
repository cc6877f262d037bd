"""The checks of the samplers accept the right laws and reject others."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from . import cases, freedom, samplers
from .common import Case


def stacked(draws: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*draws, strict=True))


def test_plain_samplers_obey_their_laws() -> None:
    case, rng = cases.case("small", "vbpr"), np.random.default_rng(53)
    samplers.check_s1(case, *stacked([samplers.draw_s1(case, rng) for _ in range(60)]))
    samplers.check_s2(case, [samplers.draw_s2(case, 8, rng) for _ in range(200)], 8)
    samplers.check_s3(case, [samplers.draw_s3(case, rng) for _ in range(60)])
    samplers.check_s4(case, [samplers.draw_s4(case, rng) for _ in range(60)])


def test_sampler_checks_reject_other_laws() -> None:
    case, rng = cases.case("small", "vbpr"), np.random.default_rng(59)
    edges = stacked([samplers.draw_s3(case, rng) for _ in range(60)])
    with pytest.raises(AssertionError, match="S1 users are not uniform"):
        samplers.check_s1(case, *edges)
    users, pos, neg = stacked([samplers.draw_s1(case, rng) for _ in range(60)])
    with pytest.raises(AssertionError, match="no multiple"):
        samplers.check_s1(case, users[1:], pos[1:], neg[1:])
    with pytest.raises(AssertionError, match="negatives: user"):
        samplers.check_s1(case, users, pos, rng.integers(0, case.n_items, len(neg)))
    with pytest.raises(AssertionError, match="negatives are not uniform"):
        samplers.check_s1(
            case, users, pos, np.where(neg == 9, samplers.negatives(case, users, rng), neg)
        )
    with pytest.raises(AssertionError, match="positives: user"):
        samplers.check_s1(case, users, neg, neg)
    lowest = np.array([min(case.positives[u]) for u in users])
    with pytest.raises(AssertionError, match="positives are not uniform"):
        samplers.check_s1(case, users, lowest, neg)
    batches = [samplers.draw_s1(case, rng) for _ in range(20)]
    with pytest.raises(AssertionError, match="a user twice"):
        samplers.check_s2(case, batches, case.n_edges)
    with pytest.raises(AssertionError, match="not each train edge once"):
        samplers.check_s4(case, [(users[: case.n_edges], pos[: case.n_edges])])
    same = samplers.draw_s4(case, rng)
    with pytest.raises(AssertionError, match="share one order"):
        samplers.check_s4(case, [same, same])
    sorted_but_for_the_end = [
        (case.train_users[order], case.train_items[order])
        for order in ([*range(28), *tail] for tail in list(permutations(range(28, 33)))[:40])
    ]
    with pytest.raises(AssertionError, match="order of the edges is not uniform"):
        samplers.check_s4(case, sorted_but_for_the_end)


def test_full_users_are_never_drawn_where_negatives_are() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 0])
    case, rng = Case(2, 2, users, items, {"visual": np.eye(2)}), np.random.default_rng(61)
    assert samplers.eligible_users(case).tolist() == [1]
    epochs = [samplers.draw_s3(case, rng) for _ in range(1)]
    assert epochs[0][0].tolist() == [1]
    with pytest.raises(AssertionError, match="every item"):
        samplers.check_s1(
            case, np.array([0, 1, 1] * 9), np.array([0, 0, 0] * 9), np.array([1, 1, 1] * 9)
        )


def test_inclusion_probabilities_equal_enumeration() -> None:
    weights, n = np.array([0.1, 0.5, 1.0, 2.0, 0.7]), 3
    expected = np.zeros(5)
    for order in permutations(range(5), n):
        chance, left = 1.0, weights.sum()
        for e in order:
            chance, left = chance * weights[e] / left, left - weights[e]
        expected[list(order)] += chance
    got = samplers.inclusion_probabilities(weights, n)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.sum() == pytest.approx(n, abs=1e-5)


def test_kept_edges_follow_the_degree_law() -> None:
    case, rng = cases.case("small", "freedom"), np.random.default_rng(67)
    weights, n = freedom.edge_weights(case), freedom.n_kept(case, "paper")
    draws = [freedom.draw_kept(case, "paper", rng) for _ in range(400)]
    samplers.check_kept(weights, draws, n)
    with pytest.raises(AssertionError, match="not kept by their weights"):
        samplers.check_kept(
            weights, [rng.choice(case.n_edges, n, replace=False) for _ in range(400)], n
        )
    with pytest.raises(AssertionError, match="expected 13"):
        samplers.check_kept(weights, [draws[0][:-1]], n)
