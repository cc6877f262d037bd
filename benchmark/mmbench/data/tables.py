"""A dataset's tables of interactions and of items. Ids stay strings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.choices import recall_column
from mmbase.dataset import (
    ROLES,
    checked_ids,
    find_table,
    item_id_column,
    open_interactions,
    refuse_repeated_header,
    require_one_reading,
    shared_id,
)
from mmbase.tables import Column, Table, open_table, strings
from mmbase.typed_tables import leaves
from mmbench.data.roles import roles_of
from mmbench.data.times import as_text, read_times
from mmbench.errors import DataError, UsageError
from mmbench.metrics.item_data import Topics

SEPARATOR = "|"
"""Between several categories of one item in a text table; Parquet and JSON lines may have lists."""

SEQUENCES = "sequences"
"""Key of `dataset.json`: the columns of items whose cells are tokens with blanks between them."""

UNSURE = "not sure"
"""How the note about an order that nothing confirms begins: `-q` does not hide it."""
_OTHER_WAY = "--columns user_id=2,item_id=1"
_LEAST_TIME = 1e8
"""Unix seconds of 1973: more than any rating, less than any time that is not made up."""


@dataclass(frozen=True, eq=False)
class InteractionTable:
    """The rows of one file, in file order; arrays of shape (n,).

    Attributes:
        user_ids: Opaque strings, object.
        item_ids: Opaque strings, object.
        ratings: Finite numbers; None where the file has none.
        timestamps: Ticks since 1970; None where the file has none.
        note: How the columns were understood, where that was a guess; else empty.
        per_second: Ticks of a second, see `data.times`.
        columns: What each role was read from.
        dropped: Rows without a user or an item that were left out on request.
    """

    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    ratings: NDArray[np.float64] | None
    timestamps: NDArray[np.int64] | None
    note: str = ""
    per_second: int = 1
    columns: Mapping[str, str] = field(default_factory=dict)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> InteractionTable:
        """Return some of the rows, in the given order."""
        ratings = None if self.ratings is None else self.ratings[rows]
        timestamps = None if self.timestamps is None else self.timestamps[rows]
        ids = (self.user_ids[rows], self.item_ids[rows])
        return replace(
            self, user_ids=ids[0], item_ids=ids[1], ratings=ratings, timestamps=timestamps
        )

    def ticks(self, per_second: int) -> NDArray[np.int64]:
        """Return the times, of which there are, in ticks of which so many make a second."""
        assert self.timestamps is not None
        return self.timestamps * (per_second // self.per_second)

    def numbers(self) -> dict[str, list[str]]:
        """Return the ratings and timestamps there are as text: times as Unix seconds, exactly."""
        out = {}
        if self.ratings is not None:
            out["rating"] = _shortest(self.ratings)
        if self.timestamps is not None:
            out["timestamp"] = as_text(self.timestamps, self.per_second)
        return out


def _shortest(values: NDArray[np.float64]) -> list[str]:
    return [repr(int(value) if value.is_integer() else value) for value in values.tolist()]


def read_interactions(
    path: Path,
    columns: Mapping[str, str] | None = None,
    *,
    ask: bool = False,
    drop_empty: bool = False,
) -> InteractionTable:
    """Read one table of interactions, with a header or without.

    Args:
        path: TSV, CSV, Parquet or JSON lines; a name of no known format means TSV.
        columns: Which column has which role, e.g. `{"user_id": "customer"}`; overrides the
            detection. Without a header columns are called by their places, from `1`.
        ask: Whether to ask where nothing tells users from items. Parts of a split and files of
            other frameworks have users first; the note then begins with `UNSURE`.
        drop_empty: Whether rows without a user or an item are left out and counted.

    Raises:
        DataError: The file is absent, unreadable or empty, a row lacks a user or an item, a rating
            is no number, or a time none.
        UsageError: A role that does not exist, or two roles for one column; without a header, users
            that can't be told from items, or times from ratings.
    """
    columns = columns or {}
    table = open_interactions(path, columns.values())
    roles, note = roles_of(table, columns)
    ids, rating, time = (
        [roles[role] for role in ROLES[:2]],
        roles.get("rating"),
        roles.get("timestamp"),
    )
    cells = table.read(
        roles.values(), numbers=[rating] if rating else (), ids=ids, raw=[time] if time else ()
    )
    if rating:
        cells[rating] = _with_decimal_commas(table, rating, cells[rating])
    dropped = 0
    if drop_empty:
        kept = not_empty(cells[ids[0]]) & not_empty(cells[ids[1]])
        dropped = int((~kept).sum())
        if dropped:
            arrays = {name: isinstance(column, np.ndarray) for name, column in cells.items()}
            cells = {n: c[kept] if arrays[n] else c.filter(kept) for n, c in cells.items()}
    refuse_repeated_header(table, {name: cells[name] for name in ids})
    ratings = _finite(table, rating, cells[rating]) if rating else None
    if not table.header and not {"user_id", "item_id"} <= set(columns):
        two = cells[ids[0]], cells[ids[1]]
        if ask:
            require_one_reading(table, *two)
        elif shared_id(table, *two) is not None:
            note = f"{UNSURE}: {note}, where both hold the same ids; else {_OTHER_WAY}"
        if ask and "rating" not in columns and _are_times(ratings):
            raise UsageError(
                f"{path}: no header, and the third column holds times and no ratings; say so: "
                "--columns user_id=1,item_id=2,timestamp=3, or rating=3"
            )
    notes = [*([note] if note else []), *table.notes]
    users, items = (strings(checked_ids(table, name, cells[name], notes)) for name in ids)
    times = read_times(table, time, cells[time]) if time else None
    if times and times.note:
        notes.append(f"timestamp: {times.note}")
    ticks, per_second = (times.ticks, times.per_second) if times else (None, 1)
    read_from = {
        role: roles[role] if table.header else f"column {table.columns.index(roles[role]) + 1}"
        for role in ROLES
        if role in roles
    }
    return InteractionTable(
        users, items, ratings, ticks, "; ".join(notes), per_second, read_from, dropped
    )


def not_empty(ids: Column) -> NDArray[np.bool_]:
    """Return which cells of a column of ids are neither empty nor blank, shape (n,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stripped = pc.ascii_trim_whitespace(ids.cast(pa.string(), safe=False))
    return np.asarray(pc.greater(pc.binary_length(stripped), 0))


def _are_times(ratings: NDArray[np.float64] | None) -> bool:
    return ratings is not None and bool(ratings.min() > _LEAST_TIME)


def _with_decimal_commas(
    table: Table, name: str, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ratings, `4,5` of a table of semicolons among them."""
    if table.delimiter != ";" or np.isfinite(values).all():
        return values
    texts = pd.Series(strings(table.read([name])[name]).tolist(), dtype=object)
    # With three digits behind it the comma may as well group thousands.
    if not texts.str.fullmatch(r"\s*(-?\d+(,\d{1,2})?)?\s*").all():
        return values
    numbers = texts.str.replace(",", ".").replace(r"^\s*$", "nan", regex=True)
    return np.asarray(numbers.astype(float), np.float64)


def _finite(table: Table, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        cell = table.values([name])[name][bad[0]]
        raise DataError(
            f"{table.where(int(bad[0]))}: rating {cell!r} is no finite number ({bad.size} such "
            "rows); write numbers, or give a column that is no rating another name"
        )
    return values


def write_interactions(path: Path, table: InteractionTable) -> None:
    """Write rows as TSV with a header; a DataError where an id holds a tab or a line break."""
    ids = {"user_id": table.user_ids, "item_id": table.item_ids}
    write_tsv(path, pd.DataFrame({**ids, **table.numbers()}))


def write_tsv(
    path: Path, frame: pd.DataFrame, *, header: bool = True, quoted: bool = False
) -> None:
    """Write a table as tab-separated lines, all of it or nothing.

    Args:
        path: The file.
        frame: Texts and numbers.
        header: Whether the names of the columns come first.
        quoted: Whether texts that begin with a quotation mark are quoted, for a reader that would
            take them for quoted ones.

    Raises:
        DataError: A text holds a tab or a line break.
    """
    columns = [[str(value) for value in frame[name]] for name in frame.columns]
    for name, texts in zip(frame.columns, columns, strict=True):
        bad = next((text for text in texts if not {"\t", "\n", "\r"}.isdisjoint(text)), None)
        if bad is not None:
            raise DataError(
                f"{path.name}: {name} {bad!r} holds a tab or a line break, which a line of text "
                "cannot hold"
            )
    if quoted:
        columns = [[_quoted(text) for text in texts] for texts in columns]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        if header:
            file.write("\t".join(map(str, frame.columns)) + "\n")
        file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    partial.replace(path)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if text.startswith('"') else text


def read_item_ids(
    data: Path, id_column: str | None = None, notes: list[str] | None = None
) -> list[str]:
    """Return the ids in a dataset's `items.*`, in file order; none where there is no such table.

    Args:
        data: The dataset folder.
        id_column: What the interactions call their column of item ids; it is read where the table
            has it, else a column of the usual names.
        notes: Gets what was found out about the table, one line each.

    Raises:
        DataError: The table can't be read, has no column of item ids, or an item has no id.
    """
    table = _items(data)
    if table is None:
        return []
    if notes is not None:
        notes += table.notes
    return _item_ids(table, id_column, notes)[0]


def read_items(data: Path, id_column: str | None = None) -> pd.DataFrame | None:
    """Return a dataset's `items.*` as texts, `item_id` first; None where there is no such table.

    Lists are joined by blanks, absent cells are empty, and bytes that are not UTF-8 become U+FFFD.
    Arguments and errors as for `read_item_ids`.
    """
    table = _items(data)
    if table is None:
        return None
    ids, column = _item_ids(table, id_column)
    others = table.values(name for name in table.columns if name not in (column, "item_id"))
    texts = {
        name: [" ".join(filter(None, _names(cell, None))) for cell in cells]
        for name, cells in others.items()
    }
    return pd.DataFrame({"item_id": ids, **texts})


def read_categories(
    data: Path, column: str, item_ids: Sequence[str], id_column: str | None = None
) -> tuple[Topics, str]:
    """Return the categories of items, and a digest of them and their names.

    Args:
        data: The dataset folder.
        column: Column of `items.*`; several categories of an item are a list, or separated by `|`,
            or by blanks where `dataset.json` has the column among its `sequences`.
        item_ids: Id of each item row.
        id_column: As for `read_item_ids`.

    Raises:
        UsageError: There is no such column.
        DataError: There is no items table, or none of the items has a category.
    """
    table = _items(data)
    if table is None:
        raise DataError(
            f"{data}: no items.tsv, so there is no column {column!r}; leave --categories out"
        )
    ids, _ = _item_ids(table, id_column)
    cells = table.values([column])[column]
    separator = " " if column in _sequences(data) else SEPARATOR
    rows = {item: row for row, item in enumerate(item_ids)}
    pairs = [
        (rows[item], name)
        for item, cell in zip(ids, cells, strict=True)
        if item in rows
        for name in _names(cell, separator)
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


def _sequences(data: Path) -> list[str]:
    """Return the columns of `items.*` that an import knows to be sequences of tokens."""
    path = data / "dataset.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); repair or delete it") from error
    found = described.get(SEQUENCES, []) if isinstance(described, dict) else []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _items(data: Path) -> Table | None:
    path = find_table(data, ("items",))
    return None if path is None else open_table(path)


def _item_ids(
    table: Table, given: str | None, notes: list[str] | None = None
) -> tuple[list[str], str]:
    """Return the ids of a table of items, and their column: the given one if it is there.

    Else it is the one that was given before, of these items or of their interactions.
    """
    told: list[str] = [] if notes is None else notes
    known = given if given in table.columns else None
    if known is None:
        kinds = ("items", "interactions")
        known = recall_column(table.path.parent, kinds, "item_id", table.columns, told)
    column = known or item_id_column(table)
    cells = table.read([column], ids=[column])[column]
    return strings(checked_ids(table, column, cells, notes)).tolist(), column


def _names(cell: object, separator: str | None = SEPARATOR) -> Iterable[str]:
    """Return the categories of one cell; without a separator, a text is one category as it is."""
    if isinstance(cell, str):
        parts = [cell] if separator is None else map(str.strip, cell.split(separator))
        return [part for part in parts if part or separator is None]
    if isinstance(cell, list):
        return [
            x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in leaves(cell)
        ]
    if cell is None or cell != cell:  # NaN is how data frames write null
        return []
    return [json.dumps(cell) if isinstance(cell, bool) else str(cell)]
