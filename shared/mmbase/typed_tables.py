"""JSON lines and Parquet: tables whose cells have types, as columns of text or as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmbase.errors import DataError

_CHUNK = 65_536
_BOM = b"\xef\xbb\xbf"


def json_lines(path: Path, stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and text of every line that is not blank; `path` is for messages alone."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, line
    except (OSError, EOFError) as error:
        raise DataError(f"{path}, line {number + 1}: cannot be decompressed ({error})") from error


def json_records(
    path: Path, stream: Iterable[bytes], number_type: Callable[[str], Any] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with its line; numbers become what `number_type` makes of their text."""
    for number, line in json_lines(path, stream):
        try:
            value = json.loads(line, parse_int=number_type, parse_float=number_type)
        except (ValueError, RecursionError) as error:
            what = f"{path}, line {number}: not valid JSON ({error}); one object per line"
            raise DataError(what) from error
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f"{path}, line {number}: a JSON {kind} (expected an object)")
        yield number, value


def json_columns(path: Path, stream: Iterable[bytes]) -> tuple[str, ...]:
    """Return the keys of all objects, in order of appearance: a rare one may first come late."""
    return tuple(dict.fromkeys(key for _, record in json_records(path, stream) for key in record))


def read_json(path: Path, stream: Iterable[bytes], names: Sequence[str]) -> dict[str, Any]:
    """Return the named keys as columns of text; an absent key is empty text."""
    import pyarrow as pa

    chunks: dict[str, list[Any]] = {name: [] for name in names}
    buffers: dict[str, list[bytes]] = {name: [] for name in names}

    def flush() -> None:
        for name in names:
            chunks[name].append(pa.array(buffers[name], pa.binary()))
            buffers[name].clear()

    # Numbers keep the text they are written with, so that an id such as 1e3 or 007.0 stays.
    for number, record in json_records(path, stream, str):
        for name in names:
            text = _json_text(record.get(name))
            if text is None:
                kind = type(record[name]).__name__
                what = f"{name!r} is a JSON {kind} (expected a text, a number or a list of them)"
                raise DataError(f"{path}, line {number}: {what}; give it a column of its own")
            buffers[name].append(text.encode("utf-8", "surrogatepass"))
        if len(buffers[names[0]]) == _CHUNK:
            flush()
    flush()
    return {name: pa.chunked_array(parts, pa.binary()) for name, parts in chunks.items()}


def _json_text(value: Any) -> str | None:
    """Return a JSON value as text, a list of texts joined by a blank; None for what is no text."""
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


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Return the names of the columns."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from error


def parquet_rows(path: Path, names: Sequence[str]) -> Any:
    """Return the named columns as a `pyarrow.Table`."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=list(names))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def parquet_text(path: Path, name: str, column: Any) -> Any:
    """Return a column of text or whole numbers as text, lists joined by a blank; null is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        column = pc.binary_join(pc.cast(column, pa.list_(pa.string())), " ")
    elif pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
    elif pa.types.is_floating(kind) and pc.all(pc.is_null(column, nan_is_null=True)).as_py():
        # how data frames keep a text nobody has
        column = pa.chunked_array([pa.nulls(len(column), pa.string())])
    elif pa.types.is_floating(kind) or pa.types.is_nested(kind):
        lost = "; floating-point numbers may have lost digits" if pa.types.is_floating(kind) else ""
        what = f"{path}: column {name!r} has type {kind} (expected text or whole numbers)"
        raise DataError(what + lost)
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = pc.cast(column, pa.string())
    return pc.fill_null(pc.cast(column, pa.binary()), b"")
