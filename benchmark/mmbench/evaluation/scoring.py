"""Score ranked lists against held-out rows, all together and slice by slice. No files, no printing.

A slice is a set of items or of users, by popularity, activity, cold items and modalities. Its
scores are those of the same ranked lists on the held-out rows of these items or users alone: the
other relevant items are neither hits nor missed. Metrics that look at lists only (coverage,
popularity, diversity) describe, for a slice of items, the lists of the users who have a held-out
row in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.errors import DataError, ShapeError, UsageError
from mmbench.metrics.item_data import ItemVectors, Mask, Need, Topics, Values, required
from mmbench.metrics.judged_lists import Judged, Pairs

if TYPE_CHECKING:
    from mmbench.metrics import Metric


# Shares of the training interactions, as fractions: 0.8 is not a binary fraction.
HEAD, TAIL = (1, 2), (4, 5)
N_ACTIVITY = 4


@dataclass(frozen=True, eq=False)
class RankedLists:
    """One ranked list per user, best item first.

    Attributes:
        users: User rows, shape (n,), distinct, any order.
        items: Item rows, shape (n, K), int64; a shorter list ends in -1. Rows >= the training set's
            `n_items` stand for items that occur outside training only.

    Raises:
        ShapeError: The arrays do not fit together.
        DataError: A user or an item of one list repeats, a row is negative, or an item follows a
            -1.
    """

    users: Index
    items: Index

    def __post_init__(self) -> None:
        if self.users.ndim != 1 or self.items.ndim != 2 or self.users.size != self.items.shape[0]:
            raise ShapeError(
                f"RankedLists: users {self.users.shape} and items {self.items.shape} must be (n,) "
                "and (n, K)"
            )
        if np.unique(self.users).size != self.users.size or (self.users < 0).any():
            raise DataError(
                "ranked lists: a user has two lists or a negative row; give each user one list"
            )
        if (self.items < -1).any():
            raise DataError(
                "ranked lists: negative item rows (expected rows >= 0, or -1 after the end of a "
                "list)"
            )
        ended = self.items < 0
        gaps = (ended[:, :-1] & ~ended[:, 1:]).any(1)
        if gaps.any():
            user = self.users[np.flatnonzero(gaps)[0]]
            raise DataError(
                f"ranked lists: the list of user row {user} has a gap; -1 may only follow its last "
                "item"
            )
        ordered = np.sort(self.items, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeated.any():
            row, column = (int(axis[0]) for axis in np.nonzero(repeated))
            raise DataError(
                f"ranked lists: item row {ordered[row, column]} is twice in the list of user row "
                f"{self.users[row]} (expected distinct items); remove the repetition"
            )


@dataclass(frozen=True, eq=False)
class Scores:
    """Metric values of one split.

    Attributes:
        overall: `Recall@20` and so on to its value; None where it is not defined (no user to
            average over, 0 / 0, no hit possible).
        per_user: The values behind the averages of the per-user metrics, shape (n_evaluated,); NaN
            for users outside the metric's population.
        users: The evaluated users' rows, shape (n_evaluated,), ascending.
        n_evaluated: Number of evaluated users, |E|.
        n_relevant: Those of them with at least one relevant item, |R|.
        n_without_list: Users with held-out rows but no list, whatever was done about them.
    """

    overall: dict[str, float | None]
    per_user: dict[str, Values]
    users: Index
    n_evaluated: int
    n_relevant: int
    n_without_list: int


def evaluate(
    lists: RankedLists,
    train: TrainSet,
    held_out: HeldOut,
    *,
    metrics: Sequence[Metric],
    cutoffs: Sequence[int],
    threshold: float = 0.0,
    missing_users: Literal["leave-out", "zero"] = "leave-out",
    topics: Topics | None = None,
    content: ItemVectors | None = None,
    masked: TrainSet | None = None,
) -> Scores:
    """Compute metric values of ranked lists on one split.

    Args:
        lists: One list per user.
        train: Training pairs: popularity, head and tail, number of candidate items.
        held_out: Validation or test rows.
        metrics: What to compute; see `mmbench.metrics.resolve`.
        cutoffs: List lengths k, each in [1, K].
        threshold: A held-out row is relevant from this rating on; the gain of nDCG is 2^(rating -
            threshold + 1) - 1.
        missing_users: Users with held-out rows but no list are left out of every average, or have
            an empty list, which scores 0 in every accuracy metric.
        topics: The items' topics, for the metrics that need them.
        content: The items' vectors, for the metrics that measure distances between items.
        masked: The pairs that no list could hold; None: the training pairs.

    Raises:
        UsageError: No or impossible cut-offs, or a metric's side data are missing.
        DataError: Lists or held-out rows have unknown users, or ratings that are not finite.
    """
    _check(lists, train, held_out, metrics, cutoffs, {"topics": topics, "content": content})
    n_rows = 1 + max(int(users.max(initial=-1)) for users in (lists.users, held_out.users))
    has_rows, has_list = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
    has_rows[held_out.users] = True
    has_list[lists.users] = True
    evaluated = np.flatnonzero(has_rows if missing_users == "zero" else has_rows & has_list)
    by_rank, relevant = _judge(lists, held_out, evaluated, n_rows, threshold)
    judged = Judged(evaluated, by_rank, relevant, train, topics, content, masked)
    in_population = {"relevant": judged.n_relevant > 0, "evaluated": np.ones(judged.n_users, bool)}

    overall: dict[str, float | None] = {}
    per_user: dict[str, Values] = {}
    for metric in metrics:
        for k in cutoffs:
            value = metric.compute(judged, k)
            if not isinstance(value, float):
                value = np.where(in_population[metric.population], value, np.nan)
                per_user[f"{metric.name}@{k}"] = value
                defined = value[~np.isnan(value)]
                value = float(defined.mean()) if defined.size else math.nan
            overall[f"{metric.name}@{k}"] = None if math.isnan(value) else value
    n_relevant = int(np.count_nonzero(judged.n_relevant))
    n_without_list = int(np.count_nonzero(has_rows & ~has_list))
    return Scores(overall, per_user, evaluated, judged.n_users, n_relevant, n_without_list)


def without_hits(scores: Scores, metrics: Sequence[Metric]) -> Scores:
    """Return the scores of lists that can't have a hit: metrics of hits have no value."""
    of_hits = {metric.name for metric in metrics if metric.of_hits}
    overall = {
        key: None if key.rpartition("@")[0] in of_hits else value
        for key, value in scores.overall.items()
    }
    per_user = {
        key: np.full(values.shape, np.nan) if key.rpartition("@")[0] in of_hits else values
        for key, values in scores.per_user.items()
    }
    return replace(scores, overall=overall, per_user=per_user)


