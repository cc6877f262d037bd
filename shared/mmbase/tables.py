"""Columns of text from TSV, CSV, Parquet and JSONL files, byte for byte: nothing is ever parsed as a number.

`007`, `1e3`, `NA` and `null` stay the text they are. An empty cell is empty text; the caller
decides that this means missing. Columns are Arrow arrays of binary, so ten million rows cost their
bytes and not ten million objects.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from mmbase.errors import DataError, unknown_name

Column: TypeAlias = Any  # pyarrow.ChunkedArray of binary; pyarrow carries no types
"""One column: a `pyarrow.ChunkedArray` of type binary, one value per row, no nulls."""

SUFFIXES = (".tsv", ".csv", ".parquet", ".jsonl", ".tsv.gz", ".csv.gz", ".jsonl.gz")
"""The file names that `Table` reads, in the order in which a folder is searched."""

_JSON_CHUNK = 65_536
_LONGEST_CELL = 1 << 30
_BOM = b"\xef\xbb\xbf"


def is_table(path: Path) -> bool:
    """Whether the file name is one that `open_table` reads."""
    return path.name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Table:
    """A table file whose header has been read and whose rows have not.

    Attributes:
        path: The file.
        columns: Column names, in the file's order.
        kind: `text` (delimited), `json` (one object a line) or `parquet`.
        delimiter: The delimiter of a `text` table.
        quoted: Whether a `text` table quotes its cells the way CSV does.
    """

    path: Path
    columns: tuple[str, ...]
    kind: str
    delimiter: str = ""
    quoted: bool = False

    def require(self, name: str) -> str:
        """`name`, when the table has that column.

        Raises:
            UsageError: it has not; the message holds the closest match and all choices.
        """
        if name not in self.columns:
            raise unknown_name(f"column of {self.path.name}", name, self.columns)
        if self.columns.count(name) > 1:
            raise DataError(
                f"{self.path.name}: the header names column {name!r} twice; rename one of them"
            )
        return name

    def read(self, names: Sequence[str]) -> dict[str, Column]:
        """The named columns, all of one length.

        Raises:
            DataError: a row that does not fit the header, or a cell that is no text; the line is
                named.
        """
        wanted = list(dict.fromkeys(self.require(name) for name in names))
        if self.kind == "parquet":
            return _read_parquet(self.path, wanted)
        if self.kind == "json":
            return _read_json(self.path, wanted)
        return _read_text(self, wanted)

    def lines(self, rows: Sequence[int]) -> list[int]:
        """The 1-based line on which each row ends, for messages. Slow, so only for messages.

        Args:
            rows: 0-based row numbers, ascending.
        """
        if self.kind == "parquet":
            return [row + 1 for row in rows]
        found: list[int] = []
        wanted = iter(rows)
        target = next(wanted, None)
        for row, line in enumerate(_record_lines(self)):
            if row == target:
                found.append(line)
                target = next(wanted, None)
        return found


def open_table(path: Path) -> Table:
    """The table in `path`, its header read and its dialect known.

    A tab-separated file is taken as quoted only when every cell that starts with a quotation mark
    is a well-formed quoted cell; titles such as `"Heroes" and more` are then left alone. In a
    comma-separated file such a cell is an error, because a stray quotation mark there swallows the
    rows that follow.

    Raises:
        DataError: no such file, an empty one, an unknown kind, or a header that cannot be read.
    """
    name = path.name.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not is_table(path):
        raise DataError(
            f"{path.name}: not a table that can be read (expected one of {', '.join(SUFFIXES)})"
        )
    if path.stat().st_size == 0:
        raise DataError(
            f"{path.name}: the file is empty (expected a header line and one row per item)"
        )
    if name.endswith(".parquet"):
        return Table(path, _parquet_columns(path), "parquet")
    if name.endswith((".jsonl", ".jsonl.gz")):
        return Table(path, _json_columns(path), "json")
    data = _bytes_of(path)
    delimiter = "\t" if name.endswith((".tsv", ".tsv.gz")) else _sniff(data)
    stray = _stray_quote(data, delimiter)
    if stray is not None and delimiter != "\t":
        line = bytes(data[:stray]).count(b"\n") + 1
        raise DataError(
            f"{path.name}, line {line}: a cell opens a quotation mark and does not close it as CSV "
            "asks; "
            f"write {chr(34) * 2} for a quotation mark inside a quoted cell, or save the table as "
            ".tsv"
        )
    quoted = stray is None and data.find(b'"') >= 0
    header = next(_records(path, delimiter, quoted=quoted), None)
    if header is None:
        raise DataError(f"{path.name}: no header line (expected the names of the columns)")
    return Table(path, tuple(header[1]), "text", delimiter, quoted)


# --- delimited text
# ---------------------------------------------------------------------------------------------


def _bytes_of(path: Path) -> Any:
    """The file's bytes: mapped, or decompressed when the name ends in `.gz`."""
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path, "rb") as stream:
                return stream.read()
        except (OSError, EOFError) as error:
            raise DataError(f"{path.name}: cannot be decompressed ({error})") from error
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes as a stream, decompressed when the name ends in `.gz`."""
    return (
        cast(IO[bytes], gzip.open(path, "rb"))
        if path.name.lower().endswith(".gz")
        else path.open("rb")
    )


def _sniff(data: Any) -> str:
    """The delimiter of the first line: whichever of comma, semicolon and tab occurs most, a comma when none does."""
    end = data.find(b"\n")
    first = bytes(data[: end if end >= 0 else len(data)])
    return max(",;\t", key=lambda mark: first.count(mark.encode()))


def _stray_quote(data: Any, delimiter: str) -> int | None:
    """The offset of the first cell that opens a quotation mark and is no well-formed quoted cell; None: all are."""
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
    """Every non-blank record with the line it ends on, header included; invalid UTF-8 shows as replacement marks."""
    csv.field_size_limit(_LONGEST_CELL)
    with (
        _opened(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        reader = csv.reader(
            text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        )
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{path.name}, line {reader.line_num}: {error}") from error


def _record_lines(table: Table) -> Iterator[int]:
    """The line on which each data row ends."""
    if table.kind == "json":
        for number, _ in _json_lines(table.path):
            yield number
        return
    records = _records(table.path, table.delimiter, quoted=table.quoted)
    next(records, None)
    for line, _ in records:
        yield line


def _read_text(table: Table, names: list[str]) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    data = _bytes_of(table.path)
    if data.find(b"\n") < 0 and data.find(b"\r") < 0:
        return {
            name: pa.chunked_array([], pa.binary()) for name in names
        }  # a header without a line end
    try:
        rows = arrow_csv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            read_options=arrow_csv.ReadOptions(block_size=16 << 20),
            parse_options=arrow_csv.ParseOptions(
                delimiter=table.delimiter,
                quote_char='"' if table.quoted else False,
                newlines_in_values=table.quoted,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.binary() for name in names},
                include_columns=names,
                strings_can_be_null=False,
                null_values=[],
            ),
        )
    except pa.ArrowInvalid as error:
        raise _bad_row(table, error) from error
    return {name: rows.column(name) for name in names}


def _bad_row(table: Table, cause: Exception) -> DataError:
    """The error for a table that Arrow refused: the first line that does not fit the header, found by a slow walk."""
    width = len(table.columns)
    records = _records(table.path, table.delimiter, quoted=table.quoted)
    for line, record in records:
        if len(record) != width:
            return DataError(
                f"{table.path.name}, line {line}: {len(record)} cells (expected {width}, as in the "
                "header: "
                f"{', '.join(table.columns)}); quote cells that hold the delimiter"
            )
    return DataError(f"{table.path.name}: cannot be read ({cause})")


# --- JSON lines
# -------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with _opened(path) as stream:
        number = 0
        try:
            for line in stream:
                number += 1
                line = line.removeprefix(_BOM) if number == 1 else line
                if line.strip():
                    yield number, line
        except (OSError, EOFError) as error:
            raise DataError(
                f"{path.name}, line {number + 1}: cannot be decompressed ({error})"
            ) from error


def _json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        # Numbers keep the text they were written with, so that an id such as 1e3 or 007.0 is not
        # changed.
        value = json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path.name}, line {number}: not valid JSON ({error}); one object per line"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path.name}, line {number}: a JSON {type(value).__name__} (expected an object)"
        )
    return value


def _json_columns(path: Path) -> tuple[str, ...]:
    """The keys of the first hundred objects, in order of appearance."""
    keys: dict[str, None] = {}
    for count, (number, line) in enumerate(_json_lines(path)):
        if count == 100:
            break
        keys.update(dict.fromkeys(_json_object(path, number, line)))
    return tuple(keys)


def _json_text(value: Any) -> str | None:
    """A JSON value as text: lists of texts are joined by a blank; None for what is no text."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        parts = [_json_text(part) for part in value]
        return None if None in parts else " ".join(part for part in parts if part)
    return None


