"""Histories: order, repetitions, and what is left of them, against lists of Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmbench.core.interactions import Histories

N_USERS, N_ITEMS = 4, 6
ROW = st.tuples(
    st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(0, 5)
)  # user, item, time
ROWS = st.lists(ROW, max_size=25)


def columns(rows: list[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def plain(histories: Histories) -> list[list[int]]:
    bounds = zip(histories.indptr[:-1], histories.indptr[1:], strict=True)
    return [histories.items[first:last].tolist() for first, last in bounds]


def by_hand(rows: list[tuple[int, int, int]], *, timed: bool) -> list[list[int]]:
    """Python's sort is stable: rows of one time stay in their order."""
    order = sorted(rows, key=lambda row: row[2]) if timed else rows
    return [[item for user, item, _ in order if user == one] for one in range(N_USERS)]


@given(ROWS, ROWS, st.booleans())
def test_later_rows_come_in_by_time_and_repetitions_stay(
    early: list[tuple[int, int, int]], late: list[tuple[int, int, int]], timed: bool
) -> None:
    users, items, times = columns(early)
    histories = Histories.from_rows(users, items, N_USERS, times if timed else None)
    assert plain(histories) == by_hand(early, timed=timed)
    longer = histories.then(*columns(late))
    assert plain(longer) == by_hand([*early, *late], timed=timed)
    without_times = histories.then(*columns(late)[:2], None)
    added = by_hand(late, timed=False)
    pairs = zip(plain(histories), added, strict=True)
    assert plain(without_times) == [before + after for before, after in pairs]


@given(ROWS, st.integers(0, N_ITEMS), st.integers(1, 4))
def test_parts_of_histories(rows: list[tuple[int, int, int]], n: int, k: int) -> None:
    users, items, times = columns(rows)
    histories = Histories.from_rows(users, items, N_USERS, times)
    whole = plain(histories)
    known = histories.among(n)
    assert plain(known) == [[item for item in own if item < n] for own in whole]
    assert known.times is not None and known.times.size == known.items.size
    assert plain(histories.latest(k)) == [own[-k:] for own in whole]
    pairs = {(user, item) for user, own in enumerate(whole) for item in own if item < n}
    distinct = histories.distinct(n)
    assert set(zip(distinct.users.tolist(), distinct.items.tolist(), strict=True)) == pairs
    assert (distinct.n_users, distinct.n_items) == (N_USERS, n)
    assert not distinct.without_pairs().contains(users, items).any()