def _check(
    lists: RankedLists,
    train: TrainSet,
    held_out: HeldOut,
    metrics: Sequence[Metric],
    cutoffs: Sequence[int],
    side: Mapping[Need, Topics | ItemVectors | None],
) -> None:
    """Refuse what would give a wrong number."""
    width = lists.items.shape[1]
    if not cutoffs or min(cutoffs) < 1 or max(cutoffs) > width:
        raise UsageError(
            f"cut-offs {list(cutoffs)}: expected one or more in [1, {width}], the length of the "
            "lists; choose smaller cut-offs or rank more items"
        )
    if lists.users.size and lists.users.max() >= train.n_users:
        raise DataError(
            f"ranked lists: user row {lists.users.max()} is unknown (expected rows below "
            f"{train.n_users}); only users of the training set can have a list"
        )
    if held_out.users.size and (held_out.users.min() < 0 or held_out.items.min() < 0):
        raise DataError("held-out rows: negative user or item rows (expected 0-based rows)")
    if not np.isfinite(held_out.ratings).all():
        raise DataError(
            "held-out rows: a rating is not finite (expected numbers); remove or repair these rows"
        )
    for metric in metrics:
        for need in metric.needs:
            required(side[need], need, metric.name)


def _judge(
    lists: RankedLists, held_out: HeldOut, users: Index, n_rows: int, threshold: float
) -> tuple[Index, Pairs]:
    """Lists by rank, (K, n), and relevant pairs of the evaluated users, ascending by user."""
    place = np.full(n_rows, -1)
    place[lists.users] = np.arange(lists.users.size)
    source = place[users]  # the user's row of `lists`, or -1
    listed = source >= 0
    by_rank = np.full((lists.items.shape[1], users.size), -1)
    by_rank[:, listed] = lists.items[source[listed]].T
    place[:] = -1
    place[users] = np.arange(users.size)
    position = place[held_out.users]
    kept = (position >= 0) & (held_out.ratings >= threshold)
    return by_rank, Pairs(position[kept], held_out.items[kept], held_out.ratings[kept] - threshold)


@dataclass(frozen=True, eq=False)
class Slice:
    """Some of the items, or some of the users.

    Attributes:
        family: What the slices of a family divide by, e.g. `popularity`.
        name: e.g. `head`.
        rule: Who belongs to it, in words.
        of: Whether `members` are items or users.
        members: Whether each row belongs to it, shape (n_items,) or (n_users,); rows behind do not.
    """

    family: str
    name: str
    rule: str
    of: Literal["items", "users"]
    members: Mask


