"""The items table of a dataset, as far as evaluation looks at it: which items there are, and a column of categories."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmbench.data.tables import NAMES, find_table, read_json_lines
from mmbench.errors import DataError, unknown_name
from mmbench.metrics.item_data import Topics

SEPARATOR = "|"
"""What separates several categories of one item in a text table; Parquet and JSON lines may have lists."""
ID_COLUMNS = ("item_id", "itemID", "itemId", "asin", "parent_asin", "id")
"""Columns of item ids, the first that is there: those of `mmx`, so that both tools mean the same items."""


def read_item_ids(data: Path, id_column: str | None = None) -> list[str]:
    """The ids in a dataset's `items.*`, in file order; none where there is no such table.

    Args:
        data: The dataset folder.
        id_column: What the column of item ids is called in the interactions: it is that of the
            items table, too, if the table has it. Otherwise, and for None, the usual names are
            looked for.

    Raises:
        DataError: The table can't be read, or has no column of item ids or an empty one.
    """
    return _read(data, None, id_column)[0]


def read_items(data: Path, id_column: str | None = None) -> pd.DataFrame | None:
    """All columns of a dataset's `items.*` as texts, the ids first as `item_id`; None where there is no such table.

    Lists are joined by blanks, absent cells are empty, and bytes that are not UTF-8 become U+FFFD.

    Args:
        data: The dataset folder.
        id_column: As for `read_item_ids`.

    Raises:
        DataError: The table can't be read, or has no column of item ids or an empty one.
    """
    path = find_table(data, ("items",))
    if path is None:
        return None
    frame, ids = _checked(path, None, id_column, whole=True)
    frame = frame[[ids, *(name for name in frame.columns if name not in (ids, "item_id"))]]
    return frame.rename(columns={ids: "item_id"}).map(lambda cell: " ".join(_names(cell, None)))


def read_categories(
    data: Path, column: str, item_ids: Sequence[str], id_column: str | None = None
) -> tuple[Topics, str]:
    """The categories of items as (row, number of the category) pairs, and a digest of them and their names.

    Args:
        data: The dataset folder.
        column: Column of `items.*`; several categories of an item are separated by `|`, or are a
            list.
        item_ids: Id of each item row.
        id_column: As for `read_item_ids`.

    Raises:
        UsageError: There is no such column.
        DataError: There is no items table, or none of the items has a category.
    """
    ids, cells = _read(data, column, id_column)
    if not ids:
        raise DataError(
            f"{data}: no items.tsv, so there is no column {column!r}; leave --categories out"
        )
    rows = {item: row for row, item in enumerate(item_ids)}
    pairs = [
        (rows[item], name)
        for item, cell in zip(ids, cells, strict=True)
        if item in rows
        for name in _names(cell)
    ]
    if not pairs:
        raise DataError(
            f"{data}: none of the items has a value in column {column!r} of the items table"
        )
    names, numbers = np.unique([name for _, name in pairs], return_inverse=True)
    topics = Topics.from_pairs(
        np.array([row for row, _ in pairs], np.int64), numbers.astype(np.int64)
    )
    state = hashlib.blake2b("\0".join(names.tolist()).encode(), digest_size=16)
    state.update(topics.items.astype("<i8").tobytes() + topics.topics.astype("<i8").tobytes())
    return topics, state.hexdigest()


def _read(data: Path, column: str | None, id_column: str | None) -> tuple[list[str], list[object]]:
    """Ids and the cells of one column."""
    path = find_table(data, ("items",))
    if path is None:
        return [], []
    frame, found = _checked(path, column, id_column)
    return frame[found].astype(str).tolist(), [] if column is None else frame[column].tolist()


def _checked(
    path: Path, column: str | None, given: str | None, *, whole: bool = False
) -> tuple[pd.DataFrame, str]:
    """The table, with the asked-for column and an id in every row, and the name of its column of ids."""
    try:
        frame = _frame(path, column, given, whole=whole)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise DataError(
            f"{path}: not a readable table of items: {str(error).splitlines()[0]}"
        ) from error
    id_column = _id_column(frame.columns, given)
    if id_column is None:
        raise DataError(
            f"{path}: no column of item ids (expected {ID_COLUMNS[0]}; got "
            f"{', '.join(map(str, frame.columns))}); "
            f"rename the column that holds them to {ID_COLUMNS[0]}"
        )
    if column is not None and column not in frame.columns:
        raise unknown_name(f"column of {path.name}", column, list(map(str, frame.columns)))
    ids = frame[id_column]
    if ids.isna().any() or (ids.astype(str) == "").any():
        raise DataError(f"{path}: an item has no id; remove or repair this row")
    return frame, id_column


def _frame(path: Path, column: str | None, given: str | None, *, whole: bool) -> pd.DataFrame:
    """The table with its ids and one column; text tables without the other columns' contents unless all are wanted."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return pd.read_parquet(path)
    if name.endswith(".jsonl"):
        return read_json_lines(path)
    comma = name.endswith(".csv")

    def read(columns: list[str] | None, rows: int | None) -> pd.DataFrame:
        return pd.read_csv(
            path,
            sep="," if comma else "\t",
            quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            # a title may hold bytes that are not UTF-8, and does not decide any number
            encoding_errors="replace",
            usecols=columns,
            nrows=rows,
        )

    if whole:
        return read(None, None)
    names = [str(one) for one in read(None, 0).columns]
    ids = _id_column(names, given)
    if ids is None or column not in (None, *names):
        return pd.DataFrame(columns=names)
    return read([one for one in names if one in (ids, column)], None)


def _id_column(columns: Iterable[object], given: str | None) -> str | None:
    """The column of item ids: the given one, those that `mmx` takes, in its order, or what interactions call them."""
    names = [str(name) for name in columns]
    if given in names:
        return given
    usual = next((name for name in ID_COLUMNS if name in names), None)
    guess = next((name for name in names if name.strip().casefold().endswith(("id", "asin"))), None)
    if guess is not None and guess.strip().casefold() in NAMES["user_id"]:
        guess = None
    return (
        usual
        or guess
        or next((name for name in names if name.strip().casefold() in NAMES["item_id"]), None)
    )


def _names(cell: object, separator: str | None = SEPARATOR) -> Iterable[str]:
    """The categories of one cell; without a separator a text is one, as it is."""
    if isinstance(cell, str):
        return (
            [cell]
            if separator is None
            else [part.strip() for part in cell.split(separator) if part.strip()]
        )
    if isinstance(cell, list | tuple | np.ndarray):
        return [
            one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in cell
        ]
    return [] if cell is None or cell != cell else [str(cell)]
