"""Split methods and filters: their invariants, golden rows, independence of the file's order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbench.data.filters import FILTERS, describe, parse_filter
from mmbench.data.splits import LEAVE_OUT, METHODS, TEST, TRAIN, VALID, Rows, split_rows
from mmbench.errors import ShapeError, UsageError

ROW = st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 9))
ROWS = st.lists(ROW, min_size=1, max_size=60).map(
    lambda rows: Rows(*(np.array(column) for column in zip(*rows, strict=True)))
)
RATIO = st.floats(0, 0.9)


def timed(rows: Rows) -> Rows:
    assert rows.times is not None
    return Rows(rows.users, rows.items, rows.times.astype(float))


@pytest.mark.parametrize("method", METHODS)
@given(
    rows=ROWS,
    test=RATIO,
    valid=RATIO,
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_each_row_gets_one_part_whatever_the_order(
    method: str, rows: Rows, test: float, valid: float, seed: int, order: object
) -> None:
    rows = timed(rows)
    parts = split_rows(method, rows, test_ratio=test, valid_ratio=valid, seed=seed)
    assert parts.shape == rows.users.shape
    assert set(parts.tolist()) <= {TRAIN, VALID, TEST}
    assert np.array_equal(
        parts, split_rows(method, rows, test_ratio=test, valid_ratio=valid, seed=seed)
    )
    if method in ("random", "eighths"):  # these draw in the order of the file
        return
    shuffle = np.array(order.sample(range(rows.users.size), rows.users.size))
    assert rows.times is not None
    moved = Rows(rows.users[shuffle], rows.items[shuffle], rows.times[shuffle])
    other = split_rows(method, moved, test_ratio=test, valid_ratio=valid, seed=seed)
    key = list(zip(rows.users, rows.items, rows.times, parts, strict=True))
    assert sorted(key) == sorted(zip(moved.users, moved.items, moved.times, other, strict=True))


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        # RandomState(42) shuffles [0, 1], [0, 0, 0, 0, 1], ... for test, then what is left
        ("random", {}, "TvvT---v----TTv-----Tv"),
        # users of 2, 5 and 15 rows; the generator draws row 3, then 5; row 7, then 14 and 21
        ("eighths", {}, "---T-v-T------v------v"),
        ("global-random", {}, "---vTT--vTv-TT--vv----"),
        # times 14 21 6 13 20 of the second user: row 3 is the latest, row 6 the one before
        ("leave-k-out", {}, "---T--v--T--v---------"),
        ("leave-one-out", {}, "---T--v--T--v---------"),
        ("leave-k-out", {"k": 2}, "--vT-vT--T--T--v--v---"),
        ("leave-k-out", {"last": False}, "--T---v---------vT----"),
        ("temporal", {}, "vT-T--v-vT--T--T--v--v"),
        # ceil(22 / 5) rows are test, from time 17 on; ceil(17 / 4) validation, from time 12 on
        ("global-temporal", {}, "--vT-vT-vT--T--T--v--v"),
        ("cold-items", {}, "--T-T-vv--T-T-vv--T-T-"),
    ],
)
def test_golden_rows(method: str, options: dict[str, object], expected: str) -> None:
    """Which row goes where: parts of the right size with validation and test swapped are caught."""
    n = np.arange(22)
    rows = Rows(np.repeat([0, 1, 2], [2, 5, 15]), n % 8, (7 * n % 22).astype(float))
    parts = split_rows(method, rows, test_ratio=0.2, valid_ratio=0.25, seed=42, **options)
    assert "".join({TRAIN: "-", VALID: "v", TEST: "T"}[part] for part in parts) == expected


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("method", ["global-random", "temporal", "global-temporal", "cold-items"])
def test_a_share_is_the_one_that_was_written(method: str, ratio: float) -> None:
    # In floating point 10 (1 - 0.9) is less than 1, and floor would leave nothing to train on.
    rows = Rows(np.zeros(10, np.int64), np.arange(10), np.arange(10.0))
    parts = split_rows(method, rows, test_ratio=ratio, valid_ratio=0, seed=1)
    assert np.sum(parts == TEST) == round(10 * ratio)
    parts = split_rows(method, rows, test_ratio=0, valid_ratio=ratio, seed=1)
    assert np.sum(parts == VALID) == round(10 * ratio)


@given(ROWS, st.integers(1, 3), st.booleans())
def test_leave_k_out_takes_k_of_each_and_the_latest(rows: Rows, k: int, last: bool) -> None:
    rows = timed(rows)
    assert rows.times is not None
    parts = split_rows("leave-k-out", rows, test_ratio=0, valid_ratio=0, seed=1, k=k, last=last)
    for user in set(rows.users.tolist()):
        own, times = parts[rows.users == user], rows.times[rows.users == user]
        held = k if own.size > 2 * k else 0
        assert (np.sum(own == TEST), np.sum(own == VALID)) == (held, held)
        if held and last:
            assert (
                times[own == TRAIN].max() <= times[own == VALID].min() <= times[own == VALID].max()
            )
            assert times[own == VALID].max() <= times[own == TEST].min()


@given(ROWS, RATIO, RATIO)
def test_time_only_goes_forward(rows: Rows, test: float, valid: float) -> None:
    rows = timed(rows)
    assert rows.times is not None

    def forward(times: np.ndarray, parts: np.ndarray, strictly: bool) -> None:
        for early, late in ((TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)):
            a, b = times[parts == early], times[parts == late]
            if a.size and b.size:
                assert a.max() < b.min() if strictly else a.max() <= b.min()

    forward(
        rows.times,
        split_rows("global-temporal", rows, test_ratio=test, valid_ratio=valid, seed=0),
        True,
    )
    parts = split_rows("temporal", rows, test_ratio=test, valid_ratio=valid, seed=0)
    for user in set(rows.users.tolist()):
        forward(rows.times[rows.users == user], parts[rows.users == user], False)


@given(ROWS, RATIO, RATIO, st.integers(0, 3))
def test_cold_items_have_rows_in_one_part_only(
    rows: Rows, test: float, valid: float, seed: int
) -> None:
    parts = split_rows("cold-items", rows, test_ratio=test, valid_ratio=valid, seed=seed)
    n = np.unique(rows.items).size
    of_item = [set(parts[rows.items == item].tolist()) for item in np.unique(rows.items)]
    assert all(len(own) == 1 for own in of_item)
    assert -1e-9 < of_item.count({TEST}) - n * test < 1 + 1e-9


def test_given_instants() -> None:
    rows = Rows(np.zeros(4, int), np.arange(4), np.array([1.0, 2, 3, 4]))
    parts = split_rows(
        "global-temporal", rows, test_ratio=0, valid_ratio=0, seed=0, test_from=3.5, valid_from=2
    )
    assert parts.tolist() == [TRAIN, VALID, VALID, TEST]
    with pytest.raises(ShapeError, match="after test"):
        split_rows(
            "global-temporal", rows, test_ratio=0, valid_ratio=0, seed=0, test_from=1, valid_from=2
        )


@pytest.mark.parametrize("method", ["temporal", "global-temporal", "leave-k-out"])
def test_no_times_no_temporal_split(method: str) -> None:
    rows = Rows(np.zeros(4, int), np.arange(4))
    with pytest.raises(ShapeError, match="timestamps"):
        split_rows(method, rows, test_ratio=0.2, valid_ratio=0.2, seed=0)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("eighths", *LEAVE_OUT)]
)
def test_impossible_shares(method: str) -> None:
    rows = Rows(np.zeros(4, int), np.arange(4), np.arange(4.0))
    with pytest.raises(ShapeError, match="ratio"):
        split_rows(method, rows, test_ratio=1.0, valid_ratio=0.2, seed=0)


def test_options_of_other_methods_are_refused() -> None:
    rows = Rows(np.zeros(4, int), np.arange(4), np.arange(4.0))
    with pytest.raises(UsageError, match="--k"):
        split_rows("random", rows, test_ratio=0.2, valid_ratio=0.2, seed=0, k=2)
    with pytest.raises(UsageError, match="--k"):
        split_rows("leave-one-out", rows, test_ratio=0.2, valid_ratio=0.2, seed=0, k=1)
    with pytest.raises(UsageError, match="leave-k-out"):
        split_rows("leave-n-out", rows, test_ratio=0.2, valid_ratio=0.2, seed=0)


@given(ROWS, st.integers(1, 4), st.integers(1, 4))
def test_k_core_is_the_fixed_point(rows: Rows, user_k: int, item_k: int) -> None:
    keep = parse_filter(f"kcore:{user_k},{item_k}").keep(rows, None)
    left = set(range(rows.users.size))
    changed = True
    while changed:  # one row at a time
        changed = False
        for row in sorted(left):
            users = sum(rows.users[other] == rows.users[row] for other in left)
            items = sum(rows.items[other] == rows.items[row] for other in left)
            if users < user_k or items < item_k:
                left.remove(row)
                changed = True
    assert set(np.flatnonzero(keep).tolist()) == left


@given(ROWS, st.integers(1, 4))
def test_one_pass_minima(rows: Rows, k: int) -> None:
    for name, ids in (("min-user", rows.users), ("min-item", rows.items)):
        keep = parse_filter(f"{name}:{k}").keep(rows, None)
        assert keep.tolist() == [(ids == one).sum() >= k for one in ids]


@given(ROWS)
def test_one_row_of_each_pair(rows: Rows) -> None:
    rows = timed(rows)
    assert rows.times is not None
    ratings = rows.times[::-1].copy()
    for which, values, best in (
        ("first", rows.times, min),
        ("last", rows.times, max),
        ("max", ratings, max),
    ):
        keep = parse_filter(f"dedup:{which}").keep(rows, ratings)
        pairs = list(zip(rows.users, rows.items, strict=True))
        assert sorted({pairs[row] for row in range(len(pairs))}) == sorted(
            pairs[row] for row in np.flatnonzero(keep)
        )
        for row in np.flatnonzero(keep):
            assert values[row] == best(
                values[other] for other in range(len(pairs)) if pairs[other] == pairs[row]
            )


def test_ratings_are_needed_where_they_are() -> None:
    rows = Rows(np.zeros(2, int), np.zeros(2, int))
    for text in ("min-rating:4", "dedup:max"):
        with pytest.raises(UsageError, match="no ratings"):
            parse_filter(text).keep(rows, None)
    assert parse_filter("min-rating:4").keep(rows, np.array([4.0, 3.9])).tolist() == [True, False]
    assert parse_filter("dedup:last").keep(rows, None).tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "kcores:5",
        "kcore",
        "kcore:x",
        "kcore:1,2,3",
        "kcore:0",
        "min-user:1.5",
        "dedup:best",
        "min-rating:",
    ],
)
def test_wrong_filters(text: str) -> None:
    with pytest.raises(UsageError, match=r"kcore|min-|dedup"):
        parse_filter(text)


def test_counts_by_hand() -> None:
    rows = Rows(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0]), np.array([3.0, 1, 2, 5]))
    counts = describe(rows)
    assert (counts["interactions"], counts["users"], counts["items"], counts["density"]) == (
        4,
        2,
        2,
        1,
    )
    assert counts["per item, most"] == 3
    assert counts["Gini of item popularity"] == pytest.approx(0.25)
    assert (counts["first timestamp"], counts["last timestamp"]) == (1, 5)
    assert describe(Rows(np.zeros(0, int), np.zeros(0, int)))["users"] == 0
    assert set(FILTERS) == {"kcore", "min-user", "min-item", "min-rating", "dedup"}
