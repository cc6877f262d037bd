"""Splits: three tables of interactions, and the methods that divide rows into TRAIN, VALID, TEST.

Every method returns an array of shape (n,), int8, for n rows. A share is in [0, 1) and rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmbench.core.sampling import numpy_rng
from mmbench.data.tables import InteractionTable, sorted_ids, write_interactions
from mmbench.errors import ShapeError, UsageError, unknown_name

TRAIN, VALID, TEST = 0, 1, 2
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "val", "validation"),
    "test": ("test",),
}
"""File stems under which each part of a split is found."""


@dataclass(frozen=True, eq=False)
class SplitTables:
    """The three parts as tables of ids, before anything is indexed."""

    name: str
    parts: Mapping[str, InteractionTable]
    notes: tuple[str, ...] = ()

    @classmethod
    def divided(cls, name: str, table: InteractionTable, part: NDArray[np.int8]) -> SplitTables:
        """Divide a table's rows by part: TRAIN, VALID or TEST, shape (n,)."""
        parts = {key: table.take(part == number) for number, key in enumerate(PARTS)}
        return cls(name, parts, (table.note,) if table.note else ())


def write_split(folder: Path, tables: SplitTables) -> None:
    """Write train.tsv, valid.tsv and test.tsv into a folder, made if it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, table in tables.parts.items():
        write_interactions(folder / f"{part}.tsv", table)


def random_per_user(
    users: NDArray[np.int64], *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """Hold out a random share of each user's rows for test, then one of the rest for validation.

    Row for row the split of the Elliot framework (`random_subsampling`), which made the data of
    arXiv 2309.05273: users in ascending order, floor(n (1 - ratio)) rows stay, chosen by shuffling
    with NumPy's legacy generator, whose state runs on from the test pass to the validation pass. A
    user with one row has it in test. The product is a floating-point one, as there: with ratio 0.9
    a user of ten rows keeps none.

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
    """Split each user's rows about 8:1:1, the rule behind the 5-core data sets of LATTICE.

    Of n >= 10 rows floor(n / 5) are drawn, the smaller half for test and the larger for validation;
    of 3 to 9 rows one for each. Users with fewer rows keep all in training.
    """
    rng = numpy_rng(seed, "eighths")
    parts = np.full(users.size, TRAIN, np.int8)
    for group in _groups(users, np.argsort(users, kind="stable")):
        if group.size < 3:
            continue
        n_drawn = 2 if group.size < 10 else group.size // 5
        n_test = n_drawn // 2
        drawn = rng.permutation(group)[:n_drawn]
        parts[drawn[:n_test]], parts[drawn[n_test:]] = TEST, VALID
    return parts


@dataclass(frozen=True, eq=False)
class Rows:
    """Interactions as numbers: user, item and time (None where there are none), each shape (n,).

    Users and items are numbered in the order of their ids; times are whole ticks, of which
    `per_second` make a second, or, `by_position`, places in each user's sequence.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64] | None = None
    per_second: int = 1
    by_position: bool = False

    @classmethod
    def of(cls, table: InteractionTable) -> Rows:
        """Number the users and items of a table."""

        def number(ids: NDArray[np.object_]) -> NDArray[np.int64]:
            place = {text: row for row, text in enumerate(sorted_ids(ids))}
            return np.array([place[text] for text in ids.tolist()], np.int64)

        users, items = number(table.user_ids), number(table.item_ids)
        return cls(users, items, table.timestamps, table.per_second, table.by_position)

    def canonical(self, *first: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return row numbers sorted by the given keys, then user, item and time.

        The order of the file plays no part.
        """
        keys = [*first, self.users, self.items, *([] if self.times is None else [self.times])]
        return np.lexsort(keys[::-1])

    def by_time(self, what: str) -> NDArray[np.int64]:
        """Return timestamps or positions, or raise a ShapeError where there are none."""
        if self.times is None:
            raise ShapeError(
                f"{what}: needs timestamps or positions, and these interactions have none; if a "
                "column of another name holds them: --columns timestamp=NAME"
            )
        return self.times


