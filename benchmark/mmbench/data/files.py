"""The tables of a dataset folder: its splits, interactions and items.

The role of each column is as given, else as given before (`dataset.json`), else as its name says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mmbase import outputs
from mmbase.choices import FILE, recall_column, recall_columns, remember_columns
from mmbase.dataset import checked_ids, find_table, item_id_column
from mmbase.tables import SUFFIXES, TAB_SUFFIXES, Table, open_table, strings
from mmbase.typed_tables import leaves
from mmbench.data.defaults import default_split
from mmbench.data.splits import (
    PARTS,
    Rows,
    SplitTables,
    eighths_per_user,
    leave_k_out,
    random_per_user,
    too_short,
)
from mmbench.data.tables import InteractionTable, read_interactions
from mmbench.errors import DataError, ShapeError, ToolError, UsageError
from mmbench.metrics.item_data import Topics

RANDOM = re.compile(
    r"random(?::(?P<test>\d*\.?\d+),(?P<valid>\d*\.?\d+)(?:,(?P<seed>\d+))?)?", re.ASCII
)
DEFAULT_RANDOM = "random:0.2,0.2,42"
LEAVE_ONE_OUT = "leave-one-out"
SEPARATOR = "|"
"""Separates the categories of one item in a text table; Parquet and JSON lines may have lists."""

SEQUENCES = "sequences"
"""Key of `dataset.json`: the columns of items whose cells are tokens with blanks between them."""

KIND = "interactions"


# ------------------------------------------------------------------------------------------------
# splits


def read_split(
    data: Path, split: str | None = None, columns: Mapping[str, str] | None = None
) -> SplitTables:
    """Read the three parts of a dataset's split; arguments and errors as in `load_split`."""
    if not data.is_dir():
        raise DataError(
            f"{data}: no such dataset folder; `mmx demo --out {data}` makes one to try things on"
        )
    available = available_splits(data)
    notes: list[str] = []
    if split is None:
        # What has no validation part is there to be carved, and no choice.
        whole = {name: one for name, one in available.items() if any(one.glob("val*"))}
        split, note = default_split(data, whole or available, DEFAULT_RANDOM)
        notes += [note] if note else []
    random = RANDOM.fullmatch(split)
    if random and split not in available:
        test, valid = float(random["test"] or 0.2), float(random["valid"] or 0.2)
        made = make_random_split(data, test, valid, int(random["seed"] or 42), columns)
        return replace(made, notes=(*notes, *made.notes))
    if split == LEAVE_ONE_OUT and split not in available:
        made = make_leave_one_out_split(data, columns)
        return replace(made, notes=(*notes, *made.notes))
    if split not in available:
        choices = ", ".join(sorted(available)) or "none"
        raise UsageError(
            f"{data}: no split {split!r} (it has: {choices}); or let one be made: --split "
            f"{DEFAULT_RANDOM}"
        )
    paths = parts_of(available[split])
    if paths["valid"] is None and None not in (paths["train"], paths["test"]):
        raise DataError(
            f"{available[split]}: no file {' or '.join(PARTS['valid'])}; take a validation part "
            f"out of train: mmbench data split {data} --carve {split} --valid 0.1 --name carved"
        )
    read = read_parts(data, split, available[split], paths, columns)
    return replace(read, notes=tuple(dict.fromkeys((*notes, *read.notes))))


def parts_of(folder: Path) -> dict[str, Path | None]:
    """Return the file of each part of a split; None where there is none."""
    return {part: find_table(folder, stems) for part, stems in PARTS.items()}


def read_parts(
    data: Path,
    split: str,
    folder: Path,
    paths: Mapping[str, Path | None],
    columns: Mapping[str, str] | None = None,
) -> SplitTables:
    """Read these parts of the split in `folder`; arguments and errors as in `load_split`."""
    ours = (folder / "split.json").is_file()  # written with our names of columns
    parts = {}
    for part, path in paths.items():
        if path is None:
            raise DataError(
                f"{folder}: no file {' or '.join(PARTS[part])} (.tsv, .csv, .parquet, .jsonl); a "
                "split needs all three parts"
            )
        parts[part] = read_interactions(path) if ours else read_known(data, path, columns)
    notes = dict.fromkeys(table.note for table in parts.values() if table.note)
    return SplitTables(split, parts, tuple(notes))


def available_splits(data: Path) -> dict[str, Path]:
    """Return name and folder of each split: those under `splits/`, and `given` for the root's.

    Hidden folders and `*.partial`, left by a killed split, do not count.
    """
    found = {
        folder.name: folder
        for folder in sorted((data / "splits").glob("*"))
        if folder.suffix != ".partial"
        and not folder.name.startswith(".")
        and find_table(folder, PARTS["train"])
    }
    if find_table(data, PARTS["train"]) and find_table(data, PARTS["test"]):
        found.setdefault("given", data)
    return found


