"""The protocol `next-item`: each held-out row is the one that follows its user's history."""

from __future__ import annotations

import numpy as np

from mmbase.layout import counted
from mmbench.core.interactions import Histories, Index
from mmbench.data.dataset import Interactions, TestData, TrainingData
from mmbench.errors import DataError
from mmbench.evaluation.scoring import Slice


def require_next_items(training: TrainingData, test: TestData) -> None:
    """Refuse held-out rows that are not what follows the history, or more than one of a user.

    Of rows without times the order of the file is that of the history, and nothing can be later.

    Raises:
        DataError: A user has several rows in a part, or a row is earlier than their history.
    """
    where = f"{training.name}, split {training.split}"
    cure = "--split leave-one-out makes such a split where rows have a time or a position"
    parts = (
        ("valid", training.later, training.histories),
        ("test", test.interactions, training.longer_histories),
    )
    for part, rows, before in parts:
        users, counts = np.unique(rows.users, return_counts=True)
        if (several := users[counts > 1]).size:
            raise DataError(
                f"{where}: {counted(several.size, 'user has', 'users have')} several rows in the "
                f"{part} part, {training.user_ids[several[0]]!r} for one; --protocol next-item "
                f"takes one row of each; {cure}"
            )
        if (early := users_with_later_rows(rows, before)).size:
            raise DataError(
                f"{where}: the row of {counted(early.size, 'user')} in the {part} part, "
                f"{training.user_ids[early[0]]!r} for one, is earlier than the end of their "
                f"history, which would hold what comes after it; {cure}"
            )


def users_with_later_rows(rows: Interactions, before: Histories) -> Index:
    """Return the users whose history goes on after their row, ascending; none without times."""
    if rows.times is None or before.times is None:
        return rows.users[:0]
    ends, starts = before.indptr[rows.users + 1], before.indptr[rows.users]
    # A user of validation without training rows has no history.
    last = np.append(before.times, 0)[np.maximum(ends - 1, 0)]
    return np.unique(rows.users[(ends > starts) & (last > rows.times)])


def target_slices(training: TrainingData, test: TestData) -> tuple[list[Slice], list[Slice]]:
    """Divide the users of validation, and those of test, by whether their item is a repeated one.

    Where a part has no repeated item, nothing is divided.
    """
    n_users, n_items = training.user_ids.size, training.item_ids.size

    def divide(rows: Interactions, before: Histories) -> list[Slice]:
        again = before.distinct(n_items).contains(rows.users, rows.items)
        if not again.any():
            return []
        found = []
        for name, which in (("repeated", again), ("new", ~again)):
            members = np.zeros(n_users, bool)
            members[rows.users[which]] = True
            rule = (
                f"users whose next item is {'in' if name == 'repeated' else 'not in'} their history"
            )
            found.append(Slice("target", name, rule, "users", members))
        return found

    return (
        divide(training.later, training.histories),
        divide(test.interactions, training.longer_histories),
    )
