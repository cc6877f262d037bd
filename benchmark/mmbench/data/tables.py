"""A dataset's tables of interactions and of items. Ids stay strings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.dataset import (
    NAMES,
    ROLES,
    checked_ids,
    columns_of,
    find_table,
    item_id_column,
    open_interactions,
    require_one_reading,
    shared_id,
)
from mmbase.tables import Table, open_table, strings
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics.item_data import Topics

SEPARATOR = "|"
"""Between several categories of one item in a text table; Parquet and JSON lines may have lists."""

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
        timestamps: Likewise.
        note: How the columns were understood, where that was a guess; else empty.
    """

    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    ratings: NDArray[np.float64] | None
    timestamps: NDArray[np.float64] | None
    note: str = ""

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> InteractionTable:
        """Return some of the rows, in the given order."""
        ratings, timestamps = (
            None if column is None else column[rows] for column in (self.ratings, self.timestamps)
        )
        return InteractionTable(
            self.user_ids[rows], self.item_ids[rows], ratings, timestamps, self.note
        )

    def numbers(self) -> dict[str, list[str]]:
        """Return the ratings and timestamps there are, as the shortest text of each number."""
        columns = {"rating": self.ratings, "timestamp": self.timestamps}
        return {name: _shortest(values) for name, values in columns.items() if values is not None}


def _shortest(values: NDArray[np.float64]) -> list[str]:
    return [repr(int(value) if value.is_integer() else value) for value in values.tolist()]


def read_interactions(
    path: Path, columns: Mapping[str, str] | None = None, *, ask: bool = False
) -> InteractionTable:
    """Read one table of interactions, with a header or without.

    Args:
        path: TSV, CSV, Parquet or JSON lines; a name of no known format means TSV.
        columns: Which column has which role, e.g. `{"user_id": "customer"}`; overrides the
            detection. Without a header columns are called by their places, from `1`.
        ask: Whether to ask where nothing tells users from items. Parts of a split and files of
            other frameworks have users first; the note then begins with `UNSURE`.

    Raises:
        DataError: The file is absent, unreadable or empty, a row lacks a user or an item, or a
            rating is no number.
        UsageError: A role that does not exist, or two roles for one column; without a header, users
            that can't be told from items, or times from ratings.
    """
    columns = columns or {}
    table = open_interactions(path, columns.values())
    roles, note = _roles(table, columns)
    numeric = [roles[role] for role in ("rating", "timestamp") if role in roles]
    cells = table.read(roles.values(), numbers=numeric)
    users, items = (
        strings(checked_ids(table, roles[role], cells[roles[role]]))
        for role in ("user_id", "item_id")
    )
    ratings, timestamps = (
        _finite(table, role, roles[role], cells[roles[role]]) if role in roles else None
        for role in ("rating", "timestamp")
    )
    if not table.header and not {"user_id", "item_id"} <= set(columns):
        two = cells[roles["user_id"]], cells[roles["item_id"]]
        if ask:
            require_one_reading(table, *two)
        elif shared_id(table, *two) is not None:
            note = f"{UNSURE}: {note}, where both hold the same ids; else {_OTHER_WAY}"
        if ask and "rating" not in columns and _are_times(ratings):
            raise UsageError(
                f"{path}: no header, and the third column holds times and no ratings; say so: "
                "--columns user_id=1,item_id=2,timestamp=3, or rating=3"
            )
    return InteractionTable(users, items, ratings, timestamps, note)


def _are_times(ratings: NDArray[np.float64] | None) -> bool:
    return ratings is not None and bool(ratings.min() > _LEAST_TIME)


