"""Feature files that people already have, as matrices whose rows are known by id.

Read are .npy, a folder of .npy files, Parquet and safetensors. Nothing in a file is ever executed,
and which row is which item is said by an id list, a file name or a column, never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import ITEM_ID_COLUMNS
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import (
    EXAMPLES,
    RowIds,
    ids_from_dataset,
    ids_from_file,
    read_records,
    sha256_of,
)


@dataclass(frozen=True)
class Source:
    """What to import, as the user said it.

    Attributes:
        path: The file, or the folder of files.
        ids: The file with the items of the rows (`mmx.vectors.ids.ids_from_file`).
        id_column: Column of ids, in `ids` or in the Parquet file.
        row_column: Column of row numbers in `ids`.
        data: A dataset folder whose item ids are exactly 0 … n-1, instead of `ids`.
        columns: Columns of the Parquet file that hold the numbers; empty: the only list column, or
            all numeric ones.
        tensor: Name of the tensor in a safetensors file that holds several.
    """

    path: Path
    ids: Path | None = None
    id_column: str | None = None
    row_column: str | None = None
    data: Path | None = None
    columns: tuple[str, ...] = ()
    tensor: str | None = None


@dataclass(frozen=True)
class Vectors:
    """A matrix whose rows are known by id.

    Attributes:
        ids: Item ids, n of them.
        features: Shape (n, dim), any real number type; may be memory-mapped.
        sha256: SHA-256 of the source file, or of the `sha256sum` listing of a folder.
        absent: Rows that the source itself marks as having no vector, shape (n,).
        record: How the source was read, for the provenance.
        notes: Guesses, one line each.
    """

    ids: list[str]
    features: NDArray[Any]
    sha256: str
    absent: NDArray[np.bool_]
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _checked(where: str, features: NDArray[Any]) -> NDArray[Any]:
    """Return `features` if it is a matrix of real numbers with a row and a column."""
    if features.dtype.kind not in "fiu" or features.dtype.itemsize > 8:
        raise DataError(
            f"{where}: holds {features.dtype} (expected real numbers of at most 64 bits)"
        )
    if features.ndim != 2:
        raise DataError(
            f"{where}: shape {features.shape} (expected items x dimensions); reshape it and save "
            "it again"
        )
    if 0 in features.shape:
        raise DataError(f"{where}: is empty (shape {features.shape})")
    return features


def _ids_of_rows(source: Source, n_rows: int) -> RowIds:
    if source.ids is not None and source.data is not None:
        raise UsageError("--ids and --data: both say which row is which item; give one of them")
    if source.ids is not None:
        return ids_from_file(
            source.ids, n_rows, id_column=source.id_column, row_column=source.row_column
        )
    if source.data is not None:
        return ids_from_dataset(source.data, n_rows, matrix=source.path.name)
    raise UsageError(
        f"{source.path.name}: {n_rows:,} rows, and nothing says which row is which item; give "
        f"--ids FILE, or --data DIR if the item ids of that dataset are exactly 0 … {n_rows - 1}"
    )


def _known_by_row(
    source: Source, features: NDArray[Any], record: dict[str, Any] | None = None
) -> Vectors:
    """The vectors of a file that has no ids, with those that the source names."""
    ids = _ids_of_rows(source, len(features))
    record = {**(record or {}), "ids": ids.record}
    absent = np.zeros(len(features), dtype=bool)
    return Vectors(ids.ids, features, sha256_of(source.path), absent, record, ids.notes)


def _refuse(source: Source, format_name: str, *options: str) -> None:
    """Refuse options that a format does not have: ignoring them silently would be wrong."""
    for option in options:
        if getattr(source, option):
            flag = "column" if option == "columns" else option.replace("_", "-")
            raise UsageError(f"--{flag}: has no meaning for --format {format_name}")


def load_npy(path: Path, *, mapped: bool = True) -> NDArray[Any]:
    """Read the array in a .npy file; Python objects in it are refused, never unpickled.

    Raises:
        DataError: no such file, not .npy, truncated, or an array of objects.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not a .npy file of plain numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path.name}: an archive of arrays; save the one you mean with numpy.save")
    return array


def read_npy(source: Source) -> Vectors:
    """Read one 2-D array; the ids come from a file, or are row numbers that a dataset confirms."""
    _refuse(source, "npy", "columns", "tensor")
    return _known_by_row(source, _checked(source.path.name, load_npy(source.path)))


def read_npy_folder(source: Source) -> Vectors:
    """Read one .npy file per item, of shape (dim,) or (1, dim), named `<id>.npy`.

    With `ids`, a table of two columns, id and file name, says which file is whose instead.
    """
    _refuse(source, "npy-folder", "columns", "tensor", "data", "row_column", "id_column")
    if not source.path.is_dir():
        raise DataError(
            f"{source.path}: no such folder (--format npy-folder reads one .npy file per item)"
        )
    entries = sorted(source.path.iterdir())
    files = {path.name: path for path in entries if path.name.endswith(".npy") and path.is_file()}
    if not files:
        raise DataError(f"{source.path}: no .npy files in it")
    notes: tuple[str, ...] = ()
    if n_others := len(entries) - len(files):
        notes = (f"{n_others:,} other files in {source.path.name} are left aside",)
    record: dict[str, Any] = {"files": len(files)}
    if source.ids is None:
        by_id = {name.removesuffix(".npy"): path for name, path in files.items()}
    else:
        by_id = _mapped_files(source.ids, files)
        record["ids"] = {"file": source.ids.name, "sha256": sha256_of(source.ids)}
    rows: list[NDArray[Any]] = []
    for path in by_id.values():
        array = load_npy(path, mapped=False)
        if array.ndim == 2 and len(array) == 1:
            array = array[0]
        first = rows[0] if rows else array
        if array.ndim != 1 or array.shape != first.shape or array.dtype != first.dtype:
            shape = first.shape if first.ndim == 1 else "(dim,) or (1, dim)"
            raise DataError(
                f"{path.name}: {array.dtype} of shape {array.shape} (expected one vector like that "
                f"of the first file, {first.dtype} of shape {shape})"
            )
        rows.append(array)
    listing = "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items())
    digest = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    features = _checked(source.path.name, np.stack(rows))
    return Vectors(list(by_id), features, digest, np.zeros(len(rows), dtype=bool), record, notes)


