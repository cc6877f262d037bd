"""How the bytes of a text table become lines: compression, encoding, delimiter, quotation marks.

What a file's name does not imply is detected here and reported in notes. What a file expands to is
bounded, so that a small archive cannot fill the memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from mmbase.errors import DataError

LONGEST_LINE = 1 << 26
"""Bytes of the longest line of a table: 64 MiB."""
LONGEST_HEADER = 1 << 20
EXPANSION = 100
"""How many times its file size a compressed table may expand to."""
HARMLESS = 1 << 28
"""Bytes that any compressed table may expand to: 256 MiB."""

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", "::": "::"}
_ENCODINGS = {"cp1252": "Windows-1252", "utf-16": "UTF-16", "utf-32": "UTF-32"}


class Dialect(NamedTuple):
    """How a text table is written.

    Attributes:
        encoding: Of the file; what is read from it is UTF-8.
        delimiter: One of comma, semicolon, tab, `|` and `::`.
        quoted: Whether cells may be in quotation marks, the way CSV has them.
        notes: What was found out and is not what the file's name says, one line each.
    """

    encoding: str
    delimiter: str
    quoted: bool
    notes: tuple[str, ...]


# --- compression


def plain_name(path: Path) -> str:
    """Return the file's name in lower case, without the suffix of a compression."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zst")


def is_compressed(path: Path) -> bool:
    """Whether the file's name says that it is compressed."""
    return plain_name(path) != path.name.lower()


def opened(path: Path) -> IO[bytes]:
    """Open the file's bytes, decompressed."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if name.endswith(".zst"):
        import pyarrow as pa

        zstd: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return io.BufferedReader(zstd, _CHUNK)
    return path.open("rb")


def budget(path: Path) -> int:
    """Return how many bytes a compressed table may expand to."""
    return max(HARMLESS, EXPANSION * path.stat().st_size)


def too_large(path: Path, cure: str) -> DataError:
    """Return the error for a compressed table that expands beyond its budget."""
    return DataError(f"{path}: expands to more than {budget(path):,} bytes; {cure}")


def _bounded(path: Path, reads: Callable[[], bytes]) -> Iterator[bytes]:
    """Yield what `reads` returns until it is empty.

    Raises:
        DataError: Damaged, or a compressed file expands to more than any table does.
    """
    left = budget(path) if is_compressed(path) else None
    while True:
        try:
            data = reads()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be decompressed ({error})") from error
        if not data:
            return
        if left is not None and (left := left - len(data)) < 0:
            raise too_large(path, "if you trust it, decompress it")
        yield data


def stream(path: Path, encoding: str) -> IO[bytes]:
    """Open the file's bytes, decompressed and in UTF-8."""
    return opened(path) if encoding == "utf-8" else io.BytesIO(contents(path, encoding))


def lines(path: Path, encoding: str = "utf-8") -> Iterator[bytes]:
    """Yield the file's lines in UTF-8, without a byte order mark.

    Raises:
        DataError: Damaged, a line of more than `LONGEST_LINE` bytes, or too large when expanded.
    """
    with stream(path, encoding) as file:
        reads = partial(file.readline, LONGEST_LINE + 1)
        for number, line in enumerate(_bounded(path, reads), 1):
            if len(line) > LONGEST_LINE:
                raise _long(path, number)
            yield line.removeprefix(_BOM) if number == 1 else line


def _long(path: Path, number: int) -> DataError:
    what = f"a line of more than {LONGEST_LINE:,} bytes"
    return DataError(f"{path}, line {number}: {what}; is this a table with a row on each line?")


def contents(path: Path, encoding: str = "utf-8") -> Any:
    """Return all of the file in UTF-8: mapped where it lies there as it is, else as bytes."""
    return _recoded(_raw(path), encoding)


def _recoded(data: Any, encoding: str) -> Any:
    if encoding == "utf-8":
        return data
    return bytes(data).decode(encoding, "replace").removeprefix("\ufeff").encode("utf-8", "replace")