def _roles(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the column of each role, and a note when that was guessed."""
    path, names = table.path, table.columns
    for role in given:
        if role not in ROLES:
            raise unknown_name("role in --columns", role, ROLES)
    if not table.header:
        return _places(table, given)
    for role, name in given.items():
        if name not in names:
            raise DataError(f"{path}: no column {name!r} for {role}; it has: {', '.join(names)}")
    roles, notes = dict(given), []
    taken = list(given.values())
    _refuse_shared(roles)
    for role in NAMES:
        found = [name for name in columns_of(role, names) if name not in taken]
        if found and role not in roles:
            roles[role] = found[0]
            if len(set(found)) > 1:
                notes.append(
                    f"{role}: read from {found[0]}, not from {', '.join(found[1:])}; --columns "
                    "decides otherwise"
                )
    missing = [role for role in ("user_id", "item_id") if role not in roles]
    if missing:
        free = next((name for name in names if name not in roles.values()), "NAME")
        raise DataError(
            f"{path}: no column is recognised as {' or '.join(missing)} among {', '.join(names)}; "
            f"name it, e.g. --columns {missing[0]}={free}"
        )
    return roles, "; ".join(notes)


def _places(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the column of each role of a table without a header: by its place, if given."""
    path, names = table.path, table.columns
    roles: dict[str, str] = {}
    for role, place in given.items():
        if not (place.isdigit() and 0 < int(place) <= len(names)):
            raise DataError(
                f"{path}: no column {place!r} for {role}: its first line is no header; add one, or "
                f"say the place, 1 to {len(names)}"
            )
        roles[role] = names[int(place) - 1]
    if not {"user_id", "item_id"} <= set(given) and not 2 <= len(names) <= 4:
        raise DataError(
            f"{path}: {len(names)} columns without a header (expected 2 to 4: user, item[, "
            "rating[, timestamp]])"
        )
    _refuse_shared(roles)
    # What is not given is where it usually is, as far as these places are free.
    for role in ROLES[:2]:
        free = (name for name in names[:2] if name not in roles.values())
        roles.setdefault(role, next(free, names[0]))
    if len(names) <= 4 and {roles[role] for role in ROLES[:2]} == set(names[:2]):
        for role, name in list(zip(ROLES, names, strict=False))[2:]:
            if name not in roles.values():
                roles.setdefault(role, name)
    _refuse_shared(roles)
    told = ", ".join(f"{names.index(roles[role]) + 1} {role}" for role in ROLES if role in roles)
    return roles, f"no header; read as {told}"


def _refuse_shared(roles: Mapping[str, str]) -> None:
    taken = list(roles.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--columns: {twice} cannot be {' and '.join(r for r in roles if roles[r] == twice)} "
            "at once"
        )


def _finite(table: Table, role: str, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        cell = table.values([name])[name][bad[0]]
        repair = "write Unix seconds" if role == "timestamp" else "write numbers"
        raise DataError(
            f"{table.where(int(bad[0]))}: {role} {cell!r} is no finite number ({bad.size} such "
            f"rows); {repair}, or give a column that is no {role} another name"
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


def read_item_ids(data: Path, id_column: str | None = None) -> list[str]:
    """Return the ids in a dataset's `items.*`, in file order; none where there is no such table.

    Args:
        data: The dataset folder.
        id_column: What the interactions call their column of item ids; it is read where the table
            has it, else a column of the usual names.

    Raises:
        DataError: The table can't be read, has no column of item ids, or an item has no id.
    """
    table = _items(data)
    return [] if table is None else _item_ids(table, id_column)[0]


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
    texts = {name: [" ".join(_names(c, None)) for c in cells] for name, cells in others.items()}
    return pd.DataFrame({"item_id": ids, **texts})


def read_categories(
    data: Path, column: str, item_ids: Sequence[str], id_column: str | None = None
) -> tuple[Topics, str]:
    """Return the categories of items, and a digest of them and their names.

    Args:
        data: The dataset folder.
        column: Column of `items.*`; several categories of an item are separated by `|` or a list.
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


def _items(data: Path) -> Table | None:
    path = find_table(data, ("items",))
    return None if path is None else open_table(path)


def _item_ids(table: Table, given: str | None) -> tuple[list[str], str]:
    """Return the ids of a table of items, and their column: the given one if it is there."""
    column = given if given in table.columns else item_id_column(table)
    return strings(checked_ids(table, column, table.read([column])[column])).tolist(), column


def _names(cell: object, separator: str | None = SEPARATOR) -> Iterable[str]:
    """Return the categories of one cell; without a separator, a text is one category as it is."""
    if isinstance(cell, str):
        parts = [cell] if separator is None else map(str.strip, cell.split(separator))
        return [part for part in parts if part or separator is None]
    if isinstance(cell, list):
        return [x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in cell]
    return [] if cell is None or cell != cell else [str(cell)]
