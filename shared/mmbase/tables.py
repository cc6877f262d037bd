"""Columns of TSV, CSV, JSON lines, Parquet and Arrow files; the only reader of both tools.

`007`, `1e3`, `NA` and `null` stay the text they are. An empty cell is empty text; the caller
decides that this means missing. Columns are Arrow arrays of binary, so ten million rows cost their
bytes and not ten million objects.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmbase import dialects
from mmbase import typed_tables as typed
from mmbase.errors import DataError, unknown_name
from mmbase.layout import counted

# One column: a `pyarrow.ChunkedArray` of type binary, one value per row, no nulls.
Column: TypeAlias = Any  # pyarrow.ChunkedArray of binary; pyarrow carries no types
# The names of table files, in the order in which a folder is searched.
SUFFIXES = (
    ".tsv", ".csv", ".parquet", ".jsonl", ".tsv.gz", ".csv.gz", ".jsonl.gz", ".tsv.zst", ".csv.zst",
    ".jsonl.zst", ".arrow", ".feather",
)  # fmt: skip
# Names that often mean a TSV: read where a table is asked for, never taken for one in a search.
TAB_SUFFIXES = (".txt", ".inter")

_BLOCK = 16 << 20
_TYPED = (".parquet", ".arrow", ".feather")
_UNIT = "\x1f"
"""Stands for a delimiter of two characters, which the readers of CSV do not know."""


def is_table(path: Path) -> bool:
    """Whether the file name is certainly that of a table."""
    return path.name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Table:
    """A table file whose header has been read and whose rows have not.

    Attributes:
        columns: Column names, in the file's order.
        kind: `text` (delimited), `json` (one object a line) or `typed` (Parquet, Arrow).
        delimiter: The delimiter of a `text` table.
        quoted: Whether a `text` table quotes its cells the way CSV does.
        header: Whether the first line of a `text` table holds names and no values.
        encoding: Of the file; columns are UTF-8.
        notes: What was found out about the file for the user to read, one line each.
    """

    path: Path
    columns: tuple[str, ...]
    kind: str
    delimiter: str = ""
    quoted: bool = False
    header: bool = True
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()

    def headerless(self, names: Sequence[str]) -> Table:
        """Return this `text` table with `names` for its columns and its first line as a row."""
        return replace(self, columns=tuple(names), header=False)

    def require(self, name: str) -> str:
        """Return `name` if the table has one column of that name.

        Raises:
            UsageError: There is none; the message holds the closest match and all choices.
            DataError: There are several.
        """
        if name not in self.columns:
            raise unknown_name(f"column of {self.path.name}", name, self.columns)
        if (count := self.columns.count(name)) > 1:
            raise DataError(f"{self.path}: {count} columns are named {name}; rename all but one")
        return name

    def read(
        self,
        names: Iterable[str],
        numbers: Collection[str] = (),
        *,
        ids: Collection[str] = (),
        raw: Collection[str] = (),
        between: str = " ",
    ) -> dict[str, Any]:
        """Return the named columns, each a `Column`.

        Args:
            names: Of the columns.
            numbers: Those to return as float64, shape (n,), NaN where a cell is none.
            ids: Those that hold ids: a list or a truth value is refused.
            raw: Those that keep the type they have in Parquet or Arrow.
            between: What joins the texts of a list, lists in it alike; nulls are left out.

        Raises:
            DataError: A row does not fit the header, or a cell is no text; the line is named.
        """
        wanted = list(dict.fromkeys(self.require(name) for name in names))
        if self.kind == "typed":
            rows = typed.typed_rows(self.path, wanted)
            columns = {name: rows.column(name) for name in wanted}
            for name, column in columns.items():
                if name not in raw and (name not in numbers or not _holds_numbers(column)):
                    columns[name] = typed.typed_text(
                        self.path, name, column, is_id=name in ids, between=between
                    )
        elif self.kind == "json":
            scalars = {*ids, *raw, *numbers}
            columns = typed.read_json(self.path, self._json_lines(), wanted, scalars, between)
        else:
            columns = _read_text(self, wanted)
        return {n: _as_numbers(c) if n in numbers else c for n, c in columns.items()}

    def values(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return the named columns as Python values: typed files and JSON keep lists and numbers.

        Bytes that are not UTF-8 become U+FFFD.
        """
        wanted = [self.require(name) for name in names]
        if self.kind == "json":
            found = typed.json_records(self.path, self._json_lines(), text_numbers=False)
            records = [record for _, record in found]
            return {name: [record.get(name) for record in records] for name in wanted}
        if self.kind == "typed":
            rows = typed.typed_rows(self.path, wanted)
            return {name: list(map(_decoded, rows.column(name).to_pylist())) for name in wanted}
        return {name: strings(column).tolist() for name, column in self.read(wanted).items()}

    def _json_lines(self) -> Iterator[tuple[int, bytes]]:
        return enumerate(dialects.lines(self.path, self.encoding), 1)

    def lines(self, rows: Sequence[int]) -> list[int]:
        """Return the 1-based line on which each 0-based row ends. Slow, so only for messages."""
        if self.kind == "typed":
            return [row + 1 for row in rows]
        wanted = set(rows)
        return [line for row, line in enumerate(_record_lines(self)) if row in wanted]

    def where(self, row: int) -> str:
        """Return the file and line of a 0-based row, as messages begin."""
        return f"{self.path}, line {self.lines([row])[0]}"