@dataclass(frozen=True, eq=False)
class SliceScores:
    """Metric values of one slice of one split.

    Attributes:
        slice: Which one.
        n_rows: Held-out rows in it.
        scores: The metrics on these rows.
    """

    slice: Slice
    n_rows: int
    scores: Scores

    def as_json(self) -> dict[str, Any]:
        """Plain values, counts beside metrics."""
        return {
            "family": self.slice.family,
            "slice": self.slice.name,
            "rule": self.slice.rule,
            self.slice.of: int(self.slice.members.sum()),
            "rows": self.n_rows,
            "users_evaluated": self.scores.n_evaluated,
            "users_with_relevant": self.scores.n_relevant,
            "metrics": self.scores.overall,
        }


def make_slices(
    train: TrainSet, n_items: int, n_users: int, present: Mapping[str, Mask] | None = None
) -> list[Slice]:
    """The slices of a dataset; those without members are left out.

    Args:
        train: Training pairs: popularity and activity.
        n_items: Number of item rows, those outside training included.
        n_users: Number of user rows, likewise.
        present: Modality to which items have a vector of their own, shape (n_items,).
    """
    popularity = np.zeros(n_items, np.int64)
    popularity[: train.n_items] = train.popularity
    activity = np.zeros(n_users, np.int64)
    activity[: train.n_users] = train.user_degree
    found = [*_by_popularity(popularity), *_by_activity(activity)]
    found += [
        Slice("items", "warm", "items that occur in training", "items", popularity > 0),
        Slice("items", "cold", "items that do not occur in training", "items", popularity == 0),
    ]
    for modality, mask in (present or {}).items():
        own = f"items that have a {modality} vector of their own"
        found += [
            Slice(modality, "with", own, "items", mask),
            Slice(modality, "without", f"items that have no {modality} vector", "items", ~mask),
        ]
    return [one for one in found if one.members.any()]


def score_slices(
    slices: Sequence[Slice], held_out: HeldOut, score: Callable[[HeldOut], Scores]
) -> list[SliceScores]:
    """The metrics on each slice's held-out rows.

    Args:
        slices: What to look at.
        held_out: Validation or test rows.
        score: Held-out rows to the metrics of the lists, which stay the same.
    """
    found = []
    for one in slices:
        rows = held_out.items if one.of == "items" else held_out.users
        kept = np.append(one.members, False)[np.minimum(rows, one.members.size)]
        part = held_out.take(kept)
        found.append(SliceScores(one, part.users.size, score(part)))
    return found


def _by_popularity(popularity: Index) -> list[Slice]:
    """Trained items that share half of the interactions, the next up to 80 %, and the rest.

    Head and mid together are the head of APLT and the other popularity metrics, so the tail is
    theirs.
    """
    order = np.argsort(-popularity, kind="stable")
    # Interactions of the more popular items.
    before = np.cumsum(popularity[order]) - popularity[order]
    total = int(popularity.sum())
    share = np.full(popularity.size, 2)
    for bucket, (numerator, denominator) in ((1, TAIL), (0, HEAD)):
        share[order[before * denominator < numerator * total]] = bucket
    rules = {
        "head": "the most popular items, with half of the training interactions",
        "mid": "the next ones, up to 80 %",
        "tail": "the rest",
    }
    return [
        Slice("popularity", name, rule, "items", (share == bucket) & (popularity > 0))
        for bucket, (name, rule) in enumerate(rules.items())
    ]


def _by_activity(activity: Index) -> list[Slice]:
    """Quarters of the users by training items, equal counts together; and users without any."""
    trained = np.sort(activity[activity > 0])
    found = []
    if trained.size:
        # The quartiles: the last count of each of the first three quarters.
        quarters = (np.arange(1, N_ACTIVITY) * trained.size + N_ACTIVITY - 1) // N_ACTIVITY
        quarter = np.searchsorted(trained[quarters - 1], activity)
        for number in range(N_ACTIVITY):
            members = (quarter == number) & (activity > 0)
            if members.any():
                low, high = activity[members].min(), activity[members].max()
                span, words = (
                    (f"{low}-{high}", f"{low} to {high}") if low < high else (f"{low}", f"{low}")
                )
                rule = f"users with {words} training items"
                found.append(Slice("activity", f"q{number + 1}: {span}", rule, "users", members))
    return [
        *found,
        Slice("activity", "none", "users without training items", "users", activity == 0),
    ]
