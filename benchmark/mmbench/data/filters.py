"""Filters of interactions: pure functions from rows to which of them stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbench.data.splits import Rows
from mmbench.errors import UsageError, unknown_name

Keep = NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """A filter with its options, written as `text`, e.g. `kcore:5`.

    `keep` maps rows and their ratings (None where there are none) to which rows stay, shape (n,).
    """

    text: str
    keep: Callable[[Rows, NDArray[np.float64] | None], Keep]


def k_core(rows: Rows, user_k: int, item_k: int) -> Keep:
    """Keep the largest set of rows with `user_k` or more per user and `item_k` per item."""
    keep = np.ones(rows.users.size, bool)
    while True:
        few = np.zeros(keep.size, bool)
        for ids, k in ((rows.users, user_k), (rows.items, item_k)):
            counts = np.bincount(ids[keep], minlength=int(ids.max(initial=-1)) + 1)
            few |= keep & (counts[ids] < k)
        if not few.any():
            return keep
        keep &= ~few


def at_least(ids: NDArray[np.int64], k: int) -> Keep:
    """Keep rows whose user (or item) has k or more; one pass, so the other side may fall below."""
    return np.bincount(ids)[ids] >= k if ids.size else np.ones(0, bool)


def min_rating(ratings: NDArray[np.float64] | None, threshold: float) -> Keep:
    """Keep rows with at least that rating; a UsageError where there are none."""
    if ratings is None:
        raise UsageError("--filter min-rating: these interactions have no ratings")
    return ratings >= threshold


def distinct(rows: Rows, ratings: NDArray[np.float64] | None, which: str) -> Keep:
    """Keep one row of each user-item pair: `first` or `last` in time, or the best rated (`max`).

    Where there are no times, the order of the file decides.

    Raises:
        UsageError: `max` without ratings.
    """
    place = np.arange(rows.users.size)
    key: NDArray[np.int64] | NDArray[np.float64] = place if rows.times is None else rows.times
    if which == "max":
        if ratings is None:
            raise UsageError(
                "--filter dedup:max: these interactions have no ratings; use dedup:first or "
                "dedup:last"
            )
        key = ratings
    sign = 1 if which == "first" else -1
    order = np.lexsort((sign * place, sign * key, rows.items, rows.users))
    users, items = rows.users[order], rows.items[order]
    first = np.ones(order.size, bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    keep = np.zeros(order.size, bool)
    keep[order[first]] = True
    return keep


FILTERS = {
    "kcore": "K or USER_K,ITEM_K: each user and item keeps at least so many rows, repeated until "
    "nothing changes",
    "min-user": "K: users with at least K rows, one pass",
    "min-item": "K: items with at least K rows, one pass",
    "min-rating": "R: rows rated at least R",
    "dedup": "first, last or max: one row of each user-item pair",
}
"""The filters by name, and their options."""


def parse_filter(text: str) -> Filter:
    """Parse `NAME:OPTION` of `FILTERS`, e.g. `kcore:5`, `kcore:5,10` or `dedup:last`.

    Raises:
        UsageError: No such filter, or no such option.
    """
    name, _, option = text.partition(":")
    if name not in FILTERS:
        raise unknown_name("filter", name, FILTERS)
    wrong = UsageError(f"--filter {text}: expected {name}:…, where … is {FILTERS[name]}")
    if name == "dedup":
        if option not in ("first", "last", "max"):
            raise wrong
        return Filter(text, lambda rows, ratings: distinct(rows, ratings, option))
    try:
        numbers = [float(part) for part in option.split(",")]
    except ValueError as error:
        raise wrong from error
    if name == "min-rating":
        if len(numbers) != 1:
            raise wrong
        return Filter(text, lambda _, ratings: min_rating(ratings, numbers[0]))
    if len(numbers) > (2 if name == "kcore" else 1) or any(
        value < 1 or value % 1 for value in numbers
    ):
        raise wrong
    whole = [int(value) for value in numbers]
    if name == "kcore":
        return Filter(text, lambda rows, _: k_core(rows, whole[0], whole[-1]))
    if name == "min-user":
        return Filter(text, lambda rows, _: at_least(rows.users, whole[0]))
    return Filter(text, lambda rows, _: at_least(rows.items, whole[0]))


def describe(rows: Rows) -> dict[str, float | int]:
    """Count users, items, rows per user and item, density, popularity, range of times or positions.

    The Gini index is over the items that occur, 0 for equal popularity; the metric `Gini` runs the
    other way.
    """
    per_user, per_item = (np.unique(ids, return_counts=True)[1] for ids in (rows.users, rows.items))
    n = rows.users.size
    out: dict[str, float | int] = {
        "interactions": n,
        "users": per_user.size,
        "items": per_item.size,
    }
    if not n:
        return out
    out["density"] = n / (per_user.size * per_item.size)
    for name, counts in (("user", per_user), ("item", per_item)):
        out[f"per {name}, least"] = int(counts.min())
        out[f"per {name}, median"] = float(np.median(counts))
        out[f"per {name}, mean"] = float(counts.mean())
        out[f"per {name}, most"] = int(counts.max())
    ranks = np.arange(1, per_item.size + 1)
    out["Gini of item popularity"] = float(
        ((2 * ranks - per_item.size - 1) * np.sort(per_item)).sum() / (n * per_item.size)
    )
    if rows.times is not None:
        for name, ticks in (("first", rows.times.min()), ("last", rows.times.max())):
            whole, rest = divmod(int(ticks), rows.per_second)
            what = "position" if rows.by_position else "timestamp"
            out[f"{name} {what}"] = whole if not rest else int(ticks) / rows.per_second
    return out
