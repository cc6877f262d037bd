"""The items of a dataset folder: their ids, from its table or from the names of its files.

Ids are opaque strings. They are compared with the names of directory entries and never used as a
path, so an id such as `a/b` or `../x` has no file of its own unless a path column names one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mmbase.choices import recall_column
from mmbase.dataset import (
    FILE_SUFFIXES,
    FOLDERS,
    checked_ids,
    content_files,
    find_table,
    inside,
    is_hidden,
    is_table_file,
    item_id_column,
    stem,
)
from mmbase.errors import DataError, UsageError
from mmbase.layout import counted
from mmbase.tables import SUFFIXES, Column, Table, is_table, open_table

_NOT_ITEMS = (
    "interactions", "ratings", "reviews", "users", "train", "valid", "val", "validation", "test",
)  # fmt: skip
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")
_BLOCK = 65_536
_HARMLESS = 1 << 28  # bytes of ids in an array that may take more than its ids
_SPREAD = 20  # times the bytes of the ids that a larger array may take


@dataclass(frozen=True)
class Items:
    """The items of a dataset folder, in the order of its table.

    Attributes:
        root: The dataset folder.
        ids: Item ids, an Arrow string array of length n, unique and not empty.
        table: The table they came from; None when they are the stems of content files.
        notes: Guesses for the user to read, one line each.
        limited: Whether only the first items of the dataset were kept.
    """

    root: Path
    ids: Column
    table: Table | None
    notes: tuple[str, ...] = ()
    limited: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def id_array(self) -> NDArray[np.bytes_]:
        """Return the ids as a fixed-length UTF-8 array, shape (n,), dtype `S<longest>`."""
        return fixed_length(self.ids)

    def keys(self) -> dict[str, Any]:
        """Return the columns that identify a row, by their names in a feature set."""
        return {"ids": self.id_array()}

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some of the items, shape (k,), in that order."""
        return replace(self, ids=self.ids.take(rows))

    def name_of(self, row: int) -> str:
        """Return what a message calls the row."""
        return str(self.ids[row].as_py())


def load_items(
    root: Path,
    *,
    items_file: str | None = None,
    id_column: str | None = None,
    limit: int | None = None,
) -> Items:
    """Read the items of the dataset folder `root`.

    Args:
        root: A folder with a table `items`, or only with content files.
        items_file: The table's name inside `root`; None looks for `items.*`, then for the only
            table there is.
        id_column: The column of ids; None looks for the usual names.
        limit: Keep only that many items from the top.

    Raises:
        DataError: No folder, no items, an empty id, or an id that occurs twice (both lines are
            named).
        UsageError: `items_file` or `id_column` names something that does not exist.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such dataset folder; `mmx demo --out {root}` makes one to try things with"
        )
    notes: list[str] = []
    path = root / items_file if items_file else _find_table(root, notes)
    if path is None:
        items = _items_from_files(root)
    else:
        if items_file and not inside(root, path):
            raise UsageError(f"--items-file {items_file}: outside of the dataset folder {root}")
        table = open_table(path)
        kinds = ("items", "interactions")
        known = id_column or recall_column(root, kinds, "item_id", table.columns, notes)
        column = known or item_id_column(table, notes)
        notes += table.notes
        ids = checked_ids(table, column, table.read([column], ids=[column])[column], notes)
        _refuse_repetition(table, column, ids)
        items = Items(root, ids, table, tuple(notes))
    return items if limit is None else replace(items, ids=items.ids.slice(0, limit), limited=True)


def _find_table(root: Path, notes: list[str]) -> Path | None:
    """Return `items.*` of a folder, or else its only table that is not about interactions."""
    if (found := find_table(root, ("items",))) is not None:
        return found
    others = sorted(
        path for path in root.iterdir()
        if is_table(path) and is_table_file(path) and not is_hidden(path.name)
        and path.name.split(".")[0].lower() not in _NOT_ITEMS
    )  # fmt: skip
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(
            f"{root}: which table holds the items? Name one with --items-file (found {names})"
        )
    if others:
        notes.append(f"items: {others[0].name}, the only table there is (--items-file overrides)")
        return others[0]
    return None


def _refuse_repetition(table: Table, column: str, ids: Column) -> None:
    import pyarrow.compute as pc

    # Sorting takes a fifth of the memory of counting all ids.
    in_order = np.sort(fixed_length(ids))
    if not (in_order[1:] == in_order[:-1]).any():
        return
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    rows = pc.indices_nonzero(pc.equal(ids, twice[0])).to_pylist()
    first, second = table.lines(rows[:2])
    more = f", and {counted(len(twice) - 1, 'further id')}" if len(twice) > 1 else ""
    raise DataError(
        f"{table.path}: {column} {twice[0].as_py()!r} occurs twice (lines {first} and "
        f"{second}){more}; keep one row per item"
    )


def fixed_length(ids: Column) -> NDArray[np.bytes_]:
    """Return ids as a fixed-length UTF-8 array, shape (n,), dtype `S<longest>`.

    Raises:
        DataError: One id is so long that the array would take far more than the ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = pc.binary_length(ids)
    longest = pc.max(sizes).as_py() or 1
    if longest * len(ids) > max(_HARMLESS, _SPREAD * (pc.sum(sizes).as_py() or 0)):
        one = ids[pc.index(sizes, longest).as_py()].as_py()
        raise DataError(
            f"id {one[:20]!r}… has {longest:,} bytes, and {len(ids):,} ids are kept at the length "
            "of the longest; shorten it"
        )
    out = np.empty(len(ids), dtype=f"S{longest}")
    start = 0
    for chunk in ids.cast(pa.binary()).chunks:
        for offset in range(0, len(chunk), _BLOCK):  # blocks bound the memory of Python objects
            values = chunk.slice(offset, _BLOCK).to_pylist()
            out[start : start + len(values)] = values
            start += len(values)
    return out


