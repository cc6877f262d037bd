"""Any tables, as a dataset: what each file is, what its columns mean, and its rows.

A file with a column of users and one of items is interactions, one with items alone a table of
items. Columns are recognised by the names that shops, logs and published data have; where several
fit, or none, the import stops and asks for `--columns`. A preview shows the interpretation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmbase.dataset import (
    FILE_SUFFIXES,
    PATH_COLUMNS,
    ROLES,
    checked_ids,
    columns_of,
    item_id_column,
)
from mmbase.layout import counted
from mmbase.tables import SUFFIXES, TAB_SUFFIXES, Table, open_table, strings
from mmbench.data.exchange.bundle import SAMPLE, WHOLE, Bundle
from mmbench.data.tables import InteractionTable, not_empty, read_interactions
from mmbench.data.times import day
from mmbench.errors import DataError, UsageError, unknown_name

ALIASES: Mapping[str, tuple[str, ...]] = {
    "user_id": (
        "customer_id", "customerid", "customer", "client_id", "visitor_id", "visitorid",
        "member_id", "reviewer_id", "reviewer", "account_id", "username", "session_id", "sessionid",
    ),
    "item_id": (
        "article_id", "articleid", "article", "product_id", "productid", "product", "sku",
        "movie_id", "movie", "video_id", "videoid", "video", "book_id", "isbn", "track_id",
        "song_id", "news_id", "business_id", "recipe_id", "clicked_item", "item_sku",
    ),
    "rating": ("stars_rating", "review_score", "star_rating", "score_rating"),
    "timestamp": (
        "t_dat", "ts", "datetime", "date_time", "event_time", "eventtime", "event_timestamp",
        "created_at", "purchase_date", "order_date", "review_date", "visit_time", "unix_time",
        "time_stamp",
    ),
}  # fmt: skip
"""Further names of columns, lower case, by role: an import shows its guesses, so it risks more."""

TEXTS: Mapping[str, tuple[str, ...]] = {
    "title": (
        "prod_name", "product_name", "product_title", "item_name", "item_title", "movie_title",
        "video_title", "track_name", "headline",
    ),
    "description": ("detail_desc", "product_description", "item_description", "overview", "plot"),
    "category": ("product_type_name", "product_category", "category_name"),
}  # fmt: skip
"""Names under which columns of items are written: `mmx extract` finds them unaided."""

MOVIELENS: Mapping[str, tuple[str, ...]] = {
    "ratings.dat": ROLES,
    "u.data": ROLES,
    "movies.dat": ("item_id", "title", "genres"),
    "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
    "u.item": (
        "item_id", "title", "release_date", "video_release_date", "imdb_url", "unknown", "Action",
        "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
        "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller",
        "War", "Western",
    ),
    "u.user": ("user_id", "age", "gender", "occupation", "zip_code"),
}  # fmt: skip
"""Headerless files whose columns their README documents."""


@dataclass(frozen=True)
class Understood:
    """The interpretation of a file.

    Attributes:
        path: The file.
        kind: `interactions`, `items`, or `left out`.
        rows: How many were read.
        dropped: Rows without a user or an item that were left out on request.
        columns: Our name, the file's, and the first value of each column that is read.
        unread: Columns that are not.
        notes: Guesses, one line each.
    """

    path: Path
    kind: str
    rows: int = 0
    dropped: int = 0
    columns: tuple[tuple[str, str, str], ...] = ()
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_tables(
    paths: Sequence[Path], columns: Mapping[str, str], *, drop_empty: bool = False
) -> tuple[Bundle, list[Understood]]:
    """Read tables of interactions, whose rows are joined, and tables of items.

    Args:
        paths: The files, in any order.
        columns: Column of each role where the names are not understood; places, from 1, where a
            file has no header. Each file takes those that it has.
        drop_empty: Whether rows without a user or an item are left out instead of refused.

    Raises:
        DataError: A file can't be read, or there are no interactions.
        UsageError: A column that no file has, or a role that no column or several have.
    """
    for role in columns:
        if role not in ROLES:
            raise unknown_name("role in --columns", role, ROLES)
    tables = [_open(path) for path in paths]
    _require_used(tables, columns)
    parts: list[InteractionTable] = []
    items: list[pd.DataFrame] = []
    told: list[Understood] = []
    kinds = [_kind(table, columns, alone=len(tables) == 1) for table in tables]
    for table, kind in zip(tables, kinds, strict=True):
        if kind == "interactions":
            part, one = _interactions(table, columns, drop_empty=drop_empty)
            parts.append(part)
        elif kind == "items":
            frame, one = _items(table, columns, drop_empty=drop_empty)
            items.append(frame)
        else:
            one = Understood(table.path, "left out", notes=("no column of items is recognised",))
        told.append(one)
    if not parts:
        raise DataError(
            f"{', '.join(path.name for path in paths)}: no interactions among them (expected a "
            "table with users and items; name its columns: --columns user_id=NAME,item_id=NAME)"
        )
    whole = _joined(parts)
    catalogue = _one_row_each(pd.concat(items, ignore_index=True), told) if items else None
    return Bundle(paths[0].resolve().parent.name, {WHOLE: whole}, items=catalogue), told


def _open(path: Path) -> Table:
    known = path.name.lower().endswith((*SUFFIXES, *TAB_SUFFIXES))
    if path.suffix.lower() in (".json", ".xlsx", ".xls", ".ndjson"):
        fix = "save it as CSV" if "xls" in path.suffix.lower() else (
            "if it has one object per line, name it .jsonl"
        )  # fmt: skip
        raise DataError(f"{path}: not a table that can be read; {fix}")
    table = open_table(path, literal=not known)
    names = MOVIELENS.get(path.name.lower())
    if names is not None and len(names) == len(table.columns):
        return table.headerless(names)
    return table


def _require_used(tables: Sequence[Table], columns: Mapping[str, str]) -> None:
    """Refuse a name in --columns that no file has."""
    known = dict.fromkeys(name for table in tables for name in table.columns)
    for role, name in columns.items():
        if name not in known and not name.isdigit():
            raise unknown_name(f"column for {role} in any of the files", name, known)


def _column(table: Table, role: str, columns: Mapping[str, str]) -> str | None:
    """Return the column of a role: the one given, of a usual name, or the only likely one."""
    if columns.get(role) in table.columns:
        return columns[role]
    usual = columns_of(role, table.columns)
    if usual:
        return usual[0]
    likely = [name for name in table.columns if name.strip().casefold() in ALIASES[role]]
    if len(likely) > 1:
        raise UsageError(
            f"{table.path}: which column is {role}, {' or '.join(likely)}? --columns "
            f"{role}={likely[0]}, for instance"
        )
    return likely[0] if likely else None


def _has_places(columns: Mapping[str, str]) -> bool:
    return bool(columns) and all(name.isdigit() for name in columns.values())


def _kind(table: Table, columns: Mapping[str, str], *, alone: bool) -> str:
    user, item = (_column(table, role, columns) for role in ("user_id", "item_id"))
    if user and item:
        return "interactions"
    if user and not alone:
        return "left out"
    no_header = table.kind == "text" and any(name.isdigit() for name in table.columns)
    if user or (not item and (alone or no_header)):
        return "interactions"  # whose reader asks for the columns
    return "items"


def _interactions(
    table: Table, columns: Mapping[str, str], *, drop_empty: bool
) -> tuple[InteractionTable, Understood]:
    path = table.path
    if path.name.lower() in MOVIELENS:
        roles = {role: str(n) for n, role in enumerate(table.columns, 1) if role in ROLES}
    elif _has_places(columns):
        roles = dict(columns)
    else:  # what has a usual name is left to the reader, which notes others of the same meaning
        found = {role: _column(table, role, columns) for role in ROLES}
        roles = {
            role: name
            for role, name in found.items()
            if name and (name == columns.get(role) or name not in columns_of(role, table.columns))
        }
    read = read_interactions(path, roles, ask=True, drop_empty=drop_empty)
    taken = set(read.columns.values())
    places = {f"column {place}" for place in range(1, len(table.columns) + 1)}
    unread = tuple(() if taken <= places else (n for n in table.columns if n not in taken))
    notes = (read.note,) if read.note else ()
    numbers = read.take(np.arange(1)).numbers()
    first = {"user_id": [read.user_ids[0]], "item_id": [read.item_ids[0]], **numbers}
    ours = {"timestamp": "position"} if read.by_position else {}
    shown = tuple(
        (ours.get(role, role), name, first[role][0]) for role, name in read.columns.items()
    )
    one = Understood(path, "interactions", len(read), read.dropped, shown, unread, notes)
    return read, one


def _joined(parts: Sequence[InteractionTable]) -> InteractionTable:
    """Return the rows of all tables; ratings and times only if each has them."""
    if len(parts) == 1:
        return parts[0]
    for name in ("ratings", "timestamps"):
        having = [getattr(part, name) is not None for part in parts]
        if any(having) and not all(having):
            raise DataError(
                f"{name} are in {sum(having)} of {len(parts)} tables of interactions; import those "
                "with and those without apart"
            )
    if parts[0].timestamps is not None:
        plain = [not day(_last(part)) for part in parts]
        if any(plain) and not all(plain):
            example = f"{_last(parts[plain.index(True)]):g}"
            raise DataError(
                f"times are dates in some tables and plain numbers, such as {example}, in others; "
                "write them alike, or import one table alone"
            )
    scale = max(part.per_second for part in parts)
    rated, timed = parts[0].ratings is not None, parts[0].timestamps is not None
    return replace(
        parts[0],
        user_ids=np.concatenate([part.user_ids for part in parts]),
        item_ids=np.concatenate([part.item_ids for part in parts]),
        ratings=np.concatenate([part.ratings for part in parts]) if rated else None,
        timestamps=np.concatenate([part.ticks(scale) for part in parts]) if timed else None,
        per_second=scale,
    )


def _last(part: InteractionTable) -> float:
    assert part.timestamps is not None
    return int(part.timestamps.max()) / part.per_second


def _items(
    table: Table, columns: Mapping[str, str], *, drop_empty: bool
) -> tuple[pd.DataFrame, Understood]:
    """Return `item_id` and the texts of a table of items; cells are texts, or lists of texts."""
    notes = [*table.notes]
    column = _column(table, "item_id", columns) or item_id_column(table, notes)
    cells = table.read([column], ids=[column])[column]
    kept = not_empty(cells)
    dropped = int((~kept).sum()) if drop_empty else 0
    if dropped:
        cells = cells.filter(kept)
    ids = strings(checked_ids(table, column, cells, notes))
    others = [name for name in table.columns if name not in (column, "item_id")]
    values = table.values(others)
    written = {**_names_of_texts(others), **_names_of_paths(values)}
    frame, unread = {"item_id": ids}, []
    for name in others:
        texts = [_text(value) for value in values.pop(name)]
        if any(text is None for text in texts):
            unread.append(name)
            continue
        if dropped:
            texts = [text for text, keep in zip(texts, kept, strict=True) if keep]
        frame[written[name]] = np.fromiter(texts, object, len(texts))
    if unread:
        notes.append(f"{', '.join(unread)}: objects, which no table of texts holds")
    pairs = [("item_id", column), *((written[name], name) for name in others if name not in unread)]
    shown = tuple((ours, theirs, str(frame[ours][0])) for ours, theirs in pairs)
    one = Understood(table.path, "items", len(ids), dropped, shown, tuple(unread), tuple(notes))
    return pd.DataFrame(frame), one


def _names_of_texts(names: Sequence[str]) -> dict[str, str]:
    """Return what each column is written as: `title` for the only `prod_name`, say."""
    out = {name: name for name in names}
    lower = {name: name.strip().casefold() for name in names}
    for text, aliases in TEXTS.items():
        same = [name for name in names if lower[name] == text]
        likely = same or [name for name in names if lower[name] in aliases]
        if len(likely) == 1 and text not in names:
            out[likely[0]] = text
    return out


def _names_of_paths(values: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the only column that names pictures as `image`, and the only one of sounds as `audio`.

    Addresses are none: nothing fetches them.
    """
    out = {}
    for modality, usual in PATH_COLUMNS.items():
        if not values.keys().isdisjoint(usual):
            continue
        found = []
        for name, cells in values.items():
            texts = [cell for cell in cells[:SAMPLE] if isinstance(cell, str) and cell]
            paths = [one.lower().endswith(FILE_SUFFIXES[modality]) for one in texts]
            if 2 * sum(paths) > len(texts) and not any("://" in one for one in texts):
                found.append(name)
        if len(found) == 1:
            out[found[0]] = usual[0]
    return out