def _read_json(path: Path, names: list[str]) -> dict[str, Column]:
    import pyarrow as pa

    chunks: dict[str, list[Any]] = {name: [] for name in names}
    buffers: dict[str, list[bytes]] = {name: [] for name in names}

    def flush() -> None:
        for name in names:
            chunks[name].append(pa.array(buffers[name], pa.binary()))
            buffers[name].clear()

    for number, line in _json_lines(path):
        record = _json_object(path, number, line)
        for name in names:
            text = _json_text(record.get(name))
            if text is None:
                kind = type(record[name]).__name__
                raise DataError(
                    f"{path.name}, line {number}: {name!r} is a JSON {kind} (expected a text, a "
                    "number or a list of them); "
                    "write what is wanted of it as a column of its own"
                )
            buffers[name].append(text.encode("utf-8", "surrogatepass"))
        if len(buffers[names[0]]) == _JSON_CHUNK:
            flush()
    flush()
    return {name: pa.chunked_array(parts, pa.binary()) for name, parts in chunks.items()}


# --- Parquet
# ----------------------------------------------------------------------------------------------------


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name}: not a Parquet file that can be read ({error})") from error


def _read_parquet(path: Path, names: list[str]) -> dict[str, Column]:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path, columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name}: cannot be read ({error})") from error
    columns: dict[str, Column] = {}
    for name in names:
        column, kind = rows.column(name), rows.schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            column = pc.binary_join(pc.cast(column, pa.list_(pa.string())), " ")
        elif pa.types.is_dictionary(kind):
            column = pc.cast(column, kind.value_type)
        elif pa.types.is_floating(kind) and pc.all(pc.is_null(column, nan_is_null=True)).as_py():
            column = pa.chunked_array(
                [pa.nulls(len(column), pa.string())]
            )  # how data frames keep a text nobody has
        elif pa.types.is_floating(kind) or pa.types.is_nested(kind):
            raise DataError(
                f"{path.name}: column {name!r} has type {kind} (expected text or whole numbers)"
            )
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            column = pc.cast(column, pa.string())
        columns[name] = pc.fill_null(pc.cast(column, pa.binary()), b"")
    return columns
