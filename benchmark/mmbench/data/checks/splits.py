"""Checks of splits: rows in two parts, users of test alone, content that knows the test part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.checks.kit import ERROR, NOTE, Found
from mmbase.layout import counted
from mmbench.data.checks.logs import keys, splits_of
from mmbench.data.checks.reading import Interactions, Log

_FEW = 0.02
"""Share of a part's users without training rows that is only noted."""


def shared_rows(data: Interactions) -> Iterator[Found]:
    """Yield rows of one part that another has too.

    A user may come back to an item, so that in tables with times only rows of one time are shared.
    """
    for parts in splits_of(data).values():
        for a, b in (("train", "test"), ("train", "valid"), ("valid", "test")):
            if a not in parts or b not in parts:
                continue
            one, other = parts[a], parts[b]
            rows = _rows_in(other, one)
            if rows.size:
                share = rows.size / len(other)
                what = f"{counted(rows.size, 'row')} of {b} ({share:.1%}) are in {a} too"
                yield Found(
                    other.where, what, tuple(_told(other, row) for row in rows[:3].tolist())
                )


def _rows_in(ours: Log, theirs: Log) -> NDArray[np.int64]:
    """Return the rows of ours that theirs has too, by user and item and, if both have it, time."""
    users = pd.Index(theirs.users.names).get_indexer(pd.Index(ours.users.names))[ours.users.codes]
    items = pd.Index(theirs.items.names).get_indexer(pd.Index(ours.items.names))[ours.items.codes]
    pairs = users.astype(np.int64) * theirs.items.names.size + items
    known = keys(theirs)
    rows: NDArray[np.int64] = np.flatnonzero((users >= 0) & (items >= 0))
    rows = rows[np.isin(pairs[rows], known)]
    if ours.times is None or theirs.times is None or not rows.size:
        return rows
    # Few rows are left: their times are compared one by one, in seconds.
    there = np.flatnonzero(np.isin(known, pairs[rows]))
    seconds = theirs.times.ticks[there] / theirs.times.per_second
    seen = set(zip(known[there].tolist(), seconds.tolist(), strict=True))
    own = (ours.times.ticks[rows] / ours.times.per_second).tolist()
    same = [pair in seen for pair in zip(pairs[rows].tolist(), own, strict=True)]
    shared: NDArray[np.int64] = rows[np.array(same, bool)]
    return shared


def _told(log: Log, row: int) -> str:
    return f"{log.users.names[log.users.codes[row]]} {log.items.names[log.items.codes[row]]}"


def unseen_users(data: Interactions) -> Iterator[Found]:
    """Yield users of a part that training does not know; an error where it knows none."""
    for parts in splits_of(data).values():
        if "train" not in parts:
            continue
        known = set(parts["train"].users.names.tolist())
        for part in ("valid", "test"):
            if part not in parts:
                continue
            own = set(parts[part].users.names.tolist())
            lost = sorted(own - known)
            if lost:
                what = (
                    f"{len(lost):,} of {counted(len(own), 'user')} of {part} have no row in train"
                )
                grade = (
                    ERROR
                    if len(lost) == len(own)
                    else NOTE
                    if len(lost) <= _FEW * len(own)
                    else None
                )
                yield Found(parts[part].where, what, tuple(lost[:3]), severity=grade)


def _leak(words: str) -> Callable[[Interactions], Iterator[Found]]:
    """Return a check that tells of one kind of leak of `mmbench.data.leakage`."""

    def look(data: Interactions) -> Iterator[Found]:
        for one in data.leaks:
            if words in one.what and one.count:
                where, _, what = one.what.partition(": ")
                told = (one.example,) if one.example else ()
                yield Found(where, f"{one.count:,} {what}", told)

    return look


held_out_content = _leak("content of held-out pairs")
other_split = _leak("other splits its encoder was trained on")