def open_table(path: Path, *, literal: bool = False) -> Table:
    """Open the table in `path`: read its header and find out how it is written.

    Encoding and delimiter are found in the text, and `Table.notes` says what the file's name does
    not: UTF-16, Windows-1252, semicolons, bars, `::`.

    A tab-separated file is taken as quoted only when every cell that starts with a quotation mark
    is a well-formed quoted cell; titles such as `"Heroes" and more` are then left alone. Where a
    quoted cell would go on over several lines, each of which is a row of its own as well, the marks
    are part of the text. In a comma-separated file a cell that is not well-formed is an error,
    because a stray quotation mark there swallows the rows that follow.

    With `literal`, tab-separated lines are split at tabs and nothing else, so that quotation marks
    are part of an id; a name of no known format means tab-separated.

    Raises:
        DataError: No such file, an empty one, an unknown format, or a header that cannot be read.
    """
    name = dialects.plain_name(path)
    if not (path.is_file() or (path.is_dir() and name.endswith(".parquet"))):
        reason = "cannot be read: a folder, not a file" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {reason}")
    if not (literal or path.name.lower().endswith((*SUFFIXES, *TAB_SUFFIXES))):
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: not a table that can be read (expected one of {known})")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty: no rows (expected a header line and rows)")
        if name.endswith(_TYPED):
            return Table(path, typed.typed_columns(path), "typed")
        if name.endswith(".jsonl"):
            encoding, notes = dialects.find_encoding(path)
            table = Table(path, (), "json", encoding=encoding, notes=notes)
            return replace(table, columns=typed.json_columns(path, table._json_lines()))
        return _open_text(path, literal=literal)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def strings(column: Column) -> NDArray[np.object_]:
    """Return a column as Python strings, shape (n,), object; equal cells share one string.

    Bytes that are not UTF-8 become U+FFFD.
    """
    parts = [np.empty(0, object)]
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        distinct = np.array([_decoded(cell) for cell in encoded.dictionary.to_pylist()], object)
        parts.append(distinct[np.asarray(encoded.indices)])
    return np.concatenate(parts)


def _decoded(cell: Any) -> Any:
    if isinstance(cell, list):
        return list(map(_decoded, cell))
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell


