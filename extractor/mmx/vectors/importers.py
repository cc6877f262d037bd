"""Feature files that people already have, into a store.

Nothing is changed on the way but the number format, and nothing is guessed: whether NaN or zeros
mean "missing" is said by a flag, and rows that cannot be stored as they are stop the import before
anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmbase.progress import Progress, Silent, Task
from mmx import __version__
from mmx.errors import DataError
from mmx.vectors.ids import EXAMPLES
from mmx.vectors.readers import FORMATS
from mmx.vectors.sources import Source, Vectors

if TYPE_CHECKING:
    from mmstore import FeatureSetWriter

BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Imported:
    """The result of an import: the set's file, content digest and size.

    `missing` of the `rows` have no vector; `already` tells that nothing had to be written.
    """

    path: Path
    digest: str
    rows: int
    missing: int
    dim: int
    already: bool


def import_features(
    format_name: str,
    source: Source,
    out: Path,
    *,
    modality: str,
    name: str,
    dtype: str = "float32",
    nan_is_missing: bool = False,
    zero_is_missing: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Write the vectors of `source` as the set `modality/name` of the store `out`.

    Vectors are stored as `dtype` and pass through float32 first. Rows with any NaN are stored as
    missing with `nan_is_missing`, and refused otherwise; rows of zeros are vectors like any other,
    or missing with `zero_is_missing`. A set of that name that was made otherwise is replaced with
    `restart`; one of the same import is left as it is, or finished.

    Raises:
        DataError: vectors or ids that cannot be stored as they are; nothing is written then.
        UsageError: an option that does not exist or does not fit the format.
        mmstore.StoreError: the set cannot be written.
    """
    from mmstore import FeatureSetWriter, FeatureStore

    progress = progress or Silent()
    path = FeatureStore(out).path(modality, name)
    vectors = FORMATS[format_name](source)
    for note in vectors.notes:
        progress.note(note)
    missing, notes = _missing_rows(
        source.path, vectors, nan_is_missing=nan_is_missing, zero_is_missing=zero_is_missing
    )
    for note in notes:
        progress.note(note)
    _check_range(source.path, vectors, missing, dtype)
    n_rows, dim = vectors.features.shape
    provenance = {
        "extractor": f"import-{format_name}",
        "backend": "import",
        "importer": {
            "format": format_name,
            "file": source.path.name,
            "file_sha256": vectors.sha256,
            "dtype": str(vectors.features.dtype),
            "nan_is_missing": nan_is_missing,
            "zero_is_missing": zero_is_missing,
            **vectors.record,
        },
        "tool": {"name": "mmx", "version": __version__},
        "libraries": {"numpy": np.__version__},
    }
    with (
        FeatureSetWriter(
            path,
            modality=modality,
            dim=dim,
            ids=vectors.ids,
            dtype=dtype,
            provenance=provenance,
            restart=restart,
        ) as writer,
        progress.task(f"{modality}/{name}", n_rows) as task,
    ):
        already = writer.finished
        if not already:
            _write(writer, vectors.features, missing, task)
        digest = str(writer.finish())
    return Imported(path, digest, n_rows, int(missing.sum()), dim, already)


def _write(
    writer: FeatureSetWriter, features: NDArray[Any], missing: NDArray[np.bool_], task: Task
) -> None:
    """Write the rows that are not there yet."""
    pending = np.zeros(len(missing), dtype=bool)
    pending[writer.pending] = True
    for start, block in _blocks(features):
        rows = np.arange(start, start + len(block))
        wanted = pending[rows] & ~missing[rows]
        writer.write(rows[wanted], _as_float32(block[wanted]))
        writer.mark_missing(rows[pending[rows] & missing[rows]])
        task.advance(len(block))


# ------------------------------------------------------------------------------------------------
# policies


def _blocks(features: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Consecutive pieces of the matrix in memory, each with its first row."""
    step = max(1, BLOCK_BYTES // max(1, features.shape[1] * features.dtype.itemsize))
    for start in range(0, len(features), step):
        yield start, np.asarray(features[start : start + step])


def _as_float32(block: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what does not fit was found by _check_range
        return np.ascontiguousarray(block, dtype=np.float32)


def _missing_rows(
    path: Path, vectors: Vectors, *, nan_is_missing: bool, zero_is_missing: bool
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The rows without a vector, and notes about them; unexplained NaN and infinity are refused."""
    parts = [
        (np.isnan(block).any(1), np.isinf(block).any(1), ~block.any(1))
        for _, block in _blocks(vectors.features)
    ]
    nan, infinite, zero = (
        np.concatenate(column) & ~vectors.absent for column in zip(*parts, strict=True)
    )
    total = f"{len(nan):,}"
    if infinite.any():
        raise DataError(
            f"{path.name}: {int(infinite.sum()):,} of {total} rows hold infinity "
            f"({_examples(vectors.ids, infinite)}); no such number can be stored: repair or remove "
            "these rows"
        )
    if nan.any() and not nan_is_missing:
        raise DataError(
            f"{path.name}: {int(nan.sum()):,} of {total} rows hold NaN "
            f"({_examples(vectors.ids, nan)}); repair them, or have them stored as missing with "
            "--nan-is-missing"
        )
    missing = vectors.absent | nan
    notes = []
    if nan.any():
        notes.append(
            f"{counted(int(nan.sum()), 'row with NaN is', 'rows with NaN are')} stored as missing"
        )
    if zero.any() and zero_is_missing:
        missing |= zero
        notes.append(
            f"{counted(int(zero.sum()), 'row of zeros is', 'rows of zeros are')} stored as missing"
        )
    elif zero.any():
        notes.append(
            f"{counted(int(zero.sum()), 'row is', 'rows are')} all zeros "
            f"({_examples(vectors.ids, zero)}) and stay as they are; if zeros mean that there is "
            "no content, say --zero-is-missing"
        )
    return missing, tuple(notes)


def _check_range(path: Path, vectors: Vectors, missing: NDArray[np.bool_], dtype: str) -> None:
    """Refuse numbers that the stored type can't hold, and integers that float32 would change."""
    limit = float(np.finfo(dtype).max)
    whole = vectors.features.dtype.kind in "iu"
    for start, block in _blocks(vectors.features):
        present = block[~missing[start : start + len(block)]]
        largest = float(np.abs(present.astype(np.float64)).max()) if present.size else 0.0
        if largest > limit:
            cure = "; store it with --dtype float32" if dtype == "float16" else "; rescale it"
            raise DataError(
                f"{path.name}: holds {largest:g}, more than {dtype} can ({limit:g}){cure}"
            )
        large = whole and largest > 2**24
        if large and (present != present.astype(np.float32).astype(present.dtype)).any():
            raise DataError(
                f"{path.name}: holds whole numbers that float32 would change (up to {largest:.0f})"
            )


def _examples(ids: list[str], rows: NDArray[np.bool_]) -> str:
    found = np.flatnonzero(rows)
    shown = ", ".join(f"row {row} = {ids[row]!r}" for row in found[:EXAMPLES].tolist())
    return shown + (", …" if len(found) > EXAMPLES else "")
