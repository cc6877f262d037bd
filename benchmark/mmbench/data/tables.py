"""Reading interaction tables: TSV, CSV, Parquet, JSON lines, gzip or not, with a header or without. Ids stay strings."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbench.errors import DataError, UsageError, unknown_name

SUFFIXES = (
    ".tsv",
    ".csv",
    ".parquet",
    ".jsonl",
    ".tsv.gz",
    ".csv.gz",
    ".jsonl.gz",
    ".txt",
    ".inter",
)
ROLES = ("user_id", "item_id", "rating", "timestamp")
NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "uid", "reviewerid", "user_id:token"),
    "item_id": (
        "item_id",
        "item",
        "itemid",
        "iid",
        "asin",
        "parent_asin",
        "movieid",
        "item_id:token",
    ),
    "rating": ("rating", "overall", "score", "stars", "rating:float"),
    "timestamp": ("timestamp", "time", "unixreviewtime", "date", "timestamp:float"),
}
"""Column names that are understood, lower case, for each role."""


@dataclass(frozen=True, eq=False)
class InteractionTable:
    """The rows of one file, in file order.

    Attributes:
        user_ids: Opaque strings, shape (n,), object.
        item_ids: Opaque strings, shape (n,), object.
        ratings: Shape (n,), float64; None when the file has none.
        timestamps: Shape (n,), float64; None when the file has none.
        note: How the columns were understood, when that was a guess; else empty.
    """

    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    ratings: NDArray[np.float64] | None
    timestamps: NDArray[np.float64] | None
    note: str = ""

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> InteractionTable:
        """Some of the rows, in the given order."""
        part = [
            None if column is None else column[rows] for column in (self.ratings, self.timestamps)
        ]
        return InteractionTable(
            self.user_ids[rows], self.item_ids[rows], part[0], part[1], self.note
        )


def read_interactions(path: Path, columns: Mapping[str, str] | None = None) -> InteractionTable:
    """Read one interaction file.

    Args:
        path: TSV, CSV, Parquet or JSON lines; the suffix says which (`.txt` and `.inter` are read
            as TSV).
        columns: Which column has which role, e.g. `{"user_id": "customer"}`; overrides the
            detection.

    Raises:
        DataError: The file is absent, unreadable or empty, a row lacks a user or an item, or a
            rating is no number.
    """
    try:
        frame, header = _read_frame(path, tuple((columns or {}).values()))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (UnicodeDecodeError, ValueError, pd.errors.ParserError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path}: not a readable {path.suffix.lstrip('.')} table: {reason}"
        ) from error
    if not len(frame):
        raise DataError(f"{path}: no rows; expected user, item[, rating[, timestamp]] per line")
    roles, note = _roles(path, frame, header, columns or {})
    first_line = 2 if header else 1
    ids = {
        role: _ids(path, frame[roles[role]], role, first_line) for role in ("user_id", "item_id")
    }
    numbers = {
        role: _numbers(path, frame[roles[role]], role, first_line) if role in roles else None
        for role in ("rating", "timestamp")
    }
    return InteractionTable(
        ids["user_id"], ids["item_id"], numbers["rating"], numbers["timestamp"], note
    )


def write_interactions(path: Path, table: InteractionTable) -> None:
    """Write rows as TSV with a header; ratings and timestamps in the shortest form that reads back equal.

    Raises:
        DataError: An id holds a tab or a line break.
    """
    frame = pd.DataFrame({"user_id": table.user_ids, "item_id": table.item_ids})
    for name, values in (("rating", table.ratings), ("timestamp", table.timestamps)):
        if values is not None:
            frame[name] = shortest(values)
    write_tsv(path, frame)


def write_tsv(path: Path, frame: pd.DataFrame, *, header: bool = True) -> None:
    """Write a table of texts and numbers as tab-separated lines, in one step; nothing is quoted.

    Raises:
        DataError: A text holds a tab or a line break, for which there is no place.
    """
    columns = [[str(value) for value in frame[name]] for name in frame.columns]
    for name, texts in zip(frame.columns, columns, strict=True):
        bad = next((text for text in texts if "\t" in text or "\n" in text or "\r" in text), None)
        if bad is not None:
            raise DataError(
                f"{path.name}: {name} {bad!r} holds a tab or a line break, which a line of text "
                "cannot hold"
            )
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        if header:
            file.write("\t".join(map(str, frame.columns)) + "\n")
        file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    partial.replace(path)


def shortest(values: NDArray[np.float64]) -> list[str]:
    """Numbers in the shortest form that reads back equal."""
    return [
        repr(int(value)) if float(value).is_integer() else repr(float(value)) for value in values
    ]


def read_json_lines(path: Path) -> pd.DataFrame:
    """A table of one JSON object a line, gzip or not; values as they are.

    Raises:
        ValueError: A line is no JSON.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()])