def global_random(
    rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """Hold out a random share of all rows for test, then one of the rest for validation.

    Users may end up without training rows. The outcome does not depend on the order of the rows.
    """
    order = numpy_rng(seed, "global-random").permutation(rows.canonical())
    return _from_the_end(order, test_ratio, valid_ratio)


def leave_k_out(rows: Rows, *, k: int = 1, last: bool = True, seed: int = 42) -> NDArray[np.int8]:
    """Hold out k rows of each user for test and k for validation; 1 is leave-one-out.

    Users with fewer than 2 k + 1 rows keep all in training. `last` takes the latest rows, test
    after validation, ties by item; otherwise rows at random.

    Raises:
        ShapeError: k < 1, or `last` without timestamps.
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
    """Hold out the latest share of each user's rows for test, then of the rest for validation.

    Ties in time are broken by item.
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
    test_from: int | None = None,
    valid_from: int | None = None,
) -> NDArray[np.int8]:
    """Split at two points in time for all users: test from the later one on, validation before it.

    Rows of one instant stay together: the instant at the boundary of a share goes to the later
    part, so that at least the share of the rows is held out.

    Args:
        rows: The interactions, with timestamps.
        test_ratio: Share of all rows for test, unless `test_from` is given.
        valid_ratio: Share of the remaining rows for validation, unless `valid_from` is given.
        test_from: First instant of test, in ticks.
        valid_from: First instant of validation, in ticks.

    Raises:
        ShapeError: A share is out of range, there are no timestamps, or validation begins after
            test.
    """
    times = rows.by_time("a temporal split")
    if rows.by_position:
        raise ShapeError(
            "a split at one instant for all: needs timestamps, and these rows have positions in "
            "their user's sequence; --method temporal or leave-one-out divides each user's own"
        )
    _check_ratios(test_ratio, valid_ratio)
    if test_from is None:
        test_from = _boundary(times, test_ratio)
    if valid_from is None:
        valid_from = min(test_from, _boundary(times[times < test_from], valid_ratio))
    if valid_from > test_from:
        raise ShapeError(
            f"temporal_global: validation begins at {valid_from}, after test at {test_from}"
        )
    return np.where(times >= test_from, TEST, np.where(times >= valid_from, VALID, TRAIN)).astype(
        np.int8
    )


def cold_items(
    rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int = 42
) -> NDArray[np.int8]:
    """Hold out all rows of a random share of the items for test, then of the others for validation.

    These items have no training rows; under the protocol `strict` they are candidates, ranked
    through their content.
    """
    distinct, place = np.unique(rows.items, return_inverse=True)
    order = numpy_rng(seed, "cold-items").permutation(distinct.size)
    return _from_the_end(order, test_ratio, valid_ratio)[place]


def _from_the_end(
    order: NDArray[np.int64], test_ratio: float, valid_ratio: float
) -> NDArray[np.int8]:
    """Hold out the end of an order for test, the end of the rest for validation."""
    _check_ratios(test_ratio, valid_ratio)
    parts = np.full(order.size, TRAIN, np.int8)
    n_rest = order.size - _share(order.size, test_ratio)
    n_train = n_rest - _share(n_rest, valid_ratio)
    parts[order[n_rest:]], parts[order[n_train:n_rest]] = TEST, VALID
    return parts


def _share(n: int, ratio: float) -> int:
    # Of the ratio as it is written: in floating point, 10 (1 - 0.9) is less than one.
    return ceil(n * Fraction(repr(ratio)))


def _boundary(times: NDArray[np.int64], ratio: float) -> int:
    """Return the latest instant from which on a share of the rows lies; behind all for share 0."""
    first = times.size - _share(times.size, ratio)
    return np.sort(times)[first].item() if first < times.size else np.iinfo(np.int64).max


def _check_ratios(test_ratio: float, valid_ratio: float) -> None:
    for name, ratio in (("test", test_ratio), ("valid", valid_ratio)):
        if not 0 <= ratio < 1:
            raise ShapeError(f"split: the {name} ratio is {ratio}, must be in [0, 1)")


def _groups(users: NDArray[np.int64], order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut an order that is grouped by user into one array per user."""
    _, starts = np.unique(users[order], return_index=True)
    return np.split(order, starts[1:])


METHODS = (
    "random", "eighths", "global-random", "leave-one-out", "leave-k-out", "temporal",
    "global-temporal", "cold-items",
)  # fmt: skip
"""The methods by name; `mmbench data split --help` says what each does."""

LEAVE_OUT = ("leave-one-out", "leave-k-out")
"""Those that hold out as many rows of each user; the first is the second's default."""


def too_short(users: NDArray[np.int64], parts: NDArray[np.int8]) -> str:
    """Return how many users have all rows in training, in words; empty if none has."""
    n, everyone = np.unique(users[parts != TRAIN]).size, np.unique(users).size
    if n == everyone:
        return ""
    few = f"{everyone - n:,} of {counted(everyone, 'user')}"
    return f"too few rows for any to be held out: {few}; theirs are all in training"


def split_rows(
    method: str, rows: Rows, *, test_ratio: float, valid_ratio: float, seed: int, **options: Any
) -> NDArray[np.int8]:
    """Split by one of `METHODS`.

    Args:
        method: A name of `METHODS`.
        rows: The interactions.
        test_ratio: Share for test, in [0, 1).
        valid_ratio: Share of the rest for validation, in [0, 1).
        seed: Any integer.
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
    if method in LEAVE_OUT:
        return leave_k_out(rows, seed=seed, **options)
    if method == "temporal":
        return temporal_per_user(rows, **ratios)
    if method == "global-temporal":
        return temporal_global(rows, test_ratio=test_ratio, valid_ratio=valid_ratio, **options)
    return cold_items(rows, **ratios, seed=seed)
