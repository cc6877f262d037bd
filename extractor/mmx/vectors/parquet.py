"""Vectors in a Parquet table or a folder of them: ids, and a column of lists or of numbers each.

Columns are not taken because they are numeric: an index that pandas wrote is none, and where the
numeric columns are of several kinds (`f0 … f383`, `price`), the user chooses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import ITEM_ID_COLUMNS, ROLES, columns_of
from mmbase.layout import counted
from mmbase.typed_tables import parquet_folder
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import EXAMPLES, sha256_of, sha256_of_files
from mmx.vectors.sources import Source, Vectors, checked, refuse

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_INDEX = re.compile(r"index|level_\d+|__index_level_\d+__|Unnamed: ?\d+")
"""Names that data frames give to an index written as a column."""


def read_parquet(source: Source) -> Vectors:
    """Read an id column, and one list column (nulls are missing rows) or numeric columns."""
    refuse(source, "parquet", "ids", "data", "row_column", "tensor", "dataset")
    name = source.path.name
    table, parts = _read(source.path)
    id_column = source.id_column or next(
        (column for column in ITEM_ID_COLUMNS if column in table.column_names), None
    )
    columns = ", ".join(table.column_names)
    if id_column is None:
        raise UsageError(f"{name}: which column holds the ids? --id-column NAME (got {columns})")
    wanted = _wanted(name, source.columns, table, id_column)
    for column in (id_column, *wanted):
        if table.column_names.count(column) != 1:
            raise UsageError(f"{name}: no single column {column!r} (got {columns})")
    ids = _ids(name, id_column, table.column(id_column))
    if _is_list(table.schema.field(wanted[0]).type):
        if len(wanted) > 1:
            raise UsageError(
                f"{name}: several list columns ({', '.join(wanted)}); choose one with --column NAME"
            )
        features, absent = _list_column(name, table.column(wanted[0]))
    else:
        numbers = [_numbers(name, column, table.column(column)) for column in wanted]
        features, absent = np.stack(numbers, axis=1), np.zeros(len(ids), dtype=bool)
    record: dict[str, Any] = {
        "id_column": id_column,
        "columns": list(wanted) if len(wanted) <= 8 else [wanted[0], "…", wanted[-1]],
    }
    notes = [f"ids: column {id_column!r} of {name}; vectors: {_shown(wanted)}"]
    if absent.any():
        notes.append(
            f"{counted(int(absent.sum()), 'null vector is', 'null vectors are')} stored as missing"
        )
    if parts:
        record["files"] = len(parts)
        names = {part.relative_to(source.path).as_posix(): part for part in parts}
        digest = sha256_of_files(names)
    else:
        digest = sha256_of(source.path)
    return Vectors(ids, checked(name, features), digest, absent, record, tuple(notes))


def _read(path: Path) -> tuple[Any, list[Path]]:
    """Return the table of a file, or of the parts in a folder, by name, and these parts."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if not path.is_dir():
            return parquet.read_table(path), []
        whole = parquet_folder(path)
        if not whole.files:
            raise DataError(f"{path}: no Parquet files in this folder")
        # What pandas says of its index is in each part, and not in what they have in common.
        about = parquet.read_schema(whole.files[0]).metadata
        return whole.to_table().replace_schema_metadata(about), [Path(one) for one in whole.files]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from error