def find_table(folder: Path, stems: Sequence[str]) -> Path | None:
    """The file in `folder` whose name is one of the stems with a known suffix; None if there is none.

    Raises:
        DataError: Several files fit.
    """
    found = [
        folder / (stem + suffix)
        for stem in stems
        for suffix in SUFFIXES
        if (folder / (stem + suffix)).is_file()
    ]
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _read_frame(path: Path, given: Sequence[str]) -> tuple[pd.DataFrame, bool]:
    """The file as strings, and whether its first line was a header: it is one if it holds names that were given."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        frame = pd.read_parquet(path)
        return frame, True
    if name.endswith(".jsonl"):
        return read_json_lines(path), True
    comma = name.endswith(".csv")
    options: dict[str, Any] = {
        "sep": "," if comma else "\t",
        # A tab-separated line is split at tabs and nothing else; quotes are part of an id.
        "quoting": csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
        "dtype": str,
        "keep_default_na": False,
        "encoding": "utf-8-sig",
        "header": None,
        "skip_blank_lines": True,
    }
    try:
        frame = pd.read_csv(path, **options)
    except pd.errors.EmptyDataError:
        return pd.DataFrame(), False
    first = [str(value) for value in frame.iloc[0]]
    known = {name for names in NAMES.values() for name in names}
    header = sum(value.strip().casefold() in known for value in first) >= 2
    header = header or any(value.strip() in given for value in first)
    if not header and len(first) >= 3 and not _is_number(first[2]):
        header = True  # a rating that is no number: a header with names of its own
    if header:
        frame = frame.iloc[1:].reset_index(drop=True)
        frame.columns = pd.Index([value.strip() for value in first])
    return frame, header


def _roles(
    path: Path, frame: pd.DataFrame, header: bool, columns: Mapping[str, str]
) -> tuple[dict[str, object], str]:
    """Which column has which role, and a note when that was guessed."""
    names = [str(name) for name in frame.columns]
    for role in columns:
        if role not in ROLES:
            raise unknown_name("role in --columns", role, ROLES)
    if not header:
        for role, given in columns.items():
            raise DataError(
                f"{path}: no column {given!r} for {role}: its first line is no header; add one"
            )
        if not 2 <= len(names) <= 4:
            raise DataError(
                f"{path}: {len(names)} columns without a header (expected 2 to 4: user, item[, "
                "rating[, timestamp]])"
            )
        roles: dict[str, object] = dict(zip(ROLES, frame.columns, strict=False))
        return roles, f"no header; read as {', '.join(ROLES[: len(names)])}"
    roles, notes = {}, []
    for role, given in columns.items():
        if given not in names:
            raise DataError(f"{path}: no column {given!r} for {role}; it has: {', '.join(names)}")
        roles[role] = given
    twice = next((name for name in roles.values() if list(roles.values()).count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--columns: {twice} cannot be {' and '.join(r for r in roles if roles[r] == twice)} "
            "at once"
        )
    for role, accepted in NAMES.items():
        found = [
            name for name in names if name.casefold() in accepted and name not in columns.values()
        ]
        if found and role not in roles:
            roles[role] = found[0]
            if len(set(found)) > 1:
                notes.append(
                    f"{role}: read from {found[0]}, not from {', '.join(found[1:])}; --columns "
                    "decides otherwise"
                )
    repeated = next((name for name in roles.values() if names.count(str(name)) > 1), None)
    if repeated is not None:
        raise DataError(
            f"{path}: {names.count(str(repeated))} columns are named {repeated}; rename all but one"
        )
    missing = [role for role in ("user_id", "item_id") if role not in roles]
    if missing:
        raise DataError(
            f"{path}: no column is recognised as {' or '.join(missing)} among {', '.join(names)}; "
            "name it, e.g. --columns "
            f"{missing[0]}={next((name for name in names if name not in roles.values()), 'NAME')}"
        )
    return roles, "; ".join(notes)


def _ids(path: Path, column: pd.Series, role: str, first_line: int) -> NDArray[np.object_]:
    if pd.api.types.is_float_dtype(column):
        raise DataError(
            f"{path}: {role} is stored as a floating-point number, so ids may have lost digits; "
            "store strings"
        )
    bad = np.flatnonzero((column.isna() | (column.astype(str) == "")).to_numpy())
    if bad.size:
        raise DataError(f"{path}: line {bad[0] + first_line}: empty {role} ({bad.size} such rows)")
    return column.astype(str).to_numpy(dtype=object)


def _numbers(path: Path, column: pd.Series, role: str, first_line: int) -> NDArray[np.float64]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        repair = "write Unix seconds" if role == "timestamp" else "write numbers"
        raise DataError(
            f"{path}: line {bad[0] + first_line}: {role} {column.iloc[bad[0]]!r} is no finite "
            f"number ({bad.size} such rows); "
            f"{repair}, or give a column that is no {role} another name"
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