def _items_from_files(root: Path) -> Items:
    """Name the items of a folder without a table after its content files, ids ascending."""
    import pyarrow as pa

    stems = {
        stem(name)
        for modality, suffixes in FILE_SUFFIXES.items()
        for folder in (FOLDERS[modality], "")
        for name in content_files(root / folder, suffixes)[0]
    }
    unread = _unread(root)
    if not stems:
        raise DataError(
            f"{root}: no items (expected items.tsv, or files in images/ or audio/ named after the "
            "items)" + "".join(f"; {one}" for one in unread)
        )
    try:
        ids = pa.chunked_array([pa.array(sorted(stems), pa.string())])
    except UnicodeEncodeError as error:
        raise DataError(
            f"{root}: a file name that is not valid UTF-8 ({error.object!r}); rename it"
        ) from error
    note = f"no items table: {counted(len(ids), 'item')} named after the content files"
    return Items(root, ids, None, (note, *unread))


def _unread(root: Path) -> list[str]:
    """Say which files that look like content or like the table of items are neither."""
    told: list[str] = []
    for modality, folder in FOLDERS.items():
        taken = set(content_files(root / folder, FILE_SUFFIXES[modality])[0])
        others = [
            entry.name
            for entry in (os.scandir(root / folder) if (root / folder).is_dir() else ())
            if entry.name not in taken
            and not is_hidden(entry.name)
            and entry.name.lower() not in _OF_THE_SYSTEM
            and not entry.is_dir()
        ]
        if others:
            shown = ", ".join(sorted(others)[:3]) + (", …" if len(others) > 3 else "")
            files = counted(len(others), f"file in {folder}/ is", f"files in {folder}/ are")
            told.append(
                f"{files} no items, by their extensions or as links to nothing ({shown}); a table "
                "can name files of any extension"
            )
    contents = tuple(suffix for suffixes in FILE_SUFFIXES.values() for suffix in suffixes)
    for path in sorted(root.glob("items.*")):
        if not (is_table_file(path) or path.name.lower().endswith(contents)):
            kind = "a folder" if path.is_dir() else "no table that is read"
            told.append(f"{path.name} is {kind} (expected a file, one of {', '.join(SUFFIXES)})")
    return told
