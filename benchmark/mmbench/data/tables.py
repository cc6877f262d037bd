"""Tables of interactions, read and written. Ids stay strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase import dialects
from mmbase.dataset import (
    NAMES,
    ROLES,
    checked_ids,
    columns_of,
    is_position,
    open_interactions,
    plausible_column,
    refuse_repeated_header,
    require_one_reading,
    shared_id,
)
from mmbase.tables import Column, Table, strings
from mmbench.data.times import as_text, read_times
from mmbench.errors import DataError, UsageError, unknown_name

UNSURE = "not sure"
"""First words of a note about an unconfirmed order of columns: `-q` does not hide it."""
_OTHER_WAY = "--columns user_id=2,item_id=1"
_LEAST_TIME = 1e8
"""Unix seconds of 1973: above any rating, below any real time."""

_LABELS = frozenset({
    "label", "labels", "label:float", "click", "clicked", "is_click", "is_clicked", "like", "liked",
    "is_like", "purchased", "is_purchased", "watch_ratio", "target", "feedback",
})  # fmt: skip
"""Columns, lower case, that may tell positives from negatives and are no rating."""


@dataclass(frozen=True, eq=False)
class InteractionTable:
    """The rows of one file, in file order; arrays of shape (n,).

    Attributes:
        user_ids: Opaque strings, object.
        item_ids: Opaque strings, object.
        ratings: Finite numbers; None where the file has none.
        timestamps: Ticks since 1970, or places in the users' sequences; None where the file has
            neither.
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

    @property
    def by_position(self) -> bool:
        """Whether the timestamps are places in the users' sequences, and no times."""
        return is_position(self.columns.get("timestamp", ""))

    def ticks(self, per_second: int) -> NDArray[np.int64]:
        """Return the times, which must exist, in ticks of 1/`per_second` seconds, shape (n,)."""
        assert self.timestamps is not None
        return self.timestamps * (per_second // self.per_second)

    def numbers(self) -> dict[str, list[str]]:
        """Return ratings and timestamps, if any, as text: times as exact Unix seconds."""
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
                f"{path}: no header, and the third column holds times, not ratings; name it: "
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


def read_ratings(table: Table, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the numbers that a table's column of ratings was read as, all finite.

    Raises:
        DataError: A cell is no number.
    """
    return _finite(table, name, _with_decimal_commas(table, name, values))


def not_empty(ids: Column) -> NDArray[np.bool_]:
    """Return whether each id is neither empty nor blank, shape (n,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stripped = pc.ascii_trim_whitespace(ids.cast(pa.string(), safe=False))
    return np.asarray(pc.greater(pc.binary_length(stripped), 0))


def _are_times(ratings: NDArray[np.float64] | None) -> bool:
    return ratings is not None and bool(ratings.min() > _LEAST_TIME)


def _with_decimal_commas(
    table: Table, name: str, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ratings; in tables separated by semicolons a comma may be the decimal mark."""
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
    frame = pd.DataFrame({**ids, **table.numbers()})
    write_tsv(path, frame.rename(columns={"timestamp": "position"} if table.by_position else {}))


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


def sorted_ids(ids: NDArray[np.object_]) -> list[str]:
    """Return the distinct ids, ascending: as numbers if all are canonical integers >= 0."""
    distinct = set(ids.tolist())
    if all(
        text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") for text in distinct
    ):
        return sorted(distinct, key=int)
    return sorted(distinct)


# ------------------------------------------------------------------------------------------------
# roles of columns


def roles_of(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the column of each role, and a note when that was guessed.

    Raises:
        DataError: No such column, or none of users or items.
        UsageError: A role that does not exist, or two roles for one column.
    """
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
    labels = [name for name in names if name.strip().casefold() in _LABELS]
    if labels and "rating" not in roles:
        notes.append(
            f"{labels[0]} is not read and every row counts as a positive; --columns "
            f"rating={labels[0]} reads it as the rating"
        )
    missing = [role for role in ("user_id", "item_id") if role not in roles]
    if missing:
        free = [name for name in names if name not in roles.values()]
        examples = {}
        for role in missing:
            examples[role] = plausible_column(role, free)
            free = [name for name in free if name != examples[role]]
        example = ",".join(f"{role}={name}" for role, name in examples.items())
        raise DataError(
            f"{path}: no column is recognised as {' or '.join(missing)} among {', '.join(names)}; "
            f"say which (it is remembered with the dataset), e.g. --columns {example}"
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
            f"rating[, timestamp]]){_cure(table)}"
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


def _cure(table: Table) -> str:
    """Return what to do about a table whose first line is one cell; empty for another."""
    if len(table.columns) > 1:
        return ""
    first = next(dialects.lines(table.path, table.encoding), b"")
    line = first.decode("utf-8", "replace").strip()
    if len(line.split()) > 1 and all(cell.isdigit() for cell in line.split()):
        what = "`mmbench data import FOLDER` reads a user and the user's items on each line"
        return f"; cells with blanks between them: {what}"
    return f"; delete its first line, {line[:40]!r}, if that is no row"


def _refuse_shared(roles: Mapping[str, str]) -> None:
    taken = list(roles.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--columns: {twice} cannot be {' and '.join(r for r in roles if roles[r] == twice)} "
            "at once"
        )
