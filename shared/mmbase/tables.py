"""Columns of TSV, CSV, Parquet and JSONL files, byte for byte; the only reader of both tools.

`007`, `1e3`, `NA` and `null` stay the text they are. An empty cell is empty text; the caller
decides that this means missing. Columns are Arrow arrays of binary, so ten million rows cost their
bytes and not ten million objects.
"""

from __future__ import annotations

import csv
import gzip
import io
import mmap
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mmbase import typed_tables as typed
from mmbase.errors import DataError, unknown_name

# One column: a `pyarrow.ChunkedArray` of type binary, one value per row, no nulls.
Column: TypeAlias = Any  # pyarrow.ChunkedArray of binary; pyarrow carries no types
# The names of table files, in the order in which a folder is searched.
SUFFIXES = (".tsv", ".csv", ".parquet", ".jsonl", ".tsv.gz", ".csv.gz", ".jsonl.gz")
# Names that often mean a TSV: read where a table is asked for, never taken for one in a search.
TAB_SUFFIXES = (".txt", ".inter")

_LONGEST_CELL = 1 << 30


def is_table(path: Path) -> bool:
    """Whether the file name is certainly that of a table."""
    return path.name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Table:
    """A table file whose header has been read and whose rows have not.

    Attributes:
        columns: Column names, in the file's order.
        kind: `text` (delimited), `json` (one object a line) or `parquet`.
        delimiter: The delimiter of a `text` table.
        quoted: Whether a `text` table quotes its cells the way CSV does.
        header: Whether the first line of a `text` table holds names and no values.
    """

    path: Path
    columns: tuple[str, ...]
    kind: str
    delimiter: str = ""
    quoted: bool = False
    header: bool = True

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

    def read(self, names: Iterable[str], numbers: Collection[str] = ()) -> dict[str, Any]:
        """Return the named columns, each a `Column`; lists are joined by a blank.

        Those in `numbers` are float64 instead, shape (n,), NaN where a cell is none.

        Raises:
            DataError: A row does not fit the header, or a cell is no text; the line is named.
        """
        wanted = list(dict.fromkeys(self.require(name) for name in names))
        if self.kind == "parquet":
            rows = typed.parquet_rows(self.path, wanted)
            columns = {name: rows.column(name) for name in wanted}
            for name, column in columns.items():
                if name not in numbers or not _holds_numbers(column):
                    columns[name] = typed.parquet_text(self.path, name, column)
        elif self.kind == "json":
            with _opened(self.path) as stream:
                columns = typed.read_json(self.path, stream, wanted)
        else:
            columns = _read_text(self, wanted)
        return {n: _as_numbers(c) if n in numbers else c for n, c in columns.items()}

    def values(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return the named columns as Python values: Parquet and JSON keep their lists and numbers.

        Bytes that are not UTF-8 become U+FFFD.
        """
        wanted = [self.require(name) for name in names]
        if self.kind == "json":
            with _opened(self.path) as stream:
                records = [record for _, record in typed.json_records(self.path, stream)]
            return {name: [record.get(name) for record in records] for name in wanted}
        if self.kind == "parquet":
            rows = typed.parquet_rows(self.path, wanted)
            return {name: list(map(_decoded, rows.column(name).to_pylist())) for name in wanted}
        return {name: strings(column).tolist() for name, column in self.read(wanted).items()}

    def lines(self, rows: Sequence[int]) -> list[int]:
        """Return the 1-based line on which each 0-based row ends. Slow, so only for messages."""
        if self.kind == "parquet":
            return [row + 1 for row in rows]
        wanted = set(rows)
        return [line for row, line in enumerate(_record_lines(self)) if row in wanted]

    def where(self, row: int) -> str:
        """Return the file and line of a 0-based row, as messages begin."""
        return f"{self.path}, line {self.lines([row])[0]}"


def open_table(path: Path, *, literal: bool = False) -> Table:
    """Open the table in `path`: read its header and find its dialect.

    A tab-separated file is taken as quoted only when every cell that starts with a quotation mark
    is a well-formed quoted cell; titles such as `"Heroes" and more` are then left alone. In a
    comma-separated file such a cell is an error, because a stray quotation mark there swallows the
    rows that follow.

    With `literal`, tab-separated lines are split at tabs and nothing else, so that quotation marks
    are part of an id; a name of no known format means tab-separated.

    Raises:
        DataError: No such file, an empty one, an unknown format, or a header that cannot be read.
    """
    name = path.name.lower()
    if not path.is_file():
        reason = "cannot be read: a folder, not a file" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {reason}")
    if not (literal or name.endswith((*SUFFIXES, *TAB_SUFFIXES))):
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: not a table that can be read (expected one of {known})")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty: no rows (expected a header line and rows)")
        if name.endswith(".parquet"):
            return Table(path, typed.parquet_columns(path), "parquet")
        if name.endswith((".jsonl", ".jsonl.gz")):
            with _opened(path) as stream:
                return Table(path, typed.json_columns(path, stream), "json")
        comma = name.endswith((".csv", ".csv.gz"))
        return _open_text(path, comma=comma, literal=literal)
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


def _open_text(path: Path, *, comma: bool, literal: bool) -> Table:
    delimiter, quoted = "\t", False
    if comma or not literal:
        data = _bytes_of(path)
        delimiter = _sniff(data) if comma else "\t"
        if not (literal and delimiter == "\t"):
            stray = _stray_quote(data, delimiter)
            if stray is not None and delimiter != "\t":
                line = bytes(data[:stray]).count(b"\n") + 1
                cure = 'write "" for a quotation mark inside a quoted cell, or save as .tsv'
                raise DataError(f"{path}, line {line}: a quotation mark is not closed; {cure}")
            quoted = stray is None and data.find(b'"') >= 0
    header = next(_records(path, delimiter, quoted=quoted), None)
    if header is None:
        raise DataError(f"{path}: no header line and no rows (expected the names of the columns)")
    return Table(path, tuple(cell.strip() for cell in header[1]), "text", delimiter, quoted)


def _bytes_of(path: Path) -> Any:
    """Return the file's bytes: mapped, or decompressed when the name ends in `.gz`."""
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path, "rb") as stream:
                return stream.read()
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be decompressed ({error})") from error
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _opened(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _sniff(data: Any) -> str:
    """Return the most frequent of comma, semicolon and tab in the first line; else a comma."""
    end = data.find(b"\n")
    first = bytes(data[: end if end >= 0 else len(data)])
    return max(",;\t", key=lambda mark: first.count(mark.encode()))


def _stray_quote(data: Any, delimiter: str) -> int | None:
    """Return the offset of the first cell that starts with a quotation mark and is not quoted."""
    if data.find(b'"') < 0:
        return None
    mark = re.escape(delimiter.encode())
    opening = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|(?<=[\r\n])|(?<=" + mark + rb'))"')
    rest = re.compile(rb'[^"]*+(?:""[^"]*+)*+"(?=' + mark + rb"|[\r\n]|\Z)")
    position = 0
    while (start := opening.search(data, position)) is not None:
        cell = rest.match(data, start.end())
        if cell is None:
            return start.start()
        position = cell.end()
    return None


def _records(path: Path, delimiter: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield every non-blank record, header included, with the line on which it ends."""
    csv.field_size_limit(_LONGEST_CELL)
    with (
        _opened(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _record_lines(table: Table) -> Iterator[int]:
    """Yield the line on which each data row ends."""
    if table.kind == "json":
        with _opened(table.path) as stream:
            yield from (number for number, _ in typed.json_lines(table.path, stream))
        return
    records = _records(table.path, table.delimiter, quoted=table.quoted)
    if table.header:
        next(records, None)
    yield from (line for line, _ in records)


def _read_text(table: Table, names: list[str]) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    data = _bytes_of(table.path)
    if data.find(b"\n") < 0 and data.find(b"\r") < 0:
        data = bytes(data) + b"\n"  # Arrow takes a single line without an end for an empty file
    # The header is read as a row and cut off: names may then be anything, or absent.
    numbered = {name: f"f{table.columns.index(name)}" for name in names}
    try:
        rows = arrow_csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            read_options=arrow_csv.ReadOptions(block_size=16 << 20, autogenerate_column_names=True),
            parse_options=arrow_csv.ParseOptions(
                delimiter=table.delimiter,
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
    for line, record in _records(table.path, table.delimiter, quoted=table.quoted):
        if len(record) != width:
            fix = "quote cells that hold the delimiter, or replace it there"
            if len(record) < width:
                fix = "an empty cell still needs its delimiter"
            got = f"{len(record)} cells (expected {expected})"
            return DataError(f"{table.path}, line {line}: {got}; {fix}")
    return DataError(f"{table.path}: cannot be read ({cause})")
