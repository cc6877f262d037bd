"""Interactions as a source: what a user wrote on an item, one row for each pair of user and item."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import inside
from mmbase.tables import SUFFIXES, Column, open_table
from mmstore.ids import Pairs
from mmx.catalogue.items import Items, checked_ids, fixed_length, guess_id_column
from mmx.errors import DataError, UsageError

TABLES = ("reviews", "interactions")
USER_COLUMNS = ("user_id", "userID", "userId", "reviewerID", "user")
TEXT_COLUMNS = ("title", "summary", "reviewtext", "review_text", "review", "body", "text")


@dataclass(frozen=True)
class Interactions(Items):
    """Pairs of a user and an item, in the order of their table; `ids` are the items.

    Attributes:
        users: User ids, an Arrow string array of length n.
    """

    users: Column = field(kw_only=True)

    def keys(self) -> dict[str, Any]:
        """The columns that tell the rows apart, by their names in a feature set."""
        return {"ids": Pairs(fixed_length(self.users), self.id_array())}

    def name_of(self, row: int) -> str:
        """What a message calls the row."""
        return f"{self.users[row].as_py()} on {super().name_of(row)}"


def load_interactions(
    root: Path,
    *,
    items_file: str | None = None,
    id_column: str | None = None,
    user_column: str | None = None,
    limit: int | None = None,
) -> Interactions:
    """The interactions of the dataset folder `root`.

    Args:
        root: A folder with `reviews.tsv` or `interactions.tsv` (or .csv, .parquet, .jsonl, also
            .gz).
        items_file: The table's name inside `root`, if it has another one.
        id_column: The column of items; None looks for the usual names.
        user_column: The column of users; None looks for the usual names.
        limit: Keep only that many rows from the top.

    Raises:
        DataError: no table, no column of users or items, an empty id, a pair that occurs twice
            (both lines are named).
        UsageError: a file or column that was named and does not exist.
    """
    notes: list[str] = []
    names = (
        [items_file]
        if items_file
        else [f"{stem}{suffix}" for stem in TABLES for suffix in SUFFIXES]
    )
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        wanted = items_file or "reviews.tsv or interactions.tsv"
        raise DataError(
            f"{root}: no table of interactions (expected {wanted}); name one with --items-file"
        )
    if not inside(root, path):
        raise UsageError(f"--items-file {items_file}: outside of the dataset folder {root}")
    table = open_table(path)
    item_column = table.require(id_column) if id_column else guess_id_column(table, notes)
    user = (
        table.require(user_column)
        if user_column
        else next((c for c in USER_COLUMNS if c in table.columns), None)
    )
    if user is None:
        raise DataError(
            f"{path.name}: no column of users (expected {USER_COLUMNS[0]}; got "
            f"{', '.join(table.columns)}); "
            "name it with --user-column"
        )
    found = Interactions(
        root,
        checked_ids(table, item_column),
        table,
        (*notes, _leak_note(path.name)),
        users=checked_ids(table, user),
    )
    _refuse_repetition(found)
    return (
        found
        if limit is None
        else replace(
            found, ids=found.ids.slice(0, limit), users=found.users.slice(0, limit), limited=True
        )
    )


def _leak_note(name: str) -> str:
    return f"{name}: a vector of each text, those of validation and test interactions too; a model must not see these"


def _refuse_repetition(found: Interactions) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    def codes(column: Column) -> NDArray[np.int64]:
        indices = pc.dictionary_encode(column.combine_chunks()).indices
        return np.asarray(pc.cast(indices, pa.int64()))

    items = codes(found.ids)
    pairs = codes(found.users) * (int(items.max()) + 1) + items
    in_order = np.sort(pairs)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not twice.size or found.table is None:
        return
    rows = np.flatnonzero(pairs == twice[0])[:2].tolist()
    first, second = found.table.lines(rows)
    more = f", and {twice.size - 1:,} further repetitions" if twice.size > 1 else ""
    raise DataError(
        f"{found.table.path.name}: {found.name_of(rows[0])} occurs twice (lines {first} and "
        f"{second}){more}; "
        "keep one row per user and item"
    )
