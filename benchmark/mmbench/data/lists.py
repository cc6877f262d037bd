"""Lists of recommendations that any program made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.dataset import NAMES
from mmbase.layout import counted
from mmbase.tables import Table, open_table, strings
from mmbench.errors import DataError, UsageError


def read_lists(
    path: Path, user_ids: NDArray[np.object_], item_ids: NDArray[np.object_], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Read a table of recommendations: user, item[, score or rank], with a header or without.

    JSON lines may also be what `mmbench recommend` writes: `user_id` and `item_ids`, best first.
    The order of a user's rows is the ranking, or a column `rank`, ascending. Scores, whatever their
    column is called, are not used, so that ties mean what the maker of the list meant.

    Args:
        path: The file; a name of no known format means TSV.
        user_ids: Id of each trained user row.
        item_ids: Id of each item row.
        longest: Keep this many items per user, the longest cut-off.

    Returns:
        Users with a list, shape (n,); their items, shape (n, longest), -1 after the end of a
        shorter list; notes, also about lists of unknown users, which are left out.

    Raises:
        DataError: Unreadable, no list, an item twice in a list, or no known user or item.
        UsageError: No header, and the columns look like item and user instead.
    """
    frame, score = _read_lists(path, user_ids, item_ids)
    notes = []
    users = pd.Index(user_ids.astype(object)).get_indexer(frame["user"])
    if (users < 0).any():
        strangers = frame["user"][users < 0].unique()
        known = counted(len(strangers), "user does", "users do")
        told = f"{known} not occur in the training data, e.g. {strangers[0]!r}"
        if (users < 0).all():
            raise DataError(
                f"{path}: {told} (there: {str(user_ids[0])!r}); were the lists made for another "
                "split, or with internal numbers instead of ids?"
            )
        notes.append(f"{told}; their lists are left out")
        frame, users = frame[users >= 0].reset_index(drop=True), users[users >= 0]
    catalogue = item_ids.tolist()
    items = pd.Index(catalogue, dtype=object).get_indexer(pd.Index(frame["item"]))
    unknown = frame["item"][items < 0]
    if len(unknown):
        names = pd.Index(unknown.unique())
        if len(unknown) == len(items):
            raise DataError(
                f"{path}: none of the {len(names):,} recommended items occurs in the data, e.g. "
                f"{names[0]!r} (there: {catalogue[0]!r}); were the lists made with internal "
                "numbers instead of ids?"
            )
        notes.append(
            f"{counted(len(names), 'recommended item does', 'recommended items do')} not occur in "
            f"the data, e.g. {names[0]!r}, and {'is' if len(names) == 1 else 'are'} never relevant"
        )
        items[items < 0] = len(catalogue) + names.get_indexer(unknown)
    order = (
        np.lexsort((frame["rank"], users)) if "rank" in frame else np.argsort(users, kind="stable")
    )
    users, items = users[order], items[order].astype(np.int64)
    listed, starts, counts = np.unique(users, return_index=True, return_counts=True)
    if "rank" in frame:
        ranks = frame["rank"].to_numpy()[order]
        tied = np.unique(users[1:][(users[1:] == users[:-1]) & (ranks[1:] == ranks[:-1])]).size
        if tied:
            notes.append(
                f"{counted(tied, 'list has', 'lists have')} a rank twice; such items are in the "
                "order of the rows"
            )
    if score is not None:
        scores = frame["score"].to_numpy()[order]
        rising = np.unique(users[1:][(users[1:] == users[:-1]) & (scores[1:] > scores[:-1])]).size
        if rising:
            notes.append(
                f"{counted(rising, 'list has', 'lists have')} a {score} that is larger than the "
                f"one before it: the order of the rows is the ranking, not the {score}; sort the "
                "file if it should be"
            )
    position = np.arange(users.size) - np.repeat(starts, counts)
    kept = position < longest
    repeated = np.flatnonzero(pd.DataFrame({"user": users, "item": items})[kept].duplicated())
    if repeated.size:
        row = frame.iloc[order[kept][repeated[0]]]
        raise DataError(
            f"{path}: item {row['item']!r} occurs twice in the list of user {row['user']!r}; "
            "remove one of them"
        )
    lists = np.full((listed.size, longest), -1, np.int64)
    lists[np.repeat(np.arange(listed.size), counts)[kept], position[kept]] = items[kept]
    short = int((counts < longest).sum())
    if short:
        notes.append(
            f"{counted(short, 'list is', 'lists are')} shorter than the longest cut-off, {longest}"
        )
    return listed.astype(np.int64), lists, notes