def _mapped_files(mapping: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    records = read_records(mapping) if mapping.is_file() else []
    if records and records[0][-1] not in files:
        del records[0]  # a header
    by_id: dict[str, Path] = {}
    for cells in records:
        if len(cells) != 2 or cells[1] not in files:
            raise DataError(
                f"{mapping.name}: {' '.join(cells)!r} (expected an id and the name of a file in "
                "the folder)"
            )
        if cells[0] in by_id:
            raise DataError(f"{mapping.name}: id {cells[0]!r} occurs twice; ids must be unique")
        by_id[cells[0]] = files[cells[1]]
    if len(set(by_id.values())) != len(files):
        raise DataError(
            f"{mapping}: names {len(set(by_id.values())):,} of the {len(files):,} files; it must "
            "name each once"
        )
    return by_id


def read_parquet(source: Source) -> Vectors:
    """Read an id column, and one list column (nulls are missing rows) or numeric columns."""
    import pyarrow as pa
    from pyarrow import parquet

    _refuse(source, "parquet", "ids", "data", "row_column", "tensor")
    name = source.path.name
    try:
        table = parquet.read_table(source.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source.path}: not a Parquet file that can be read ({error})") from error
    id_column = source.id_column or next(
        (column for column in ITEM_ID_COLUMNS if column in table.column_names), None
    )
    columns = ", ".join(table.column_names)
    if id_column is None:
        raise UsageError(f"{name}: which column holds the ids? --id-column NAME (got {columns})")
    for column in (id_column, *source.columns):
        if table.column_names.count(column) != 1:
            raise UsageError(f"{name}: no single column {column!r} (got {columns})")
    kind = table.schema.field(id_column).type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    ):
        raise DataError(
            f"{name}: ids in column {id_column!r} are {kind} (expected text, or whole numbers)"
        )
    ids = table.column(id_column).cast(pa.string()).to_pylist()
    if None in ids:
        raise DataError(f"{name}: row {ids.index(None)} has no id")
    wanted = source.columns or _number_columns(table, id_column)
    if not wanted:
        raise DataError(f"{name}: no list column and no numeric columns (got {columns})")
    if _is_list(table.schema.field(wanted[0]).type):
        if len(wanted) > 1:
            raise UsageError(
                f"{name}: several list columns ({', '.join(wanted)}); choose one with --column NAME"
            )
        features, absent = _list_column(name, table.column(wanted[0]))
    else:
        parts = [_numbers(name, column, table.column(column)) for column in wanted]
        features, absent = np.stack(parts, axis=1), np.zeros(len(ids), dtype=bool)
    record = {
        "id_column": id_column,
        "columns": list(wanted) if len(wanted) <= 8 else [wanted[0], "…", wanted[-1]],
    }
    notes = (f"{int(absent.sum()):,} null vectors are stored as missing",) if absent.any() else ()
    return Vectors(ids, _checked(name, features), sha256_of(source.path), absent, record, notes)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _number_columns(table: Any, id_column: str) -> tuple[str, ...]:
    """Name all list columns, or else all numeric ones, without the ids."""
    import pyarrow as pa

    kinds = {
        name: table.schema.field(name).type for name in table.column_names if name != id_column
    }
    lists = tuple(name for name, kind in kinds.items() if _is_list(kind))
    is_float, is_int = pa.types.is_floating, pa.types.is_integer
    return lists or tuple(name for name, kind in kinds.items() if is_float(kind) or is_int(kind))


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

    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise DataError(f"{name}: {column!r} holds {values.type} (expected numbers)")
    return np.asarray(
        values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    )


def read_safetensors(source: Source) -> Vectors:
    """Read one 2-D tensor of a safetensors file; the ids come from a file, as for .npy."""
    from safetensors import SafetensorError, safe_open

    _refuse(source, "safetensors", "columns")
    name = source.path.name
    try:
        with safe_open(source.path, framework="numpy") as file:
            names = sorted(file.keys())
            if source.tensor is None and len(names) != 1:
                raise UsageError(
                    f"{name}: {len(names)} tensors ({', '.join(names)}); choose one with --tensor "
                    "NAME"
                )
            tensor = source.tensor or names[0]
            if tensor not in names:
                raise UsageError(f"{name}: no tensor {tensor!r} (got {', '.join(names)})")
            bfloat16 = file.get_slice(tensor).get_dtype() == "BF16"
            features = _bfloat16(source.path, tensor) if bfloat16 else file.get_tensor(tensor)
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{name}: not a safetensors file of plain numbers ({error})") from error
    features = _checked(f"{name}:{tensor}", np.asarray(features))
    return _known_by_row(source, features, {"tensor": tensor})


def _bfloat16(path: Path, tensor: str) -> NDArray[np.float32]:
    """Read a bfloat16 tensor as float32, which holds every such number; numpy has no such type."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return np.asarray(file.get_tensor(tensor).float().numpy())


FORMATS: dict[str, Callable[[Source], Vectors]] = {
    "npy": read_npy,
    "npy-folder": read_npy_folder,
    "parquet": read_parquet,
    "safetensors": read_safetensors,
}
"""Readers by the name that `mmx store import --format` takes."""
