"""Score parts of the held-out rows: by popularity, activity, cold items and modalities.

A slice is a set of items or of users. Its scores are those of the same ranked lists on the held-out
rows of these items or users alone: the other relevant items are neither hits nor missed. Metrics
that look at lists only (coverage, popularity, diversity) describe, for a slice of items, the lists
of the users who have a held-out row in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.evaluation.scoring import Scores
from mmbench.metrics.item_data import Mask

# Shares of the training interactions, as fractions: 0.8 is not a binary fraction.
HEAD, TAIL = (1, 2), (4, 5)
N_ACTIVITY = 4


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
