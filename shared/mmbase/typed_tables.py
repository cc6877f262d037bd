"""JSON lines, Parquet and Arrow: tables whose cells have types, as columns of text or as values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmbase import dialects
from mmbase.errors import DataError

_CHUNK = 65_536
_THREADED = 16 << 20  # bytes from which on Arrow's threads pay
_PACKED = 8  # rows for which a byte may stand where all are alike
_CURE = "write it anew without compression if you trust it"
_DIGITS = 4300  # of the longest integer that Python parses


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values of a list of lists, however deep, that are not null; else the value."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, list):
            stack.extend(reversed(top))
        elif top is not None and top == top:  # NaN is how data frames write null
            yield top


# --- JSON lines


def json_records(
    path: Path, numbered: Iterable[tuple[int, bytes]], *, text_numbers: bool = True
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of each line that is not blank, with the line's number.

    Numbers are the text they are written with, or Python's numbers; NaN is null.
    """
    whole, broken = (str, str) if text_numbers else (_integer, float)
    decoder = json.JSONDecoder(parse_int=whole, parse_float=broken, parse_constant=_constant)
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            value = decoder.decode(line.decode())
        except (ValueError, RecursionError) as error:
            what = f"{path}, line {number}: not valid JSON ({error}); one object per line"
            raise DataError(what) from error
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f"{path}, line {number}: a JSON {kind} (expected an object)")
        yield number, value


def _integer(text: str) -> int | str:
    return int(text) if len(text) < _DIGITS else text


def _constant(name: str) -> str | None:
    return None if name == "NaN" else name


def json_columns(path: Path, numbered: Iterable[tuple[int, bytes]]) -> tuple[str, ...]:
    """Return the keys of all objects, in order of appearance: a rare one may first come late."""
    return tuple(dict.fromkeys(key for _, record in json_records(path, numbered) for key in record))


def read_json(
    path: Path,
    numbered: Iterable[tuple[int, bytes]],
    names: Sequence[str],
    scalars: Collection[str],
    between: str,
) -> dict[str, Any]:
    """Return the named keys as columns of text; an absent key is empty text.

    Those in `scalars` hold no lists; `between` joins the texts of a list.
    """
    import pyarrow as pa

    chunks: dict[str, list[Any]] = {name: [] for name in names}
    buffers: dict[str, list[bytes]] = {name: [] for name in names}

    def flush() -> None:
        for name in names:
            chunks[name].append(pa.array(buffers[name], pa.binary()))
            buffers[name].clear()

    for number, record in json_records(path, numbered):
        for name in names:
            value = record.get(name)
            text = value if isinstance(value, str) else _json_text(value, between)
            if text is None or (name in scalars and isinstance(value, list | bool)):
                lists = "" if name in scalars else " or a list of them"
                expected = f"a text or a number{lists}"
                what = f"{name!r} is a JSON {_kind(value)} (expected {expected})"
                raise DataError(f"{path}, line {number}: {what}; give it a column of its own")
            buffers[name].append(text.encode("utf-8", "surrogatepass"))
        if len(buffers[names[0]]) == _CHUNK:
            flush()
    flush()
    return {name: pa.chunked_array(parts, pa.binary()) for name, parts in chunks.items()}


def _kind(value: Any) -> str:
    inside = [type(one).__name__ for one in leaves(value) if not isinstance(one, str | bool)]
    return f"list of {inside[0]}" if isinstance(value, list) and inside else type(value).__name__


def _json_text(value: Any, between: str) -> str | None:
    """Return a JSON value as text, the texts of a list joined; None if it has no text form."""
    texts = []
    for one in leaves(value):
        if isinstance(one, bool):
            one = "true" if one else "false"
        if not isinstance(one, str):
            return None
        if one:
            texts.append(one)
    return between.join(texts)


# --- Parquet and Arrow


def _schema(path: Path) -> Any:
    from pyarrow import ipc, parquet

    if path.name.lower().endswith(".parquet"):
        return parquet_folder(path).schema if path.is_dir() else parquet.read_schema(path)
    with _arrow_file(path, ipc) as reader:
        return reader.schema


def parquet_folder(path: Path) -> Any:
    """Open the Parquet files of a folder as one `pyarrow.dataset.Dataset`.

    It has the columns of all files, whichever has them first. Where files disagree on the type of a
    column, it is text if it is text in one of them (so that no id loses its zeros), and else the
    type of the first file in which it holds something.
    """
    import pyarrow as pa
    from pyarrow import dataset

    how: dict[str, Any] = {
        "format": "parquet",
        "partitioning": dataset.HivePartitioning.discover(infer_dictionary=True),
    }
    parts = dataset.dataset(path, **how)
    fields: dict[str, Any] = {}
    for schema in (parts.schema, *(part.physical_schema for part in parts.get_fragments())):
        for field in schema:
            known = fields.setdefault(field.name, field)
            better = _is_text(pa, field.type) and not _is_text(pa, known.type)
            if pa.types.is_null(known.type) or (better and not pa.types.is_dictionary(known.type)):
                fields[field.name] = field
    return dataset.dataset(path, schema=pa.schema(list(fields.values())), **how)