def _raw(path: Path) -> Any:
    if not is_compressed(path):
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    parts: list[bytes] = []
    with opened(path) as file:
        since, number = 0, 1  # bytes of the line that is being read, and its number
        for data in _bounded(path, partial(file.read, _CHUNK)):
            ends = data.count(b"\n")
            since = len(data) - data.rfind(b"\n") - 1 if ends else since + len(data)
            number += ends
            if since > LONGEST_LINE:
                raise _long(path, number)
            parts.append(data)
    return b"".join(parts)


# --- encoding


def find_encoding(path: Path, data: Any = None) -> tuple[str, tuple[str, ...]]:
    """Return the encoding of a text file, and a note where it is not UTF-8.

    A file with a byte order mark is what the mark says. One that is not valid UTF-8 is taken for
    Windows-1252 where its other bytes stand alone in words, as accents do; else it is UTF-8 with
    damage, which is found where a cell is used.

    Args:
        path: The file.
        data: Its bytes, decompressed, if they are at hand.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opened(path) if data is None else nullcontext() as file:
        chunks = (
            (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
            if file is None
            else _bounded(path, partial(file.read, _CHUNK))
        )
        for number, chunk in enumerate(chunks):
            if number == 0 and (wide := _wide(chunk)):
                name = _ENCODINGS[wide.removesuffix("-le").removesuffix("-be")]
                return wide, (f"{path.name}: read as {name}",)
            if chunk.isascii() and not decoder.getstate()[0]:
                continue
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                break
        else:
            if not decoder.getstate()[0]:  # no character is cut off at the end
                return "utf-8", ()
    if not _western(contents(path) if data is None else data):
        return "utf-8", ()
    name = _ENCODINGS["cp1252"]
    return "cp1252", (f"{path.name}: not UTF-8; read as {name}, the usual encoding of Excel's CSV",)


def _wide(start: bytes) -> str | None:
    """Return the encoding if the first bytes are UTF-16 or UTF-32."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if start.startswith(mark):
            return encoding
    even, odd = start[:2048:2], start[1:2048:2]
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros.count(0) > 0.4 * len(zeros) and not others.count(0):
            return encoding
    return None


def _western(data: Any) -> bool:
    """Whether bytes that are not ASCII stand alone beside letters, as in text of Windows-1252."""
    western = others = 0
    for run in re.finditer(rb"([A-Za-z]?)([\x80-\xff]+)(?=([A-Za-z]?))", data):
        high = run[2]
        fits = len(high) <= 2 and bool(run[1] or run[3])
        try:
            high.decode("cp1252")
        except UnicodeDecodeError:
            fits = False
        if fits and not _is_utf8(high):
            western += 1
        else:
            others += 1
        if western + others >= 10_000:
            break
    return western > 9 * others


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- delimiter and quotation marks


def find_dialect(path: Path, *, literal: bool) -> Dialect:
    """Find out how a text table is written; `literal` as in `mmbase.tables.open_table`.

    Raises:
        DataError: Damaged, or a quotation mark that is not closed in a table of commas.
    """
    data = _raw(path)
    encoding, notes = find_encoding(path, data)
    data = _recoded(data, encoding)
    own = "," if plain_name(path).endswith(".csv") else "\t"
    first = _first_lines(path, data)
    if first and re.fullmatch(r'"?sep=[,;|\t]?"?[,;]*', first[0].strip(), re.IGNORECASE):
        cure = "delete this line; the separator is found without it"
        raise DataError(f"{path}, line 1: {first[0].strip()!r} is for Excel and no header; {cure}")
    delimiter = _delimiter(first, own)
    if delimiter != own:
        words = f"columns are separated by {_WORDS[delimiter]}, as its first lines show"
        notes += (f"{path.name}: {words}",)
    strict = delimiter in ",;"
    if literal and not strict:
        return Dialect(encoding, delimiter, False, notes)
    quoted, noted = _quotes(path, data, delimiter, strict=strict)
    return Dialect(encoding, delimiter, quoted, notes + noted)


