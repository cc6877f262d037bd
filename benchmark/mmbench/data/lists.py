"""Ranked lists of other programs, read and joined to a dataset by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.tables import open_table, strings
from mmbench.data.dataset import Split
from mmbench.errors import DataError

_MEANINGS = {"user_id": "user", "userid": "user", "item_id": "item", "itemid": "item"}


def read_lists(
    path: Path, split: Split, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Read a table of recommendations: user, item[, score or rank], with a header or without.

    JSON lines may also be what `mmbench recommend` writes: `user_id` and `item_ids`, best first.
    The order of a user's rows is the ranking, or a column `rank`, ascending. Scores are not used,
    so that ties mean what the maker of the list meant.

    Args:
        path: The file; a name of no known format means TSV.
        split: The dataset whose ids the lists use.
        longest: Keep this many items per user, the longest cut-off.

    Returns:
        Users with a list, shape (n,); their items, shape (n, longest), -1 after the end of a
        shorter list; notes.

    Raises:
        DataError: Unreadable, no list, an item twice in a list, an unknown user, or no known item.
    """
    frame = _read(path)
    notes = []
    training = split.training
    trained_users = training.user_ids[: training.train.n_users]
    users = pd.Index(trained_users.astype(object)).get_indexer(frame["user"])
    if (users < 0).any():
        strangers = frame["user"][users < 0].unique()
        raise DataError(
            f"{path}: {len(strangers)} users do not occur in the training data, e.g. "
            f"{strangers[0]!r}; were the lists made for another split, or with internal numbers "
            "instead of ids?"
        )
    catalogue = training.item_ids.tolist()
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
            f"{len(names)} recommended items do not occur in the data, e.g. {names[0]!r}; they are "
            "never relevant"
        )
        items[items < 0] = len(catalogue) + names.get_indexer(unknown)
    order = (
        np.lexsort((frame["rank"], users)) if "rank" in frame else np.argsort(users, kind="stable")
    )
    users, items = users[order], items[order].astype(np.int64)
    listed, starts, counts = np.unique(users, return_index=True, return_counts=True)
    if "rank" not in frame and "score" in frame:
        scores = frame["score"].to_numpy()[order]
        rising = np.unique(users[1:][(users[1:] == users[:-1]) & (scores[1:] > scores[:-1])]).size
        if rising:
            notes.append(
                f"{rising:,} lists have a score that is larger than the one before it: the order "
                "of the rows is the ranking, not the scores; sort the file if it should be"
            )
    position = np.arange(users.size) - np.repeat(starts, counts)
    kept = position < longest
    repeated = np.flatnonzero(pd.DataFrame({"user": users, "item": items})[kept].duplicated())
    if repeated.size:
        row = frame.iloc[order[kept][repeated[0]]]
        raise DataError(
            f"{path}: item {row['item']!r} is twice in the list of user {row['user']!r}; remove "
            "one of them"
        )
    lists = np.full((listed.size, longest), -1, np.int64)
    lists[np.repeat(np.arange(listed.size), counts)[kept], position[kept]] = items[kept]
    short = int((counts < longest).sum())
    if short:
        notes.append(f"{short} lists are shorter than the longest cut-off, {longest}")
    return listed.astype(np.int64), lists, notes


def _read(path: Path) -> pd.DataFrame:
    """Return columns user and item as strings; and rank, or else score, as numbers."""
    table = open_table(path, literal=True)
    first = [_meaning(name) for name in table.columns[:2]]
    if table.kind == "text" and first != ["user", "item"]:
        n = len(table.columns)
        table = table.headerless(("user", "item", "score")[:n] if 2 <= n <= 3 else table.columns)
    found = {_meaning(name): name for name in table.columns}
    if table.kind == "json" and {"user", "item_ids"} <= set(found):
        cells = table.values([found["user"], found["item_ids"]])
        rows = zip(cells[found["user"]], cells[found["item_ids"]], strict=True)
        pairs = [(str(user), str(item)) for user, items in rows for item in _listed(items)]
        frame = pd.DataFrame(pairs, columns=["user", "item"], dtype=object)
    elif {"user", "item"} <= set(found):
        order = next((name for name in ("rank", "score") if name in found), None)
        numeric = [] if order is None else [found[order]]
        cells = table.read([found["user"], found["item"], *numeric], numeric)
        frame = pd.DataFrame({name: strings(cells[found[name]]) for name in ("user", "item")})
        if order is not None:
            frame[order] = cells[found[order]]
    else:
        raise DataError(
            f"{path}: columns {', '.join(table.columns)[:80]!r}; expected user, item[, score or "
            "rank], one row per user and item"
        )
    if not len(frame):
        raise DataError(f"{path}: no lists; expected user, item[, score or rank] per line")
    if "rank" in frame and frame["rank"].isna().any():
        raise DataError(f"{table.where(int(frame['rank'].isna().argmax()))}: rank is no number")
    return frame


def _listed(items: Any) -> list[Any]:
    return [one for one in (items if isinstance(items, list) else [items]) if one is not None]


def _meaning(name: str) -> str:
    return _MEANINGS.get(name.casefold(), name.casefold())
