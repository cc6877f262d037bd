"""Vectors of other items are noticed: dealt out at random, or one row off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.analysis.gallery.alignment import (
    Fit,
    alignment,
    nearest,
    shared_users,
    shared_words,
    unit_rows,
)
from mmbench.core.interactions import TrainSet


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 5))
def test_nearest_are_those_of_a_plain_loop(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    unit = unit_rows(rng.integers(-2, 3, (n, 3)).astype(np.float32))  # with ties, and zeros
    k = min(k, n - 1)
    queries = rng.integers(0, n, 4)
    rows, cosines = nearest(unit, queries, k)
    for place, query in enumerate(queries.tolist()):
        every = unit[query] @ unit.T
        others = [row for row in range(n) if row != query]
        expected = sorted(others, key=lambda row: (-float(every[row]), row))[:k]
        np.testing.assert_allclose(cosines[place], every[expected], atol=1e-6)
        assert query not in rows[place] and len(set(rows[place].tolist())) == k


def test_equal_vectors_come_by_row() -> None:
    rows, cosines = nearest(np.ones((6, 1), np.float32), np.array([2]), 3)
    assert rows.tolist() == [[0, 1, 3]] and cosines.tolist() == [[1, 1, 1]]


def test_large_numbers_have_a_direction() -> None:
    unit = unit_rows(np.array([[3e38, 3e38], [0, 0], [1e-40, 0]], np.float32))
    np.testing.assert_allclose(unit[0], np.sqrt([0.5, 0.5]), rtol=1e-6)
    assert unit[1].tolist() == [0, 0] and unit[2].tolist() == [1, 0]


def test_shared_users_by_hand() -> None:
    # Item 0 has users 0, 1; item 1 users 1, 2; item 2 user 3; item 3 is of no training.
    train = TrainSet.from_pairs(np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 2]), 4, 3)
    common = shared_users(train)
    found = common(np.array([0, 0, 0, 2]), np.array([1, 2, 3, 2]))
    np.testing.assert_allclose(found, [0.5, 0, 0, 1])


def test_shared_words_leave_out_what_everybody_has() -> None:
    texts = [f"The cup no{n}" for n in range(40)]
    texts[:3] = ["The red cup", "A red, RED hat cup", "The blue one"]
    common = shared_words(texts)
    assert common is not None
    found = common(np.array([0, 0, 5]), np.array([1, 2, 6]))
    # `red` and `cup`-less: {red} and {a, red, hat} share one word of 1 and 3.
    np.testing.assert_allclose(found, [1 / np.sqrt(3), 0, 0])
    assert shared_words(["", "…"]) is None


def planted(move: str) -> list[Fit]:
    """300 items in 30 groups whose members share users and near vectors; the vectors are moved."""
    rng = np.random.default_rng(5)
    n, groups = 300, 30
    group = rng.integers(0, groups, n)
    users = np.repeat(np.arange(groups * 3), n)
    items = np.tile(np.arange(n), groups * 3)
    taken = (group[items] == users // 3) & (rng.random(items.size) < 0.5)
    train = TrainSet.from_pairs(users[taken], items[taken], groups * 3, n)
    vectors = rng.normal(size=(groups, 8))[group] + 0.3 * rng.normal(size=(n, 8))
    order = rng.permutation(n)  # the set's file has an order of its own
    if move == "rolled":
        vectors[order] = np.roll(vectors[order], 1, axis=0)
    elif move == "back":
        vectors[order] = np.roll(vectors[order], -1, axis=0)
    elif move == "shuffled":
        vectors = vectors[rng.permutation(n)]
    every = np.arange(n)
    near, _ = nearest(unit_rows(vectors.astype(np.float32)), every, 5)
    words = shared_words([f"w{one}" for one in group])
    assert words is not None
    commons = {"training users": shared_users(train), "words": words}
    return alignment(near, every, every, order, commons, seed=3)


@pytest.mark.parametrize(
    ("move", "verdict", "shift"),
    [
        ("right", "fits", None),
        ("rolled", "shifted", -1),
        ("back", "shifted", 1),
        ("shuffled", "chance", None),
    ],
)
def test_planted_misalignment_is_told(move: str, verdict: str, shift: int | None) -> None:
    fits = planted(move)
    assert [one.kind for one in fits] == ["training users", "words"]
    assert [one.verdict for one in fits] == [verdict] * 2
    assert [one.better_shift for one in fits] == [shift] * 2
    assert all((one.times or 0) > 5 for one in fits) == (move == "right")


def test_nothing_in_common_says_nothing() -> None:
    assert Fit("words", 0.0, 0.0, 0.0, {-1: 0.0, 1: 0.0}).verdict == "unknown"
