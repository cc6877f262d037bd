"""MicroLens: `*_pairs.csv` (or .tsv with a user's items in order) and `*_titles.csv`.

MicroLens-50k_pairs.csv     user, item, timestamp
MicroLens-50k_pairs.tsv     user, tab, items separated by spaces, oldest first; without a .csv
MicroLens-50k_titles.csv    item, title
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mmbase.dataset import checked_ids, columns_of
from mmbase.tables import open_table, strings
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle
from mmbench.data.tables import InteractionTable, read_interactions
from mmbench.errors import DataError

EXAMPLE = "MicroLens-50k_pairs.csv, MicroLens-50k_titles.csv"


def detect(folder: Path) -> bool:
    """Whether the folder looks like this layout."""
    return bool(list(folder.glob("*_pairs.csv")) or list(folder.glob("*_pairs.tsv")))


def read(folder: Path) -> Bundle:
    """Read a MicroLens folder."""
    notes: tuple[str, ...] = ()
    path = _one(folder, "*_pairs.csv")
    if path is not None:
        table = read_interactions(path)
    else:
        path = _one(folder, "*_pairs.tsv")
        if path is None:
            raise DataError(f"{folder}: expected one *_pairs.csv or *_pairs.tsv")
        table = _sequences(path)
        notes = (f"{path.name} has no times: the place in a user's list stands for the timestamp",)
    items, titles = None, _one(folder, "*_titles.csv")
    if titles is not None:
        listed = open_table(titles, literal=True)
        if not {"item", "title"} <= set(listed.columns):
            if len(listed.columns) != 2:
                n = len(listed.columns)
                raise DataError(f"{titles}: {n} columns (expected item and title)")
            named = any(columns_of("item_id", [name]) or name.casefold() == "title"
                        for name in listed.columns)  # fmt: skip
            listed = replace(listed, columns=("item", "title"), header=named)
        items = b.all_texts(listed)[["item", "title"]].rename(columns={"item": "item_id"})
    name = path.name.partition("_pairs")[0].casefold()
    return Bundle(name, {b.WHOLE: table}, items=items, notes=notes)


def _one(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _sequences(path: Path) -> InteractionTable:
    table = open_table(path, literal=True)
    if len(table.columns) != 2:
        raise DataError(f"{path}: expected a user, a tab and items separated by spaces per line")
    table = table.headerless(("user", "items"))
    columns = table.read(table.columns)
    users, lists = (
        strings(checked_ids(table, name, columns[name], longest=None)) for name in table.columns
    )
    items = [str(items).split() for items in lists]
    lengths = [len(own) for own in items]
    times = [place for n in lengths for place in range(1, n + 1)]
    listed = np.array([item for own in items for item in own], object)
    return InteractionTable(np.repeat(users, lengths), listed, None, np.array(times, np.int64))