def _ids(name: str, column: str, cells: Any) -> list[str]:
    import pyarrow as pa

    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer,
    )  # fmt: skip
    if not any(test(cells.type) for test in tests):
        raise DataError(
            f"{name}: ids in column {column!r} are {cells.type} (expected text, or whole numbers)"
        )
    ids: list[Any] = cells.cast(pa.string()).to_pylist()
    if None in ids:
        raise DataError(f"{name}: row {ids.index(None)} has no id")
    return ids


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _wanted(name: str, given: Sequence[str], table: Any, id_column: str) -> tuple[str, ...]:
    """Return the columns asked for, or all list columns, or the only group of numeric ones."""
    names = table.column_names
    if given:
        found: list[str] = []
        for one in given:
            fitting = [one] if one in names else [n for n in names if fnmatchcase(n, one)]
            if not fitting:
                raise UsageError(f"{name}: no single column {one!r} (got {', '.join(names)})")
            found += fitting
        return tuple(dict.fromkeys(found))
    index = {one for one in (table.schema.pandas_metadata or {}).get("index_columns", ())
             if isinstance(one, str)}  # fmt: skip
    kinds = {
        column: table.schema.field(column).type
        for column in dict.fromkeys(names)
        if column != id_column and column not in index and names.count(column) == 1
    }
    lists = tuple(column for column, kind in kinds.items() if _is_list(kind))
    if lists:
        return lists
    groups = _groups([column for column, kind in kinds.items() if _is_numeric(kind)])
    if not groups:
        raise DataError(f"{name}: no list column and no numeric columns (got {', '.join(names)})")
    if len(groups) > 1:
        told = "; ".join(map(_shown, groups))
        first = max(groups, key=len)
        pattern = _NUMBERED.sub(r"\1*\3", first[0], count=1) if len(first) > 1 else first[0]
        raise UsageError(
            f"{name}: which columns hold the vectors? The numeric ones are of {len(groups)} kinds: "
            f"{told}; choose with --column, names or patterns, e.g. --column '{pattern}'"
        )
    _refuse_gaps(name, groups[0], kinds)
    return groups[0]


def _refuse_gaps(name: str, taken: Sequence[str], kinds: dict[str, Any]) -> None:
    """Refuse `f0, f2` as vectors where there is an `f1` that holds something else than numbers."""
    numbered = _NUMBERED.fullmatch(taken[0])
    for column, kind in kinds.items():
        other = _NUMBERED.fullmatch(column)
        if column in taken or not (numbered and other):
            continue
        if other.group(1, 3) == numbered.group(1, 3):
            raise DataError(
                f"{name}: {column!r} holds {kind}, and {_shown(taken)} hold numbers; write it as "
                "numbers, or choose the columns with --column"
            )


def _is_numeric(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
    return any(is_kind(kind) for is_kind in tests)


def _groups(columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Divide columns by what their names have in common: numbered ones by all but the number.

    Names of an index or of interactions (a rating, a time) are a group each.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        numbered = _NUMBERED.fullmatch(column)
        if _INDEX.fullmatch(column) or any(columns_of(role, [column]) for role in ROLES):
            key: tuple[str, ...] = (column,)
        else:
            key = numbered.group(1, 3) if numbered else ()
        groups.setdefault(key, []).append(column)
    return [tuple(group) for group in groups.values()]


def _shown(columns: Sequence[str]) -> str:
    if len(columns) <= EXAMPLES:
        return ", ".join(columns)
    return f"{columns[0]} … {columns[-1]} ({len(columns):,} columns)"


def _list_column(name: str, column: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    absent = np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    present = array.filter(pa.array(~absent))
    lengths = sorted(pc.list_value_length(present).unique().to_pylist())
    if not lengths:
        raise DataError(f"{name}: the list column holds only nulls")
    if len(lengths) > 1:
        raise DataError(
            f"{name}: vectors of {len(lengths)} different lengths {lengths[:EXAMPLES]} (expected "
            "one)"
        )
    values = _numbers(name, "the list column", present.flatten())
    features = np.zeros((len(array), lengths[0]), dtype=values.dtype)
    features[~absent] = values.reshape(len(present), -1)
    return features, absent


def _numbers(name: str, column: str, values: Any) -> NDArray[Any]:
    """Return the numbers of an Arrow column; a null reads as NaN, to which the NaN rule applies."""
    import pyarrow as pa

    if not _is_numeric(values.type):
        raise DataError(f"{name}: {column!r} holds {values.type} (expected numbers)")
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    return np.asarray(
        values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    )
