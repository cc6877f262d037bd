"""The source of an import, and its result: the matrix and the item of each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import RowIds, ids_from_dataset, ids_from_file, sha256_of


@dataclass(frozen=True)
class Source:
    """What to import, as named on the command line.

    Attributes:
        path: The file, or the folder of files.
        ids: The file with the items of the rows (`mmx.vectors.ids.ids_from_file`).
        id_column: Column of ids, in `ids` or in the Parquet file.
        row_column: Column of row numbers in `ids`.
        data: A dataset folder whose item ids are exactly 0 … n-1, instead of `ids`.
        columns: Columns of the Parquet file that hold the numbers, names or patterns such as `f*`;
            empty: the only list column, or the only group of numeric ones.
        tensor: Name of the tensor in a safetensors file that holds several.
        dataset: Key of the dataset, or of a group of one vector per item, in an HDF5 file.
    """

    path: Path
    ids: Path | None = None
    id_column: str | None = None
    row_column: str | None = None
    data: Path | None = None
    columns: tuple[str, ...] = ()
    tensor: str | None = None
    dataset: str | None = None


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


def checked(where: str, features: NDArray[Any]) -> NDArray[Any]:
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
        f"{source.path.name}: {counted(n_rows, 'row')}, and nothing says which row is which item; "
        "give --ids FILE, or --data DIR if the item ids of that dataset are exactly 0 … "
        f"{n_rows - 1}"
    )


def known_by_row(
    source: Source, features: NDArray[Any], record: dict[str, Any] | None = None
) -> Vectors:
    """The vectors of a file that has no ids, with those that the source names."""
    ids = _ids_of_rows(source, len(features))
    record = {**(record or {}), "ids": ids.record}
    absent = np.zeros(len(features), dtype=bool)
    return Vectors(ids.ids, features, sha256_of(source.path), absent, record, ids.notes)


def refuse(source: Source, format_name: str, *options: str) -> None:
    """Refuse options that a format does not have: ignoring them silently would be wrong."""
    for option in options:
        if getattr(source, option):
            flag = "column" if option == "columns" else option.replace("_", "-")
            raise UsageError(f"--{flag}: has no meaning for --format {format_name}")
