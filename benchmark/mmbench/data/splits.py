"""Splitting interactions. Rows in, a part for each row out; no files, no ids."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.core.rng import numpy_rng
from mmbench.errors import ShapeError, UsageError, unknown_name

TRAIN, VALID, TEST = 0, 1, 2


def random_per_user(
    users: NDArray[np.int64], *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """A random share of each user's rows goes to test, then a share of the rest to validation.

    Row for row the split of the Elliot framework (`random_subsampling`), which made the data of
    arXiv 2309.05273: users in ascending order, floor(n (1 - ratio)) rows stay and the others go,
    chosen by shuffling with NumPy's legacy generator, whose state runs on from the test pass to the
    validation pass. So test rounds up: a user with one row has it in test. The product is a
    floating-point one, as there: with ratio 0.9 a user of ten rows keeps none.

    Args:
        users: User of each row, shape (n,); ascending order of these numbers is the order in which
            users are drawn.
        test_ratio: Share of each user's rows that becomes test, in [0, 1).
        valid_ratio: Share of each user's remaining rows that becomes validation, in [0, 1).
        seed: Of the legacy generator; Elliot's default is 42.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range.
    """
    _check_ratios(test_ratio, valid_ratio)
    generator = np.random.RandomState(seed)
    parts = np.full(users.size, TRAIN, np.int8)
    for part, ratio in ((TEST, test_ratio), (VALID, valid_ratio)):
        if not ratio:
            continue
        rows = np.flatnonzero(parts == TRAIN)
        for group in _groups(
            users, rows[np.argsort(users[rows], kind="stable")]
        ):  # file order within a user
            held_out = np.ones(group.size, bool)
            held_out[: int(np.floor(group.size * (1 - ratio)))] = False
            generator.shuffle(held_out)
            parts[group[held_out]] = part
    return parts


def eighths_per_user(users: NDArray[np.int64], *, seed: int = 42) -> NDArray[np.int8]:
    """About eight, one and one tenth of each user's rows: the rule behind LATTICE's data, which the 5-core sets share.

    A user with fewer than ten rows has one in test and one in validation; of n >= 10 rows floor(n /
    5) are drawn, the smaller half of which is test and the larger half validation. Users with fewer
    than three rows keep all in training.

    Args:
        users: User of each row, shape (n,).
        seed: Any integer.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).
    """
    rng = numpy_rng(seed, "eighths")
    parts = np.full(users.size, TRAIN, np.int8)
    for group in _groups(users, np.argsort(users, kind="stable")):
        if group.size < 3:
            continue
        n_test, n_valid = (
            (1, 1)
            if group.size < 10
            else (group.size // 5 // 2, group.size // 5 - group.size // 5 // 2)
        )
        drawn = rng.permutation(group)[: n_test + n_valid]
        parts[drawn[:n_test]], parts[drawn[n_test:]] = TEST, VALID
    return parts


@dataclass(frozen=True, eq=False)
class Rows:
    """Interactions as numbers.

    Attributes:
        users: User of each row, shape (n,), in the order of the ids.
        items: Item of each row, shape (n,), likewise.
        times: Timestamp of each row, shape (n,), float64; None where there are none.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.float64] | None = None

    def canonical(self, *first: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
        """Row numbers sorted by the given keys, then user, item and time: an order that the file's order has no part in."""
        keys = [*first, self.users, self.items, *([] if self.times is None else [self.times])]
        return np.lexsort(keys[::-1])

    def by_time(self, what: str) -> NDArray[np.float64]:
        """The timestamps.

        Raises:
            ShapeError: There are none.
        """
        if self.times is None:
            raise ShapeError(
                f"{what}: needs timestamps, and these interactions have none; if a column of "
                "another "
                "name holds them: --columns timestamp=NAME"
            )
        return self.times


def global_random(
    rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """A random share of all rows goes to test, a share of the rest to validation; users may end up without training rows.

    Args:
        rows: The interactions; the outcome does not depend on their order.
        test_ratio: Share of all rows, in [0, 1); rounded up.
        valid_ratio: Share of the remaining rows, in [0, 1); rounded up.
        seed: Any integer.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range.
    """
    order = numpy_rng(seed, "global-random").permutation(rows.canonical())
    return _from_the_end(order, test_ratio, valid_ratio)


def leave_k_out(rows: Rows, *, k: int = 1, last: bool = True, seed: int = 42) -> NDArray[np.int8]:
    """K rows of each user are test and k validation; users with fewer than 2 k + 1 rows keep all in training.

    Args:
        rows: The interactions.
        k: Rows per user and part, >= 1; 1 is leave-one-out.
        last: The latest rows, test after validation, ties by item; else rows at random.
        seed: Of the random ones.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: k < 1, or there are no timestamps.
    """
    if k < 1:
        raise ShapeError(f"leave_k_out: k is {k}, must be at least 1")
    if last:
        order = rows.canonical(rows.users, rows.by_time("leave-k-out by time"))
    else:
        shuffled = numpy_rng(seed, "leave-k-out").permutation(rows.canonical())
        order = shuffled[np.argsort(rows.users[shuffled], kind="stable")]
    parts = np.full(rows.users.size, TRAIN, np.int8)
    for group in _groups(rows.users, order):
        if group.size > 2 * k:
            parts[group[-k:]], parts[group[-2 * k : -k]] = TEST, VALID
    return parts


def temporal_per_user(rows: Rows, *, test_ratio: float, valid_ratio: float) -> NDArray[np.int8]:
    """The latest share of each user's rows is test, the latest of the rest validation; ties in time by item.

    Args:
        rows: The interactions, with timestamps.
        test_ratio: Share of each user's rows, in [0, 1); rounded up.
        valid_ratio: Share of the remaining rows, in [0, 1); rounded up.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range, or there are no timestamps.
    """
    order = rows.canonical(rows.users, rows.by_time("a temporal split"))
    parts = np.full(rows.users.size, TRAIN, np.int8)
    for group in _groups(rows.users, order):
        parts[group] = _from_the_end(np.arange(group.size), test_ratio, valid_ratio)
    return parts


def temporal_global(
    rows: Rows,
    *,
    test_ratio: float = 0.2,
    valid_ratio: float = 0.2,
    test_from: float | None = None,
    valid_from: float | None = None,
) -> NDArray[np.int8]:
    """One point in time for all: what is later is test, what is before that and later than another is validation.

    Rows of one instant are never divided: with shares, the instant at the boundary goes to the
    later part.

    Args:
        rows: The interactions, with timestamps.
        test_ratio: At least this share of all rows is test, unless `test_from` is given.
        valid_ratio: At least this share of the remaining rows is validation, unless `valid_from` is
            given.
        test_from: First instant of test.
        valid_from: First instant of validation.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range, there are no timestamps, or validation begins after
            test.
    """
    times = rows.by_time("a temporal split")
    _check_ratios(test_ratio, valid_ratio)
    if test_from is None:
        test_from = _boundary(times, test_ratio)
    if valid_from is None:
        valid_from = min(test_from, _boundary(times[times < test_from], valid_ratio))
    if valid_from > test_from:
        raise ShapeError(
            f"temporal_global: validation begins at {valid_from:g}, after test at {test_from:g}"
        )
    return np.where(times >= test_from, TEST, np.where(times >= valid_from, VALID, TRAIN)).astype(
        np.int8
    )


def cold_items(
    rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """All rows of a random share of the items are test, those of a share of the other items validation.

    Such items have no training rows; under the protocol `strict` they are candidates, ranked
    through their content.

    Args:
        rows: The interactions.
        test_ratio: Share of the items, in [0, 1); rounded up.
        valid_ratio: Share of the remaining items, in [0, 1); rounded up.
        seed: Any integer.

    Returns:
        TRAIN, VALID or TEST for each row, shape (n,).

    Raises:
        ShapeError: A ratio is out of range.
    """
    distinct, place = np.unique(rows.items, return_inverse=True)
    order = numpy_rng(seed, "cold-items").permutation(distinct.size)
    return _from_the_end(order, test_ratio, valid_ratio)[place]


def _from_the_end(
    order: NDArray[np.int64], test_ratio: float, valid_ratio: float
) -> NDArray[np.int8]:
    """The last share of an order is test, the last of the rest validation; both rounded up."""
    _check_ratios(test_ratio, valid_ratio)
    parts = np.full(order.size, TRAIN, np.int8)
    n_rest = order.size - _share(order.size, test_ratio)
    n_train = n_rest - _share(n_rest, valid_ratio)
    parts[order[n_rest:]], parts[order[n_train:n_rest]] = TEST, VALID
    return parts


def _share(n: int, ratio: float) -> int:
    """A share of n, rounded up; of the ratio as written: n (1 - 0.9) in floating point is less than one of ten."""
    return ceil(n * Fraction(repr(ratio)))


def _boundary(times: NDArray[np.float64], ratio: float) -> float:
    """The latest instant from which on at least a share of the rows lie; beyond all of them for the share 0."""
    first = times.size - _share(times.size, ratio)
    return float(np.sort(times)[first]) if first < times.size else np.inf


def _check_ratios(test_ratio: float, valid_ratio: float) -> None:
    for name, ratio in (("test", test_ratio), ("valid", valid_ratio)):
        if not 0 <= ratio < 1:
            raise ShapeError(f"split: the {name} ratio is {ratio}, must be in [0, 1)")


def _groups(users: NDArray[np.int64], order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """An order that is grouped by user, cut at the users."""
    _, starts = np.unique(users[order], return_index=True)
    return np.split(order, starts[1:])


METHODS = (
    "random",
    "eighths",
    "global-random",
    "leave-k-out",
    "temporal",
    "global-temporal",
    "cold-items",
)
"""The methods by name; `mmbench data split --help` says what each does."""


def split_rows(
    method: str, rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int, **options: Any
) -> NDArray[np.int8]:
    """The part of each row by one of `METHODS`.

    Args:
        method: A name of `METHODS`.
        rows: The interactions.
        test_ratio: As for the method.
        valid_ratio: As for the method.
        seed: As for the method.
        options: `k`, `last`, `test_from`, `valid_from` where the method has them.

    Raises:
        UsageError: There is no such method, or it does not have an option.
        ShapeError: An option is out of range, or timestamps are needed and absent.
    """
    if method not in METHODS:
        raise unknown_name("split method", method, METHODS)
    allowed = {"leave-k-out": {"k", "last"}, "global-temporal": {"test_from", "valid_from"}}.get(
        method, set()
    )
    for name in options:
        if name not in allowed:
            raise UsageError(f"--{name.replace('_', '-')}: has no meaning for --method {method}")
    ratios = {"test_ratio": test_ratio, "valid_ratio": valid_ratio}
    if method == "random":
        return random_per_user(rows.users, **ratios, seed=seed)
    if method == "eighths":
        return eighths_per_user(rows.users, seed=seed)
    if method == "global-random":
        return global_random(rows, **ratios, seed=seed)
    if method == "leave-k-out":
        return leave_k_out(rows, seed=seed, **options)
    if method == "temporal":
        return temporal_per_user(rows, **ratios)
    if method == "global-temporal":
        return temporal_global(rows, **ratios, **options)
    return cold_items(rows, **ratios, seed=seed)