def _arrow_file(path: Path, ipc: Any) -> Any:
    """Open a file of Arrow, or of its stream format."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return ipc.open_stream(source)


def typed_columns(path: Path) -> tuple[str, ...]:
    """Return the names of the columns of a Parquet or Arrow file."""
    import pyarrow as pa

    try:
        return tuple(_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        kind = "a Parquet" if ".parquet" in path.name.lower() else "an Arrow"
        raise DataError(f"{path}: not {kind} file that can be read ({error})") from error


def typed_rows(path: Path, names: Sequence[str]) -> Any:
    """Return the named columns as a `pyarrow.Table`."""
    import pyarrow as pa
    from pyarrow import ipc

    try:
        if path.name.lower().endswith(".parquet"):
            if path.is_dir():
                parts = parquet_folder(path)
                for part in parts.files:
                    _check_budget(Path(part), names)
                return parts.to_table(columns=list(names))
            return _parquet(path, names)
        with _arrow_file(path, ipc) as reader:
            return reader.read_all().select(list(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _parquet(path: Path, names: Sequence[str]) -> Any:
    """Read columns whose declared and whose real size is within the file's budget.

    Texts that the file keeps in a dictionary stay in one until their whole length is known.
    """
    import pyarrow.compute as pc
    from pyarrow import parquet

    wanted, expanded = _check_budget(path, names)
    texts = {
        chunk.path_in_schema
        for chunk in wanted
        if chunk.physical_type == "BYTE_ARRAY" and "DICTIONARY" in " ".join(chunk.encodings)
    }
    encoded = sorted(texts.intersection(names))
    # A process that ends just after Arrow's threads have begun may be aborted.
    rows = parquet.read_table(
        path,
        columns=list(names),
        read_dictionary=encoded,
        use_threads=expanded > _THREADED,
    )
    for name in encoded:
        for chunk in rows.column(name).chunks if _is_dictionary(rows, name) else ():
            sizes = np.asarray(pc.fill_null(pc.binary_length(chunk.dictionary), 0))
            expanded += int(sizes[np.asarray(chunk.indices.drop_null())].sum(dtype=np.int64))
    if expanded > dialects.budget(path):
        raise dialects.too_large(path, _CURE)
    return rows


def _check_budget(path: Path, names: Sequence[str]) -> tuple[list[Any], int]:
    """Return the column chunks of a Parquet file that hold the columns, and their size in bytes.

    Raises:
        DataError: They declare more than the file's budget.
    """
    from pyarrow import parquet

    about = parquet.read_metadata(path)
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(about.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in names]
    expanded = sum(chunk.total_uncompressed_size for chunk in wanted)
    if max(expanded, about.num_rows // _PACKED) > dialects.budget(path):
        raise dialects.too_large(path, _CURE)
    return wanted, expanded


def _is_dictionary(rows: Any, name: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_dictionary(rows.column(name).type))


def typed_text(path: Path, name: str, column: Any, *, is_id: bool, between: str) -> Any:
    """Return a typed column as text, a `Column`; null is empty.

    Arguments as for `mmbase.tables.Table.read`.

    Raises:
        DataError: Of a type that is no text, such as floating-point numbers, which may have lost
            digits, or structures.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    try:
        text = None if is_id and not _is_id(pa, kind) else _text(pa, pc, column, between)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name!r} cannot be read as text ({error})") from error
    if text is None:
        lost = "; floating-point numbers may have lost digits" if pa.types.is_floating(kind) else ""
        what = f"{path}: column {name!r} has type {kind} (expected text or whole numbers)"
        raise DataError(what + lost)
    return text


def _is_id(pa: Any, kind: Any) -> bool:
    kinds = pa.types
    if kinds.is_dictionary(kind):
        return _is_id(pa, kind.value_type)
    if kinds.is_decimal(kind):
        return bool(kind.scale == 0)
    return bool(_is_text(pa, kind) or kinds.is_integer(kind) or kinds.is_null(kind))


def _is_text(pa: Any, kind: Any) -> bool:
    tests = (
        "string", "large_string", "string_view", "binary", "large_binary", "binary_view",
        "fixed_size_binary",
    )  # fmt: skip
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _text(pa: Any, pc: Any, column: Any, between: str) -> Any:
    """Return a chunked array as chunks of binary without nulls, or None where it is no text."""
    kinds, kind = pa.types, column.type
    if kinds.is_dictionary(kind):
        return _text(pa, pc, pc.cast(column, kind.value_type), between)
    if kinds.is_floating(kind) and pc.all(pc.is_null(column, nan_is_null=True)).as_py():
        # how data frames keep a text nobody has
        column = pa.chunked_array([pa.nulls(len(column), pa.binary())])
    elif _is_list(kinds, kind):
        chunks = [_joined(pa, pc, chunk, between) for chunk in column.chunks]
        return None if None in chunks else pa.chunked_array(chunks, pa.binary())
    elif not _is_text(pa, kind):
        plain = ("integer", "boolean", "decimal", "date", "timestamp", "null")
        if not any(getattr(kinds, f"is_{test}")(kind) for test in plain):
            return None
        column = pc.cast(column, pa.string())
    return pc.fill_null(pc.cast(column, pa.binary()), b"")


def _is_list(kinds: Any, kind: Any) -> bool:
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(kinds, f"is_{test}")(kind) for test in tests)


def _joined(pa: Any, pc: Any, lists: Any, between: str) -> Any:
    """Return the texts of each list joined, lists of lists alike; what is empty is left out."""
    inner = _text(pa, pc, pa.chunked_array([pc.list_flatten(lists)]), between)
    if inner is None:
        return None
    parts = inner.combine_chunks()
    keep = pc.greater(pc.binary_length(parts), 0)
    rows = np.asarray(pc.filter(pc.list_parent_indices(lists), keep))
    ends = np.cumsum(np.bincount(rows, minlength=len(lists)))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    kept = pa.ListArray.from_arrays(offsets, pc.filter(parts, keep))
    return pc.binary_join(kept, pa.scalar(between.encode(), pa.binary()))