def _text(value: Any) -> Any:
    """Return a cell as text, or as a list of texts; None for an object."""
    if isinstance(value, list):
        texts = [_text(one) for one in value if one is not None]
        return None if any(not isinstance(one, str) for one in texts) else texts
    if isinstance(value, dict):
        return None
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _one_row_each(items: pd.DataFrame, told: list[Understood]) -> pd.DataFrame:
    """Return the first row of each item; a note counts the others."""
    repeated = items["item_id"].duplicated()
    n = int(repeated.sum())
    if n:
        at = next(place for place, one in enumerate(told) if one.kind == "items")
        example = items["item_id"][repeated].iloc[0]
        which = counted(n, "row is of an item that occurs", "rows are of items that occur")
        note = f"{which} earlier, e.g. {example!r}; the first counts"
        told[at] = replace(told[at], notes=(*told[at].notes, note))
    return items[~repeated].fillna("").reset_index(drop=True)


def summary(bundle: Bundle) -> str:
    """Return counts and the time span of a bundle in one line."""
    table = bundle.parts[WHOLE]
    users, items = (len(set(ids.tolist())) for ids in (table.user_ids, table.item_ids))
    whole = counted(len(table), "interaction")
    parts = [f"{whole} of {counted(users, 'user')} and {counted(items, 'item')}"]
    if table.ratings is not None:
        parts.append(f"ratings {table.ratings.min():g} to {table.ratings.max():g}")
    if table.timestamps is not None:
        first, last = (
            day(int(one) / table.per_second) or f"{int(one) / table.per_second:g}"
            for one in (table.timestamps.min(), table.timestamps.max())
        )
        parts.append(f"{'positions ' * table.by_position}{first} to {last}")
    if bundle.items is not None:
        known = set(bundle.items["item_id"])
        met = len(known & set(table.item_ids.tolist()))
        parts.append(
            f"{counted(len(known), 'item')} with texts, {met:,} of them in the interactions"
        )
    return "; ".join(parts)
