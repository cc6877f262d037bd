"""The item of each row of a foreign matrix: from id lists, mappings of id and row, or a dataset.

Nothing is guessed from a row count that happens to match: a first line is a header because of its
name or because the caller says so, and a file with two possible readings is an error. Ids are
text and are kept as they are written.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbase.catalogue.items import load_items
from mmbase.dataset import (
    ITEM_ID_COLUMNS,
    NAMES,
    checked_ids,
    columns_of,
    open_interactions,
    require_one_reading,
)
from mmbase.layout import counted
from mmbase.tables import SUFFIXES, Table, is_table, open_table
from mmx.errors import DataError, ToolError, UsageError

INTERACTION_FILES = ("interactions", "train", "valid", "val", "validation", "test")
EXAMPLES = 3
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NUMPY = b"\x93NUMPY"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ID_NAMES = frozenset(name.casefold() for name in (*ITEM_ID_COLUMNS, *NAMES["item_id"]))


@dataclass(frozen=True)
class RowIds:
    """The ids of the rows of a matrix.

    Attributes:
        ids: `ids[i]` is the item of row i.
        record: Where they came from, for the provenance.
        notes: Guesses, one line each, for the user.
    """

    ids: list[str]
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def ids_from_file(
    path: Path, n_rows: int, *, id_column: str | None = None, row_column: str | None = None
) -> RowIds:
    """Read the ids of `n_rows` rows from a file.

    Three kinds are read: one id per line, in row order; a table with a header (`id_column`, and
    `row_column` where the table says the row instead of keeping the order); and two columns, id and
    row number from 0. The first line of a list is a header if it is a usual name of a column of
    ids (`item_id`, `asin`, …); any other header is named with `id_column`.

    Args:
        path: A text file, or a table (TSV, CSV, JSONL, Parquet; also .gz).
        n_rows: Number of rows of the matrix.
        id_column: Name of the column of ids; asks for a header.
        row_column: Name of the column of row numbers; asks for a header.

    Raises:
        DataError: ids that are not as many as the rows, empty, there twice, or not UTF-8; rows that
            are not 0 … n-1.
        UsageError: a table of several columns and none named; two columns, each of which can be the
            ids and the row numbers.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; --ids names a list of item ids, one per row")
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = {}
    is_table = path.name.lower().endswith((".parquet", ".jsonl", ".jsonl.gz"))
    if is_table or id_column is not None or row_column is not None:
        pairs, record = _from_table(path, id_column, row_column)
    else:
        pairs, notes = _from_records(path, n_rows)
    if id_column is None and row_column is None:
        _refuse_two_readings(path, pairs)
    ids = in_row_order(path, pairs, n_rows, headed=bool(notes))
    return RowIds(ids, {"file": path.name, "sha256": sha256_of(path), **record}, notes)


