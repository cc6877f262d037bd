"""Interactions as a source of texts: one row for each pair of user and item."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mmbase.catalogue.items import Items, fixed_length
from mmbase.choices import recall_column
from mmbase.dataset import (
    checked_ids,
    columns_of,
    find_table,
    inside,
    item_id_column,
    refuse_repeated_header,
)
from mmbase.layout import counted
from mmbase.tables import Column, Table, open_table
from mmstore.ids import Pairs
from mmx.errors import DataError, UsageError

KINDS = ("interactions", "items")  # tables whose columns may have been named before
TABLES = ("reviews", "interactions")
TEXT_COLUMNS = ("title", "summary", "reviewtext", "review_text", "review", "body", "text")


@dataclass(frozen=True)
class Interactions(Items):
    """Pairs of a user and an item, in the order of their table; `ids` are the items.

    Attributes:
        users: User ids, an Arrow string array of length n.
    """

    users: Column = field(kw_only=True)

    def keys(self) -> dict[str, Any]:
        """Return the columns that identify a row, by their names in a feature set."""
        return {"ids": Pairs(fixed_length(self.users), self.id_array())}

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some of the interactions, shape (k,), in that order."""
        return replace(super().take(rows), users=self.users.take(rows))

    def name_of(self, row: int) -> str:
        """Return what a message calls the row."""
        return f"{self.users[row].as_py()} on {super().name_of(row)}"


def load_interactions(
    root: Path,
    *,
    items_file: str | None = None,
    id_column: str | None = None,
    user_column: str | None = None,
    limit: int | None = None,
) -> Interactions:
    """Read the interactions of the dataset folder `root`.

    Args:
        root: A folder with a table `reviews` or `interactions`.
        items_file: The table's name inside `root`, if it has another one.
        id_column: The column of items; None looks for the usual names.
        user_column: The column of users; None looks for the usual names.
        limit: Keep only that many rows from the top.

    Raises:
        DataError: No table, no column of users or items, an empty id, or a pair that occurs twice
            (both lines are named).
        UsageError: A file or column that does not exist.
    """
    if items_file:
        path: Path | None = root / items_file
    else:
        path = next(filter(None, (find_table(root, (stem,)) for stem in TABLES)), None)
    if path is None or not path.exists():
        wanted = items_file or "reviews.tsv or interactions.tsv"
        raise DataError(
            f"{root}: no table of interactions (expected {wanted}); name one with --items-file"
        )
    if not inside(root, path):
        raise UsageError(f"--items-file {items_file}: outside of the dataset folder {root}")
    table = open_table(path)
    notes: list[str] = []
    item = id_column or _role_column(root, table, "item_id", notes) or item_id_column(table, notes)
    user = user_column or _role_column(root, table, "user_id", notes)
    if user is None:
        raise DataError(
            f"{path}: no column of users (expected user_id; got {', '.join(table.columns)}); name "
            "it with --user-column"
        )
    notes.append(
        f"{path.name}: a vector of each text, those of validation and test interactions too; a "
        "model must not see these"
    )
    notes += table.notes
    cells = table.read([item, user], ids=[item, user])
    refuse_repeated_header(table, cells)
    ids, users = (checked_ids(table, column, cells[column], notes) for column in (item, user))
    found = Interactions(root, ids, table, tuple(notes), users=users)
    _refuse_repetition(found, table)
    if limit is None:
        return found
    return replace(found, ids=ids.slice(0, limit), users=users.slice(0, limit), limited=True)


def _role_column(root: Path, table: Table, role: str, notes: list[str]) -> str | None:
    """Return the column of that role named before, else the first by its name.

    Where there are several of these, a note says which is read.
    """
    if (known := recall_column(root, KINDS, role, table.columns, notes)) is not None:
        return known
    found = columns_of(role, table.columns)
    if len(found) > 1:
        notes.append(f"{role}: read from {found[0]}, not from {', '.join(found[1:])}")
    return found[0] if found else None


def _refuse_repetition(found: Interactions, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    def codes(column: Column) -> NDArray[np.int64]:
        indices = pc.dictionary_encode(column.combine_chunks()).indices
        return np.asarray(pc.cast(indices, pa.int64()))

    items = codes(found.ids)
    pairs = codes(found.users) * (int(items.max()) + 1) + items
    in_order = np.sort(pairs)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not twice.size:
        return
    rows = np.flatnonzero(pairs == twice[0])[:2].tolist()
    first, second = table.lines(rows)
    more = f", and {counted(twice.size - 1, 'further repetition')}" if twice.size > 1 else ""
    raise DataError(
        f"{table.path}: {found.name_of(rows[0])} occurs twice (lines {first} and {second}){more}; "
        "keep one row per user and item"
    )
