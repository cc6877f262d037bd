"""Feature sets for other programs: .npy, a folder of .npy files, Parquet, safetensors, CSV.

The ids go with the vectors: in a column where the format has columns, else in a list beside the
file. Numbers are written so that reading them gives the same float. A file appears under its name
when it is complete.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmbase.outputs import already, new_file, new_folder
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import is_id_name

if TYPE_CHECKING:
    from mmstore import FeatureSet

NewOutput = Callable[[Path], AbstractContextManager[Path]]
_LONGEST_NAME = 240  # bytes; file systems allow 255, and `.npy` comes on top
_FORBIDDEN = set('/\\<>:"|?*')


@dataclass(frozen=True)
class Exported:
    """The result of an export: a file or folder, and the list of ids unless they are inside.

    `left_out` rows without a vector are not among the `rows` written.
    """

    path: Path
    ids: Path | None
    rows: int
    left_out: int


@dataclass(frozen=True)
class _Matrix:
    """Ids and `features (n, dim)` to write, and the set's name for messages."""

    ids: list[str]
    features: NDArray[Any]
    where: str


def export_features(
    features: FeatureSet,
    format_name: str,
    out: Path,
    *,
    absent: str = "skip",
    mapping: Path | None = None,
) -> Exported:
    """Write a feature set in another format.

    Args:
        features: A dense set of items.
        format_name: One of `FORMATS`.
        out: The file, or for `npy-folder` the folder; there at most with the same content.
        absent: `skip` rows without a vector, or write them as NaN (`nan`) or zeros (`zero`).
        mapping: For `npy-folder`: name the files by row number and write here which is whose.

    Raises:
        DataError: the set or its ids cannot be written in this format, or `out` is there already
            with other content.
        UsageError: an option that does not fit the format.
    """
    where = str(features.path)
    if mapping is not None and format_name != "npy-folder":
        raise UsageError(
            f"--mapping: has no meaning for --format {format_name}, which keeps the ids anyway"
        )
    if features.source != "item" or features.layout != "dense":
        raise DataError(
            f"{where}: a {features.layout} set of {features.source}s (expected one vector per "
            "item); read it with mmstore.FeatureSet"
        )
    ids = [str(item_id) for item_id in features.ids]
    values, present = features.matrix(ids, dtype=features.dtype)
    if absent == "skip":
        ids = [item_id for item_id, there in zip(ids, present.tolist(), strict=True) if there]
        values = values[present]
    else:
        values[~present] = np.nan if absent == "nan" else 0.0
    matrix = _Matrix(ids, values, where)
    if mapping is None:
        beside = FORMATS[format_name](matrix, out)
    else:
        beside = _write_folder(matrix, out, mapping)
    return Exported(out, beside, len(ids), int(len(present) - len(ids)))


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _id_list(ids: list[str]) -> list[str]:
    """One id per line; a first id that would be taken for a header gets one above it."""
    return ["item_id", *ids] if ids and is_id_name(ids[0]) else ids


def _beside(matrix: _Matrix, out: Path) -> Path:
    """Where the id list of `out` goes; ids that do not fit in a line are refused."""
    _require_lines(matrix)
    path = out.with_name(f"{out.stem}.ids.txt")
    if path.exists() and path.read_bytes() != _text(_id_list(matrix.ids)):
        raise DataError(
            f"{path}: is there already, and the ids would go there; delete it, or choose another "
            "name"
        )
    return path


@contextmanager
def _with_ids(out: Path, ids: Path, lines: list[str], *, new: NewOutput) -> Iterator[Path]:
    """Give a path to write to, for an output that appears after its list of ids."""
    with new(out) as scratch:
        yield scratch
        already(scratch, out)
        with new_file(ids) as beside:
            beside.write_bytes(_text(lines))


def _require_lines(matrix: _Matrix) -> None:
    for row, item_id in enumerate(matrix.ids):
        if set(item_id) & set("\t\n\r") or (row == 0 and item_id.startswith("\ufeff")):
            raise DataError(
                f"{matrix.where}: id {item_id!r} does not fit in a line of text; use --format "
                "parquet"
            )