def ids_from_dataset(folder: Path, n_rows: int, *, matrix: str) -> RowIds:
    """Return the ids "0", "1", … n-1, if these are exactly the item ids of a dataset.

    Args:
        folder: The dataset: `items.tsv` or its like, or else its interaction or split files,
            `splits/*/` included.
        n_rows: Number of rows of the matrix.
        matrix: Name of the matrix file, for messages.

    Raises:
        DataError: the dataset's ids are others, or fewer; an id list is then the only way to know
            the rows.
    """
    found, source = _dataset_ids(folder)
    wanted = {str(row) for row in range(n_rows)}
    if found != wanted:
        strange = sorted(found - wanted)[:EXAMPLES]
        absent = sorted(wanted - found, key=int)[:EXAMPLES]
        example = f"it has {strange[0]!r}" if strange else f"it lacks {absent[0]!r}"
        raise DataError(
            f"{matrix}: {counted(n_rows, 'row')} without ids, and the {len(found):,} item ids in "
            f"{source} of {folder.name} are not exactly 0 … {n_rows - 1} ({example}); say which "
            "row is which item with --ids FILE"
        )
    where = f"the item ids in {source} of {folder.name}"
    note = f"row i is item i: {where} are exactly 0 … {n_rows - 1}"
    record = {"rows_are_ids": True, "dataset": folder.name}
    return RowIds([str(row) for row in range(n_rows)], record, (note,))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of the listing that `sha256sum` makes of files; errors as above."""
    listing = "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items())
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def read_records(path: Path) -> list[list[str]]:
    """Read the cells of a text file's lines: `.csv` with quotes, others split at tabs.

    Where each line begins with a cell in quotation marks, as R writes them, the marks are no part
    of the cells; else they are.

    Empty lines at the end don't count; others are one empty cell, for they may be a row without id.

    Raises:
        DataError: neither UTF-8 nor UTF-16 with a byte order mark, not readable.
    """
    name = path.name.lower()
    try:
        raw = path.read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
        if raw.startswith(_NUMPY):
            raise DataError(
                f"{path.name}: an array of NumPy; write its ids to a text, one per line"
            )
        text = raw.decode("utf-16" if raw.startswith(_WIDE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}, line {line}: not UTF-8; convert the file") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    text = text.rstrip("\r\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")] if text else []
    if not name.endswith((".csv", ".csv.gz")):
        records = [line.split("\t") for line in lines]
        quoted = all(_QUOTED.fullmatch(cells[0]) for cells in records)
        return [[_plain(cell) for cell in cells] for cells in records] if quoted else records
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [row or [""] for row in rows]
    except csv.Error as error:
        raise DataError(f"{path.name}: not a CSV file that can be read ({error})") from error


def _plain(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell


def _from_table(
    path: Path, id_column: str | None, row_column: str | None
) -> tuple[list[tuple[str, int | None]], dict[str, Any]]:
    table = open_table(path)
    if id_column is None:
        others = [name for name in table.columns if name != row_column]
        if len(others) != 1 and not (row_column is None and len(others) == 2):
            raise UsageError(
                f"{path.name}: which column holds the ids? --id-column NAME (got "
                f"{', '.join(table.columns)})"
            )
        id_column = others[0]
        row_column = others[1] if len(others) == 2 else row_column
    read = table.read([id_column, *filter(None, [row_column])], ids=[id_column])
    ids = checked_ids(table, id_column, read[id_column]).to_pylist()
    if row_column is None:
        _refuse_other_order(table, [name for name in table.columns if name != id_column], len(ids))
        return [(item_id, None) for item_id in ids], {"id_column": id_column}
    cells = (value.decode("utf-8", "replace") for value in read[row_column].to_pylist())
    rows = [_row_number(path, cell) for cell in cells]
    record = {"id_column": id_column, "row_column": row_column}
    return list(zip(ids, rows, strict=True)), record


def _refuse_other_order(table: Table, names: Sequence[str], n_rows: int) -> None:
    """Refuse a table with a column that numbers the rows 0 … n-1 in another order than theirs."""
    for name in names:
        try:
            cells = table.read([name])[name].to_pylist()
        except ToolError:
            continue  # not text: no row numbers
        if not all(cell.isdigit() for cell in cells):
            continue
        rows = list(map(int, cells))
        if rows != list(range(n_rows)) and sorted(rows) == list(range(n_rows)):
            raise UsageError(
                f"{table.path.name}: column {name!r} numbers the rows 0 … {n_rows - 1} in another "
                f"order than theirs; if these are the rows of the matrix, add --row-column {name}, "
                "else give a file without this column"
            )


def _from_records(path: Path, n_rows: int) -> tuple[list[tuple[str, int | None]], tuple[str, ...]]:
    records = read_records(path)
    if not records:
        raise DataError(f"{path.name}: holds no ids (expected one per line, {n_rows:,} in all)")
    if len(records[0]) > 1:
        records = [cells for cells in records if cells != [""]]
    widths = {len(cells) for cells in records}
    if widths not in ({1}, {2}):
        raise UsageError(
            f"{path.name}: lines of {' and '.join(map(str, sorted(widths)))} columns (expected one "
            "id per line, or id and row number); name the column of ids in its header with "
            "--id-column"
        )
    first = records[0]
    notes: tuple[str, ...] = ()
    if is_id_name(first[0]) and not (len(first) == 2 and _is_row_number(first[1])):
        notes = (f"{path.name}: the first line, {first[0]!r}, is a header",)
        del records[0]
    if widths == {1}:
        return [(cells[0], None) for cells in records], notes
    return [(cells[0], _row_number(path, cells[1])) for cells in records], notes


def is_id_name(cell: str) -> bool:
    """Whether a cell is a usual name of a column of item ids, and so belongs to a header."""
    return cell.strip().casefold() in _ID_NAMES


def _refuse_two_readings(path: Path, pairs: list[tuple[str, int | None]]) -> None:
    """Refuse two columns that both number the rows 0 … n-1, in different orders."""
    if all(item_id == str(row) for item_id, row in pairs):
        return
    numbers = {str(row) for row in range(len(pairs))}
    if {str(row) for _, row in pairs} == numbers and {item_id for item_id, _ in pairs} == numbers:
        raise UsageError(
            f"{path.name}: which column holds the ids, and which the row numbers? Both hold 0 … "
            f"{len(pairs) - 1}, each in its own order; name them in a header line, and with "
            "--id-column and --row-column"
        )


def _is_row_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _row_number(path: Path, text: str) -> int:
    if not _is_row_number(text):
        raise DataError(
            f"{path.name}: {text!r} is not a row number (expected the second column to say the "
            "row, from 0); if it belongs to a header, or says something else, name the column of "
            "ids with --id-column, and that of row numbers with --row-column"
        )
    return int(text)


def in_row_order(
    path: Path, pairs: list[tuple[str, int | None]], n_rows: int, *, headed: bool = False
) -> list[str]:
    """Return the ids of rows 0 … n-1 out of pairs of id and row; no row: the place in the list.

    Raises:
        DataError: They are not as many as the rows, empty, there twice, or of no such row.
    """
    if len(pairs) != n_rows:
        count = f"{counted(len(pairs), 'id')} for {counted(n_rows, 'row')}"
        if headed:
            count += " below the header"
        fix = "every row needs one id, and no more"
        if len(pairs) == n_rows + 1 and pairs[0][1] is None:
            fix += f"; if {pairs[0][0]!r} is a header and no id, say --id-column {pairs[0][0]}"
        if empty := [place for place, (item_id, _) in enumerate(pairs) if not item_id]:
            fix += f"; number {empty[0] + 1} of them is empty"
        raise DataError(f"{path.name}: {count}; {fix}")
    ids: dict[int, str] = {}
    for position, (item_id, row) in enumerate(pairs):
        at = position if row is None else row
        if not 0 <= at < n_rows:
            raise DataError(
                f"{path.name}: {item_id!r} is said to be row {at} (expected 0 … {n_rows - 1})"
            )
        if at in ids:
            raise DataError(
                f"{path.name}: {ids[at]!r} and {item_id!r} are both said to be row {at}"
            )
        ids[at] = item_id
    in_order = [ids[row] for row in range(n_rows)]
    _check_unique(path, in_order)
    return in_order


def _check_unique(path: Path, ids: list[str]) -> None:
    if "" in ids:
        raise DataError(f"{path.name}: row {ids.index('')} has an empty id; every row needs one")
    if len(set(ids)) != len(ids):
        twice = [item_id for item_id, count in Counter(ids).items() if count > 1]
        shown = ", ".join(map(repr, twice[:EXAMPLES]))
        raise DataError(
            f"{path.name}: {counted(len(twice), 'id occurs', 'ids occur')} more than once (for "
            f"instance {shown}); ids must be unique"
        )


def _dataset_ids(folder: Path) -> tuple[set[str], str]:
    """The item ids of a dataset and the names of the files that they are from."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such dataset folder (--data)")
    if any((folder / f"items{suffix}").is_file() for suffix in SUFFIXES):
        items = load_items(folder)
        return set(items.ids.to_pylist()), items.table.path.name if items.table else "items"
    candidates = sorted([*folder.iterdir(), *folder.glob("splits/*/*")])
    paths = [path for path in candidates if is_table(path) and _stem(path) in INTERACTION_FILES]
    if not paths:
        raise DataError(
            f"{folder}: no items.tsv, interactions.tsv or split files to take item ids from; use "
            "--ids FILE"
        )
    return set().union(*map(_interaction_items, paths)), ", ".join(path.name for path in paths)


def _stem(path: Path) -> str:
    return path.name.split(".")[0].lower()


def _interaction_items(path: Path) -> set[str]:
    table = open_interactions(path)
    user, item = (
        next(iter(columns_of(role, table.columns)), None) for role in ("user_id", "item_id")
    )
    if item is None:
        raise DataError(
            f"{path}: no column of item ids (expected item_id; got {', '.join(table.columns)})"
        )
    columns = table.read([item, *filter(None, [user])], ids=[item])
    if user is not None and _stem(path) == "interactions":  # parts of a split have users first
        require_one_reading(table, columns[user], columns[item])
    # A header that is not recognised is read as a row, and then shows as a strange id.
    return set(checked_ids(table, item, columns[item]).to_pylist())