def _as_numbers(column: Any) -> NDArray[np.float64]:
    """Return numbers or texts as float64, shape (n,), NaN for what is no number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if _holds_numbers(column):
        if pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.int64())
        return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy())
    try:
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
        return np.asarray(pc.cast(text, pa.float64()).to_numpy())
    except pa.ArrowInvalid:
        cells = column.to_pylist()
        return np.fromiter(map(_number, cells), np.float64, count=len(cells))


def _holds_numbers(column: Any) -> bool:
    import pyarrow.types as kinds

    tests = (
        kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal, kinds.is_timestamp,
    )  # fmt: skip
    return any(test(column.type) for test in tests)


def _number(cell: bytes) -> float:
    try:
        return float("nan") if b"_" in cell else float(cell)
    except ValueError:
        return float("nan")


def _open_text(path: Path, *, literal: bool) -> Table:
    encoding, delimiter, quoted, notes = dialects.find_dialect(path, literal=literal)
    table = Table(path, (), "text", delimiter, quoted, encoding=encoding, notes=notes)
    header = next(_records(table), None)
    if header is None:
        raise DataError(f"{path}: no header line and no rows (expected the names of the columns)")
    return replace(table, columns=tuple(cell.strip() for cell in header[1]))


def _records(table: Table) -> Iterator[tuple[int, list[str]]]:
    """Yield every non-blank record, header included, with the line on which it ends."""
    csv.field_size_limit(dialects.LONGEST_LINE)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE
    mark = table.delimiter
    with (
        dialects.stream(table.path, table.encoding) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        lines: Iterable[str] = text
        if len(mark) > 1:
            lines, mark = (line.replace(table.delimiter, _UNIT) for line in text), _UNIT
        reader = csv.reader(lines, delimiter=mark, quoting=quoting)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{table.path}, line {reader.line_num}: {error}") from error


def _record_lines(table: Table) -> Iterator[int]:
    """Yield the line on which each data row ends."""
    if table.kind == "json":
        yield from (number for number, line in table._json_lines() if line.strip())
        return
    records = _records(table)
    if table.header:
        next(records, None)
    yield from (line for line, _ in records)


def _read_text(table: Table, names: list[str]) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    data, mark = dialects.contents(table.path, table.encoding), table.delimiter
    if len(mark) > 1:
        data, mark = bytes(data).replace(mark.encode(), _UNIT.encode()), _UNIT
    if data.find(b"\n") < 0 and data.find(b"\r") < 0:
        data = bytes(data) + b"\n"  # Arrow takes a single line without an end for an empty file
    # The header is read as a row and cut off: names may then be anything, or absent.
    numbered = {name: f"f{table.columns.index(name)}" for name in names}
    try:
        rows = arrow_csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            # A process that ends just after Arrow's threads have begun may be aborted.
            read_options=arrow_csv.ReadOptions(
                block_size=_BLOCK,
                autogenerate_column_names=True,
                use_threads=len(data) > _BLOCK,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=mark,
                quote_char='"' if table.quoted else False,
                newlines_in_values=table.quoted,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.binary() for name in numbered.values()},
                include_columns=list(numbered.values()),
                strings_can_be_null=False,
                null_values=[],
            ),
        )
    except pa.ArrowInvalid as error:
        raise _bad_row(table, error) from error
    first = int(table.header)
    return {name: rows.column(numbered[name]).slice(first) for name in names}


def _bad_row(table: Table, cause: Exception) -> DataError:
    """Return the error for a table that Arrow refused; a slow walk finds the line at fault."""
    width = len(table.columns)
    names = f"header: {', '.join(table.columns)}" if table.header else "first line"
    expected = f"{width}, as in the {names}"
    for line, record in _records(table):
        if len(record) != width:
            fix = "quote cells that hold the delimiter, or replace it there"
            if len(record) < width:
                fix = "an empty cell still needs its delimiter"
            got = f"{counted(len(record), 'cell')} (expected {expected})"
            return DataError(f"{table.path}, line {line}: {got}; {fix}")
    return DataError(f"{table.path}: cannot be read ({cause})")