def _first_lines(path: Path, data: Any) -> list[str]:
    """Return the first lines, at most ten, those that are not blank."""
    start = bytes(data[:LONGEST_HEADER]).removeprefix(_BOM).decode("utf-8", "replace")
    whole = re.split(r"\r\n|\n|\r", start)
    if len(data) > LONGEST_HEADER and not whole[1:]:
        what = f"the first line has more than {LONGEST_HEADER:,} bytes"
        raise DataError(f"{path}: {what}; is this a table with a row on each line?")
    if len(data) > LONGEST_HEADER:
        whole.pop()
    return [line for line in whole if line.strip()][:10]


def _delimiter(first: list[str], own: str) -> str:
    """Return the delimiter of a table, given its first lines and the usual delimiter of its format.

    Of commas, semicolons and tabs a table of commas takes the most frequent in its first line. A
    table of tabs without one takes another mark that all lines have, and equally often.
    """
    if not first:
        return own
    if own == ",":
        most = max(",;\t", key=first[0].count)
        if most in first[0]:
            return most
    elif own in first[0]:
        return own
    for mark in ("::", "|") if own == "," else ("::", "|", ";", ","):
        counts = {line.count(mark) for line in first}
        if len(counts) == 1 and 0 not in counts:
            return mark
    return own


def _quotes(path: Path, data: Any, delimiter: str, *, strict: bool) -> tuple[bool, tuple[str, ...]]:
    """Return whether a table quotes its cells, and a note where that is not certain.

    Raises:
        DataError: A mark of a `strict` table is not closed.
    """
    if data.find(b'"') < 0:
        return False, ()
    stray, spans = _walk_quotes(data, delimiter)

    def line_of(offset: int) -> int:
        return bytes(data[:offset]).count(b"\n") + 1

    if stray is not None:
        if not strict:
            return False, ()
        cure = 'write "" for a quotation mark inside a quoted cell, or save as .tsv'
        raise DataError(f"{path}, line {line_of(stray)}: a quotation mark is not closed; {cure}")
    if not spans:
        return True, ()
    start, end = (line_of(offset) for offset in spans[0])
    more = f" ({len(spans):,} such cells)" if len(spans) > 1 else ""
    where = f"{path.name}: the quotation mark on line {start} is closed on line {end}{more}"
    alone = _rows_alone(data, delimiter)
    if not strict and alone:
        return False, (f"{where}; every line is read as a row, marks as part of the text",)
    if not strict or alone:
        return True, (f"{where}; read as one cell of several lines",)
    return True, ()


def _walk_quotes(data: Any, delimiter: str) -> tuple[int | None, list[tuple[int, int]]]:
    """Return where a cell begins with a mark and is not quoted, and the cells of several lines."""
    mark = re.escape(delimiter.encode())
    opening = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|(?<=[\r\n])|(?<=" + mark + rb'))"')
    end = rb'"(?=' + mark + rb"|[\r\n]|\Z)"
    line = re.compile(rb'[^"\n]*+(?:""[^"\n]*+)*+' + end)
    several = re.compile(rb'[^"]*+(?:""[^"]*+)*+' + end)
    position = 0
    spans: list[tuple[int, int]] = []
    while (start := opening.search(data, position)) is not None:
        cell = line.match(data, start.end())
        if cell is None:
            cell = several.match(data, start.end())
            if cell is None:
                return start.start(), spans
            spans.append((start.end() - 1, cell.end()))
        position = cell.end()
    return None, spans


def _rows_alone(data: Any, delimiter: str) -> bool:
    """Whether every line, taken alone, has as many cells as the first, and more than one."""
    mark, width = delimiter.encode(), 0
    for line in re.finditer(rb"[^\r\n]+", data):
        if (count := line[0].count(mark)) == 0 or count != (width or count):
            return False
        width = count
    return True
