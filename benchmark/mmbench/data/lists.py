"""Ranked lists made anywhere else, read and joined to a dataset by id."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbench.data.dataset import Split
from mmbench.data.tables import read_json_lines
from mmbench.errors import DataError


def read_lists(
    path: Path, split: Split, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Read a file of recommendations: user, item[, score or rank], with a header or without, TSV, CSV or Parquet; or JSON lines.

    JSON lines are what `mmbench recommend` writes: a user's `user_id` and `item_ids`, best first.

    The order of a user's rows is the ranking. Scores are not looked at, so that ties mean what the
    maker of the list meant; a header that names a `rank` column sorts by it, ascending.

    Args:
        path: The file; `.gz` is understood.
        split: The dataset whose ids the lists use.
        longest: Keep this many items per user, the longest cut-off.

    Returns:
        Users with a list, shape (n,); their items, shape (n, longest), -1 behind the end of a
        shorter list; notes.

    Raises:
        DataError: Unreadable, an item twice in a user's list, no list at all, one of somebody
            unknown, or no known item.
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
            f"{strangers[0]!r}; "
            "were the lists made for another split, or with internal numbers instead of ids?"
        )
    catalogue = training.item_ids.tolist()
    items = pd.Index(catalogue, dtype=object).get_indexer(pd.Index(frame["item"]))
    unknown = frame["item"][items < 0]
    if len(unknown):
        names = pd.Index(unknown.unique())
        if len(unknown) == len(items):
            raise DataError(
                f"{path}: none of the {len(names):,} recommended items occurs in the data, e.g. "
                f"{names[0]!r} (there: "
                f"{catalogue[0]!r}); were the lists made with internal numbers instead of ids?"
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
                "of the rows is the ranking, "
                "not the scores; sort the file if it should be"
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
    """Columns user and item as strings, and rank where the file has one."""
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            frame = pd.read_parquet(path)
        elif name.endswith(".jsonl"):
            frame = read_json_lines(path)
            if "item_ids" in frame.columns:
                frame = (
                    frame.explode("item_ids")
                    .dropna(subset="item_ids")
                    .rename(columns={"item_ids": "item_id"})
                )
        else:
            comma = name.endswith(".csv")
            frame = pd.read_csv(
                path,
                sep="," if comma else "\t",
                header=None,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
            )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(
            f"{path}: not a readable table of lists: {str(error).splitlines()[0]}"
        ) from error
    if not name.endswith((".parquet", ".jsonl")):
        first = [str(value).casefold() for value in frame.iloc[0]]
        if (
            first[0] in ("user", "user_id", "userid")
            and len(first) > 1
            and first[1] in ("item", "item_id", "itemid")
        ):
            frame = frame.iloc[1:].reset_index(drop=True)
            frame.columns = pd.Index(first)
        else:
            frame.columns = pd.Index(
                ["user", "item", "score"][: len(first)] if 2 <= len(first) <= 3 else first
            )
    names = {"user_id": "user", "userid": "user", "item_id": "item", "itemid": "item"}
    frame = frame.rename(
        columns=lambda column: names.get(str(column).casefold(), str(column).casefold())
    )
    if not {"user", "item"} <= set(frame.columns):
        raise DataError(
            f"{path}: columns {', '.join(frame.columns)[:80]!r}; expected user, item[, score or "
            "rank], one row per user and item"
        )
    if not len(frame):
        raise DataError(f"{path}: no lists; expected user, item[, score or rank] per line")
    result = pd.DataFrame({"user": frame["user"].astype(str), "item": frame["item"].astype(str)})
    if "rank" in frame:
        result["rank"] = pd.to_numeric(frame["rank"], errors="coerce")
        if result["rank"].isna().any():
            raise DataError(
                f"{path}: row {int(result['rank'].isna().argmax()) + 1}: rank is no number"
            )
    elif "score" in frame:
        result["score"] = pd.to_numeric(frame["score"], errors="coerce")
    return result
