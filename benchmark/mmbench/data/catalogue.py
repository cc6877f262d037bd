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
from mmbench.metrics.side import Topics

SEPARATOR = "|"
"""What separates several categories of one item in a text table; Parquet and JSON lines may have lists."""


def read_item_ids(data: Path) -> list[str]:
    """The ids in a dataset's `items.*`, in file order; none where there is no such table.

    Raises:
        DataError: The table can't be read, or has no column of item ids or an empty one.
    """
    return _read(data, None)[0]


def read_items(data: Path) -> pd.DataFrame | None:
    """All columns of a dataset's `items.*` as texts, the ids first as `item_id`; None where there is no such table.

    Lists are joined by blanks, absent cells are empty, and bytes that are not UTF-8 become U+FFFD.

    Raises:
        DataError: The table can't be read, or has no column of item ids or an empty one.
    """
    path = find_table(data, ("items",))
    if path is None:
        return None
    frame, id_column = _checked(path, None, whole=True)
    frame = frame[[id_column, *(name for name in frame.columns if name != id_column)]]
    return frame.rename(columns={id_column: "item_id"}).map(lambda cell: " ".join(_names(cell, None)))


def read_categories(data: Path, column: str, item_ids: Sequence[str]) -> tuple[Topics, str]:
    """The categories of items as (row, number of the category) pairs, and a digest of them and their names.

    Args:
        data: The dataset folder.
        column: Column of `items.*`; several categories of an item are separated by `|`, or are a list.
        item_ids: Id of each item row.

    Raises:
        UsageError: There is no such column.
        DataError: There is no items table, or none of the items has a category.
    """
    ids, cells = _read(data, column)
    if not ids:
        raise DataError(f"{data}: no items.tsv, so there is no column {column!r}; leave --categories out")
    rows = {item: row for row, item in enumerate(item_ids)}
    pairs = [(rows[item], name) for item, cell in zip(ids, cells, strict=True) if item in rows for name in _names(cell)]
    if not pairs:
        raise DataError(f"{data}: none of the items has a value in column {column!r} of the items table")
    names, numbers = np.unique([name for _, name in pairs], return_inverse=True)
    topics = Topics.from_pairs(np.array([row for row, _ in pairs], np.int64), numbers.astype(np.int64))
    state = hashlib.blake2b("\0".join(names.tolist()).encode(), digest_size=16)
    state.update(topics.items.astype("<i8").tobytes() + topics.topics.astype("<i8").tobytes())
    return topics, state.hexdigest()


def _read(data: Path, column: str | None) -> tuple[list[str], list[object]]:
    """Ids and the cells of one column."""
    path = find_table(data, ("items",))
    if path is None:
        return [], []
    frame, id_column = _checked(path, column)
    return frame[id_column].astype(str).tolist(), [] if column is None else frame[column].tolist()


def _checked(path: Path, column: str | None, *, whole: bool = False) -> tuple[pd.DataFrame, str]:
    """The table, with the asked-for column and an id in every row, and the name of its column of ids."""
    try:
        frame = _frame(path, column, whole=whole)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a readable table of items: {str(error).splitlines()[0]}") from error
    id_column = next((name for name in frame.columns if _is_id(str(name))), None)
    if id_column is None:
        raise DataError(f"{path}: no column of item ids (expected item_id; got {', '.join(map(str, frame.columns))})")
    if column is not None and column not in frame.columns:
        raise unknown_name(f"column of {path.name}", column, list(map(str, frame.columns)))
    ids = frame[id_column]
    if ids.isna().any() or (ids.astype(str) == "").any():
        raise DataError(f"{path}: an item has no id; remove or repair this row")
    return frame, id_column


def _frame(path: Path, column: str | None, *, whole: bool) -> pd.DataFrame:
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
            encoding_errors="replace",  # a title may hold bytes that are not UTF-8, and does not decide any number
            usecols=columns,
            nrows=rows,
        )

    if whole:
        return read(None, None)
    names = [str(one) for one in read(None, 0).columns]
    wanted = [one for one in names if _is_id(one) or one == column]
    return read(wanted, None) if any(map(_is_id, wanted)) and column in (None, *wanted) else pd.DataFrame(columns=names)


def _is_id(name: str) -> bool:
    return name.strip().casefold() in (*NAMES["item_id"], "id")


def _names(cell: object, separator: str | None = SEPARATOR) -> Iterable[str]:
    """The categories of one cell; without a separator a text is one, as it is."""
    if isinstance(cell, str):
        return [cell] if separator is None else [part.strip() for part in cell.split(separator) if part.strip()]
    if isinstance(cell, list | tuple | np.ndarray):
        return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in cell]
    return [] if cell is None or cell != cell else [str(cell)]