def make_random_split(
    data: Path,
    test_ratio: float,
    valid_ratio: float,
    seed: int,
    columns: Mapping[str, str] | None = None,
) -> SplitTables:
    """Split `interactions.*` of a dataset per user at random; see `splits.random_per_user`."""
    if not (0 < test_ratio < 1 and 0 < valid_ratio < 1):
        raise UsageError(
            f"--split random:{test_ratio:g},{valid_ratio:g}: both shares must lie between 0 and 1"
        )
    table = _interactions(data, columns)
    users = Rows.of(table).users
    part = random_per_user(users, test_ratio=test_ratio, valid_ratio=valid_ratio, seed=seed)
    return SplitTables.divided(f"random:{test_ratio:g},{valid_ratio:g},{seed}", table, part)


def make_eighths_split(data: Path, seed: int) -> SplitTables:
    """Split `interactions.*` of a dataset 8:1:1 per user; see `splits.eighths_per_user`."""
    table = _interactions(data, None)
    part = eighths_per_user(Rows.of(table).users, seed=seed)
    return SplitTables.divided(f"eighths:{seed}", table, part)


def make_leave_one_out_split(data: Path, columns: Mapping[str, str] | None = None) -> SplitTables:
    """Hold out the last row of each user for test, and the one before; see `splits.leave_k_out`."""
    table = _interactions(data, columns)
    rows = Rows.of(table)
    try:
        part = leave_k_out(rows)
    except ShapeError as error:
        raise DataError(f"{data}: --split {LEAVE_ONE_OUT}: {error}") from error
    made = SplitTables.divided(LEAVE_ONE_OUT, table, part)
    short = too_short(rows.users, part)
    return replace(made, notes=(*made.notes, short)) if short else made


def _interactions(data: Path, columns: Mapping[str, str] | None) -> InteractionTable:
    """Read a dataset's interactions."""
    path = find_table(data, ("interactions",))
    if path is None:
        here = sorted(
            one.name
            for one in data.iterdir()
            if one.name.endswith((*SUFFIXES, *TAB_SUFFIXES)) and one.is_file()
        )
        rename = f", or give it its name: here are {', '.join(here[:5])}" if here else ""
        raise DataError(
            f"{data}: neither a split (train, valid and test files) nor an interactions.tsv (or "
            ".csv, .parquet, .jsonl); `mmbench data import` makes such a folder of other tables "
            f"and layouts; or put one of them there{rename}"
        )
    return read_known(data, path, columns, ask=True)


# ------------------------------------------------------------------------------------------------
# interactions


def known_columns(data: Path, given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the given columns, and those of other roles that were given before."""
    return {**_before(data, given or {}), **(given or {})}


def read_known(
    data: Path, path: Path, given: Mapping[str, str] | None = None, *, ask: bool = False
) -> InteractionTable:
    """Read a table of a dataset, and remember the columns that are given; see `read_interactions`.

    A table without the columns named before, such as a part of a split that mmbench wrote, is read
    by its own names.

    Args:
        data: The dataset folder.
        path: The table.
        given: Which column has which role.
        ask: As in `read_interactions`.
    """
    given = given or {}
    before = _before(data, given)
    try:
        table = read_interactions(path, {**before, **given}, ask=ask)
    except ToolError as error:
        if not before:
            raise
        before = {}
        try:
            table = read_interactions(path, given, ask=ask)
        except ToolError:
            raise error from None
    if given:
        remember_columns(data, KIND, given)
    if before:
        told = ", ".join(f"{role}={name}" for role, name in before.items())
        note = f"columns as given before ({FILE}): {told}; --columns decides otherwise"
        table = replace(table, note="; ".join(filter(None, (table.note, note))))
    return table


def _before(data: Path, given: Mapping[str, str]) -> dict[str, str]:
    return {
        role: name
        for role, name in recall_columns(data, KIND).items()
        if role not in given and name not in given.values()
    }


# ------------------------------------------------------------------------------------------------
# items


def read_item_ids(
    data: Path, id_column: str | None = None, notes: list[str] | None = None
) -> list[str]:
    """Return the ids in a dataset's `items.*`, in file order; none where there is no such table.

    Args:
        data: The dataset folder.
        id_column: What the interactions call their column of item ids; it is read where the table
            has it, else a column of the usual names.
        notes: Gets notes on how the table was read, one line each.

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


# ------------------------------------------------------------------------------------------------
# new folders


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield `<name>.partial`, an empty folder that gets its name when all of it is written.

    Raises:
        DataError: Something of that name exists, or the folder cannot be written.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; choose another place, or remove it")
    with outputs.new_folder(path) as partial:
        yield partial