def _read_lists(
    path: Path, user_ids: NDArray[np.object_], item_ids: NDArray[np.object_]
) -> tuple[pd.DataFrame, str | None]:
    """Return columns user and item as strings, and rank, or else score, as numbers.

    The score is the first other column that holds numbers alone; its name comes second.
    """
    table = open_table(path, literal=True)
    if table.kind == "text" and not {"user", "item"} <= set(map(_meaning, table.columns)):
        n = len(table.columns)
        table = table.headerless(("user", "item", "score")[:n] if 2 <= n <= 3 else table.columns)
    found = {_meaning(name): name for name in reversed(table.columns)}
    score = None
    if table.kind == "json" and {"user", "item_ids"} <= set(found):
        cells = table.values([found["user"], found["item_ids"]])
        rows = zip(cells[found["user"]], cells[found["item_ids"]], strict=True)
        pairs = [(str(user), str(item)) for user, items in rows for item in _listed(items)]
        frame = pd.DataFrame(pairs, columns=["user", "item"], dtype=object)
    elif {"user", "item"} <= set(found):
        cells = table.read([found["user"], found["item"]])
        frame = pd.DataFrame({name: strings(cells[found[name]]) for name in ("user", "item")})
        if "rank" in found:
            frame["rank"] = table.read([found["rank"]], [found["rank"]])[found["rank"]]
        else:
            score = _add_score(table, frame, [found["user"], found["item"]])
    else:
        raise DataError(
            f"{path}: columns {', '.join(table.columns)[:80]!r}; expected user, item[, score or "
            "rank], one row per user and item"
        )
    if not len(frame):
        raise DataError(f"{path}: no lists; expected user, item[, score or rank] per line")
    if "rank" in frame and frame["rank"].isna().any():
        raise DataError(f"{table.where(int(frame['rank'].isna().argmax()))}: rank is no number")
    if not table.header:
        _refuse_reversed(path, frame, user_ids, item_ids)
    return frame, score


def _add_score(table: Table, frame: pd.DataFrame, taken: Sequence[str]) -> str | None:
    """Add the column `score`: the first other column of numbers; return its name."""
    others = [name for name in dict.fromkeys(table.columns) if name not in taken]
    for name in sorted(others, key=lambda name: _meaning(name) != "score"):
        numbers = table.read([name], [name])[name]
        if np.isfinite(numbers).all() and len(numbers):
            frame["score"] = numbers
            return name
    return None


def _refuse_reversed(
    path: Path, frame: pd.DataFrame, user_ids: NDArray[np.object_], item_ids: NDArray[np.object_]
) -> None:
    """Refuse rows without a header that could be lists of either column.

    Programs write a user's list together, so equal ids are adjacent in the column of users.
    """
    users, items = set(user_ids.tolist()), set(item_ids.tolist())
    together = [frame[name].ne(frame[name].shift()).sum() for name in ("user", "item")]
    distinct = [frame[name].nunique() for name in ("user", "item")]
    if together[0] == distinct[0] or together[1] > distinct[1]:
        return
    if set(frame["user"]) <= items and set(frame["item"]) <= users:
        raise UsageError(
            f"{path}: no header, and the lists look like those of the second column, whose ids "
            "are users as well; give it a header line: user_id, item_id or item_id, user_id"
        )


def _listed(items: Any) -> list[Any]:
    return [one for one in (items if isinstance(items, list) else [items]) if one is not None]


def _meaning(name: str) -> str:
    """Return `user`, `item` or `rank` for a column of a usual name, else the name in lower case."""
    folded = name.strip().casefold()
    if folded in NAMES["user_id"]:
        return "user"
    if folded in NAMES["item_id"]:
        return "item"
    return "rank" if folded == "position" else folded