def _write_npy(matrix: _Matrix, out: Path) -> Path:
    ids = _beside(matrix, out)
    lines = _id_list(matrix.ids)
    with _with_ids(out, ids, lines, new=new_file) as scratch, scratch.open("wb") as stream:
        np.save(stream, matrix.features, allow_pickle=False)
    return ids


def _write_safetensors(matrix: _Matrix, out: Path) -> Path:
    from safetensors.numpy import save_file

    ids = _beside(matrix, out)
    tensors = {"features": np.ascontiguousarray(matrix.features)}
    with _with_ids(out, ids, _id_list(matrix.ids), new=new_file) as scratch:
        save_file(tensors, scratch, metadata={"ids": ids.name})
    return ids


def _write_parquet(matrix: _Matrix, out: Path) -> None:
    """Columns `item_id` (text) and `features` (list of float32, which holds every float16)."""
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(matrix.features.astype(np.float32, copy=False).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, matrix.features.shape[1])
    table = pa.table({"item_id": pa.array(matrix.ids, pa.string()), "features": vectors})
    with new_file(out) as scratch:
        parquet.write_table(table, scratch)


def _write_csv(matrix: _Matrix, out: Path) -> None:
    """`item_id,f0,f1,…` with nine significant digits, which give every float32 back."""
    import csv

    with new_file(out) as scratch, scratch.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["item_id", *(f"f{column}" for column in range(matrix.features.shape[1]))])
        for item_id, row in zip(matrix.ids, matrix.features, strict=True):
            cells = ("" if value != value else f"{value:.9g}" for value in row.tolist())  # NaN: ""
            writer.writerow([item_id, *cells])


def _write_folder(matrix: _Matrix, out: Path, mapping: Path | None) -> Path | None:
    """One file of shape (1, dim) per item, named by its id, or by its row with a mapping."""
    if mapping is None:
        names = [f"{item_id}.npy" for item_id in matrix.ids]
        _require_file_names(matrix)
    else:
        _require_lines(matrix)
        width = len(str(max(1, len(matrix.ids) - 1)))
        names = [f"{row:0{width}d}.npy" for row in range(len(matrix.ids))]
    pairs = zip(matrix.ids, names, strict=True)
    lines = ["item_id\tfile", *(f"{item_id}\t{name}" for item_id, name in pairs)]
    with (
        new_folder(out)
        if mapping is None
        else _with_ids(out, mapping, lines, new=new_folder) as scratch
    ):
        for name, row in zip(names, matrix.features, strict=True):
            np.save(scratch / name, row[None], allow_pickle=False)
    return mapping


def _require_file_names(matrix: _Matrix) -> None:
    """Refuse ids that are no file names everywhere, or that some systems take for one name."""
    seen: dict[str, str] = {}
    for item_id in matrix.ids:
        if not _is_file_name(item_id):
            raise DataError(
                f"{matrix.where}: id {item_id!r} is no safe file name; number the files with "
                "--mapping FILE, which then says whose each is"
            )
        twin = seen.setdefault(unicodedata.normalize("NFC", item_id).casefold(), item_id)
        if twin != item_id:
            raise DataError(
                f"{matrix.where}: ids {twin!r} and {item_id!r} are one file name on some systems; "
                "number the files with --mapping FILE, which then says whose each is"
            )


def _is_file_name(item_id: str) -> bool:
    return (
        len(item_id.encode()) <= _LONGEST_NAME
        and not item_id.startswith(".")
        and item_id == item_id.strip()
        and item_id.isprintable()
        and not set(item_id) & _FORBIDDEN
    )


FORMATS: dict[str, Callable[[_Matrix, Path], Path | None]] = {
    "npy": _write_npy,
    "npy-folder": lambda matrix, out: _write_folder(matrix, out, None),
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
    "csv": _write_csv,
}
"""Writers by the name that `mmx store export --format` takes."""
