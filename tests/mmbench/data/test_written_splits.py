"""Splits: the published rule row for row, and what a split must be in any case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data.splits import TEST, TRAIN, VALID, eighths_per_user, random_per_user
from mmbench.data.tables import read_interactions
from mmbench.errors import ShapeError


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.integers(0, 5),
)
def test_parts_are_disjoint_complete_and_of_the_stated_size(
    users: list[int], test: float, valid: float, seed: int
) -> None:
    rows = np.array(users)
    parts = random_per_user(rows, test_ratio=test, valid_ratio=valid, seed=seed)
    assert set(parts.tolist()) <= {TRAIN, VALID, TEST}
    for user in set(users):
        own = parts[rows == user]
        kept = int(np.floor(own.size * (1 - test))) if test else own.size
        assert np.sum(own == TEST) == own.size - kept
        assert np.sum(own == TRAIN) == (int(np.floor(kept * (1 - valid))) if valid else kept)


def test_test_rounds_up() -> None:
    assert random_per_user(np.array([3]), test_ratio=0.2, valid_ratio=0.1).tolist() == [TEST]
    assert sorted(random_per_user(np.array([3, 3]), test_ratio=0.2, valid_ratio=0.1).tolist()) == [
        VALID,
        TEST,
    ]


def test_users_are_independent_of_row_order_between_them() -> None:
    users = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    grouped = np.sort(users)
    parts = random_per_user(users, test_ratio=0.4, valid_ratio=0.3)
    again = random_per_user(grouped, test_ratio=0.4, valid_ratio=0.3)
    for user in (0, 1):
        np.testing.assert_array_equal(parts[users == user], again[grouped == user])


def test_impossible_ratios_are_refused() -> None:
    with pytest.raises(ShapeError, match="test ratio is 1"):
        random_per_user(np.array([0]), test_ratio=1, valid_ratio=0)


def test_first_shuffle_is_the_legacy_generators() -> None:
    # Worked by hand: RandomState(42) shuffles [0, 0, 0, 0, 1] of a single user with five rows.
    expected = np.array([0, 0, 0, 0, 1])
    np.random.RandomState(42).shuffle(expected)
    parts = random_per_user(np.zeros(5, np.int64), test_ratio=0.2, valid_ratio=0)
    np.testing.assert_array_equal(parts == TEST, expected == 1)


@pytest.mark.real_data
def test_the_elliot_split_of_amazon_baby_is_reproduced_row_for_row(real_data: Path) -> None:
    folder = real_data / "amazon-baby-asin"
    tables = [read_interactions(folder / f"{part}.tsv") for part in ("train", "validation", "test")]
    users = np.concatenate([table.user_ids for table in tables])
    items = np.concatenate([table.item_ids for table in tables])
    published = np.repeat([TRAIN, VALID, TEST], [len(table) for table in tables])
    order = np.lexsort((items.astype(str), users.astype(str)))
    rows = np.unique(users[order].astype(str), return_inverse=True)[1]
    parts = random_per_user(rows, test_ratio=0.2, valid_ratio=0.1, seed=42)
    np.testing.assert_array_equal(parts, published[order])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 5))
def test_eighths_hold_out_what_the_rule_says(users: list[int], seed: int) -> None:
    rows = np.array(users)
    parts = eighths_per_user(rows, seed=seed)
    for user in set(users):
        own = parts[rows == user]
        n = own.size
        drawn = 0 if n < 3 else 2 if n < 10 else n // 5
        assert np.sum(own == TEST) == drawn // 2
        assert np.sum(own == VALID) == drawn - drawn // 2
    assert np.array_equal(parts, eighths_per_user(rows, seed=seed))


def test_eighths_are_those_of_the_authors_clothing(real_data: Path) -> None:
    """The rule gives every user of the given split as many rows of each part."""
    tables = [
        read_interactions(real_data / f"amazon-clothing/{part}.tsv")
        for part in ("train", "validation", "test")
    ]
    users = np.concatenate([table.user_ids for table in tables]).astype(np.int64)
    given = np.concatenate(
        [
            np.full(len(table), part)
            for part, table in zip((TRAIN, VALID, TEST), tables, strict=True)
        ]
    )
    ours = eighths_per_user(users)
    for part in (TRAIN, VALID, TEST):
        np.testing.assert_array_equal(
            np.bincount(users[given == part]), np.bincount(users[ours == part])
        )
