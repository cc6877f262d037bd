"""The unfinished set: making it, going on with it, and making the finished one of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore import hdf5
from mmstore.errors import (
    DamagedFeatureSet,
    NotAFeatureSet,
    ProvenanceMismatch,
    StoreError,
    StoreFull,
    StoreWarning,
)
from mmstore.hashing import file_digest
from mmstore.hdf5 import Place, translated
from mmstore.ids import Bytes, block_rows, spans
from mmstore.schema import Header, canonical_json
from mmstore.side_files import Paths, RowFile, VectorLog, replace_synced, restore_undo, save_undo
from mmstore.spec import (
    CREATED,
    DENSE,
    ERRORS,
    FEATURES,
    FORMAT_VERSION,
    ID_DATASETS,
    OFFSETS,
    RAGGED,
    STATUS,
    VERSIONS,
    WRITING,
    Status,
)

START, LENGTH = f"{WRITING}/start", f"{WRITING}/length"


_MARGIN = 1 << 20  # attributes, group and chunk tables, alignment

Errors = tuple[NDArray[np.int64], list[bytes]]
"""The corrupt rows, ascending, and the message of each."""


def create_partial(paths: Paths, header: Header, columns: list[Bytes]) -> None:
    """Make a partial set with every row pending.

    Raises:
        StoreFull: The vectors of a dense set are larger than the free space.
    """
    needed = header.rows * header.vector_bytes if header.layout == DENSE else 0
    free = shutil.disk_usage(paths.final.parent).free
    if needed > free:
        raise StoreFull(
            f"{paths.final}: needs {needed / 1e9:.2f} GB for {header.rows} x {header.dim} "
            f"{header.dtype} vectors "
            f"({free / 1e9:.2f} GB are free); free space on that disk, or store float16"
        )
    with hdf5.new_file(paths.new, _size(header, columns)) as file:
        _fill_new(file, header, columns, np.zeros(header.rows, np.uint8))
    replace_synced(paths.new, paths.partial)


def copy_as_partial(
    paths: Paths, header: Header, columns: list[Bytes], status: NDArray[np.uint8]
) -> None:
    """Make a partial set out of the finished one, with another status."""
    header = replace(header, complete=False, content_digest="", format_version=FORMAT_VERSION)
    if header.layout == DENSE:
        shutil.copyfile(paths.final, paths.new)
        with hdf5.edit_file(paths.new, _MARGIN) as file:
            del file[ERRORS]
            hdf5.write_header(file, header)
            place = hdf5.place_of(file, paths.new, STATUS)
        rows = RowFile(paths.new, {STATUS: place})
        rows.put(STATUS, np.arange(header.rows), status)
        rows.close()
    else:
        with hdf5.open_file(paths.final) as file:
            features, offsets = file[FEATURES], np.asarray(file[OFFSETS][:])
            log = VectorLog(paths.vectors, header.dim, header.dtype, 0)
            for start, stop in spans(features.shape[0], block_rows(header.vector_bytes)):
                log.append(features[start:stop])
            log.sync()
            log.close()
        with hdf5.new_file(paths.new, _size(header, columns)) as file:
            _fill_new(file, header, columns, status, offsets)
    replace_synced(paths.new, paths.partial)


def finish_in_place(paths: Paths, header: Header, status: NDArray[np.uint8], errors: Errors) -> str:
    """Dense: add what the partial set lacks, guarded by the undo copy, rename it, and return its digest.

    Args:
        paths: Where the set lies; nobody else has it open.
        header: Its header so far.
        status: Status of each row, shape (n,), none pending.
        errors: The corrupt rows and their messages.
    """
    with hdf5.open_file(paths.partial) as file:
        digest = file_digest(file, header, status, None)
        place = hdf5.place_of(file, paths.partial, FEATURES)
    save_undo(paths, place.start, place.stop)
    with hdf5.edit_file(paths.partial, _MARGIN + _error_bytes(errors)) as file:
        hdf5.create_errors(file, *errors)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.partial, paths.final)
    return digest


def assemble(
    paths: Paths, header: Header, log: VectorLog, status: NDArray[np.uint8], errors: Errors
) -> str:
    """Ragged: copy the vectors in row order from the log into a new file, rename it, and return its digest.

    Args:
        paths: Where the set lies.
        header: Its header so far.
        log: Its vectors.
        status: Status of each row, shape (n,), none pending.
        errors: The corrupt rows and their messages.
    """
    present = status == Status.OK
    with hdf5.open_file(paths.partial) as partial:
        start, length = np.asarray(partial[START][:]), np.asarray(partial[LENGTH][:])
        columns = [hdf5.read_text(partial[name]) for name in ID_DATASETS[header.source]]
    length[~present] = 0
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(length)))  # (n + 1,)
    vectors = int(offsets[-1])
    size = _size(header, columns) + vectors * header.vector_bytes * 65 // 64 + _error_bytes(errors)
    with hdf5.new_file(paths.new, size) as file:
        for name, column in zip(ID_DATASETS[header.source], columns, strict=True):
            hdf5.create_text(file, name, column)
        file.create_dataset(STATUS, data=status)
        file.create_dataset(OFFSETS, data=offsets.astype("<i8"))
        features = hdf5.create_features(file, header, vectors)
        at = 0
        for block in log.gather(start[present], length[present]):
            features[at : at + len(block)] = block
            at += len(block)
        hdf5.create_errors(file, *errors)
        file.flush()
        digest = file_digest(file, header, status, offsets)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.new, paths.final)
    return digest


def _fill_new(
    file: Any,
    header: Header,
    columns: list[Bytes],
    status: NDArray[np.uint8],
    offsets: NDArray[np.int64] | None = None,
) -> None:
    """Everything that a partial file holds before its first row; `offsets` where the vector log is in row order."""
    hdf5.write_header(file, header)
    for name, column in zip(ID_DATASETS[header.source], columns, strict=True):
        hdf5.create_text(file, name, column)
    file.create_dataset(STATUS, data=status)
    if header.layout == RAGGED:
        offsets = np.zeros(header.rows + 1, np.int64) if offsets is None else offsets
        file.create_dataset(START, data=offsets[:-1].astype("<i8"))
        file.create_dataset(LENGTH, data=np.diff(offsets).astype("<i8"))
    hdf5.create_features(file, header, header.rows if header.layout == DENSE else 0)


def _size(header: Header, columns: list[Bytes]) -> int:
    """Upper bound of a partial file's bytes, without the vectors."""
    provenance = len(canonical_json(header.provenance).encode("utf-8"))
    return header.rows * (1 + 16) + sum(column.nbytes for column in columns) + provenance + _MARGIN


def _error_bytes(errors: Errors) -> int:
    rows, messages = errors
    return rows.size * (8 + max(map(len, messages), default=0))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An unfinished set of the wanted plan.

    Attributes:
        header: What it says about itself.
        status: Status of each row, shape (n,).
        places: Where the datasets lie that rows are written to.
        used_vectors: Ragged: one past the last vector of the log that a finished row refers to.
    """

    header: Header
    status: NDArray[np.uint8]
    places: dict[str, Place]
    used_vectors: int


def unfinished_set(paths: Paths, wanted: Header, columns: list[Bytes]) -> Unfinished | None:
    """The unfinished set at `paths`; None, with a warning, where it is beyond use and has to be begun anew.

    Raises:
        ProvenanceMismatch: It has another plan.
    """
    try:
        if paths.undo.exists():
            with translated(paths.undo):
                restore_undo(paths)
        file = hdf5.open_file(paths.partial)
    except (NotAFeatureSet, DamagedFeatureSet) as error:
        _begin_anew(error)
        return None
    with file:
        try:
            found, _ = hdf5.read_header(file, paths.partial)
            names = (FEATURES, STATUS) if found.layout == DENSE else (START, LENGTH, STATUS)
            places = {name: hdf5.place_of(file, paths.partial, name) for name in names}
            status = np.asarray(file[STATUS][:])
            if status.size and int(status.max()) > max(Status):
                raise DamagedFeatureSet(
                    f"{paths.partial}:/{STATUS}: holds {int(status.max())} (expected 0 … "
                    f"{max(Status)})"
                )
        except (NotAFeatureSet, DamagedFeatureSet) as error:
            _begin_anew(error)
            return None
        refuse_other_plan(found, wanted, file, columns, f"{paths.partial}: an unfinished set")
        used = _used_vectors(file, status) if found.layout == RAGGED else 0
    return Unfinished(found, status, places, used)


def finished_set(
    paths: Paths, wanted: Header, columns: list[Bytes], retry: Collection[Status]
) -> tuple[Header, NDArray[np.uint8], list[str]]:
    """Header and status, shape (n,), of the finished set at `paths`, and the keys of versions that differ.

    Raises:
        ProvenanceMismatch: It has another plan. Versions of programs may differ as long as it has
            no row to `retry`.
    """
    with hdf5.open_file(paths.final) as file:
        found, _ = hdf5.read_header(file, paths.final)
        status = np.asarray(file[STATUS][:])
        where, done = f"{paths.final}: a finished set", not np.isin(status, list(retry)).any()
        versions = refuse_other_plan(found, wanted, file, columns, where, any_versions=done)
        return found, status, versions


def _begin_anew(error: StoreError) -> None:
    warnings.warn(f"{error}; the unfinished set is begun anew", StoreWarning, stacklevel=6)


def _used_vectors(file: Any, status: NDArray[np.uint8]) -> int:
    used = 0
    for start, stop in spans(status.size, block_rows(16)):
        ends = file[START][start:stop] + file[LENGTH][start:stop]
        used = max(used, int(ends[status[start:stop] == Status.OK].max(initial=0)))
    return used


def refuse_other_plan(
    found: Header,
    wanted: Header,
    file: Any,
    columns: list[Bytes],
    where: str,
    *,
    any_versions: bool = False,
) -> list[str]:
    """Check that an existing file has the wanted plan.

    Args:
        found: Header of the existing file.
        wanted: Header that the writer would give it.
        file: The existing file, open.
        columns: The id columns that the writer would give it.
        where: The path and what it is, the beginning of the message.
        any_versions: Let the versions of programs differ.

    Returns:
        The keys of the versions that differ.

    Raises:
        ProvenanceMismatch: It has another one; says what differs.
    """
    differences = plan_differences(found, wanted)
    versions = [key for key, _ in differences if any_versions and f"{key}.".startswith(VERSIONS)]
    differences = [difference for difference in differences if difference[0] not in versions]
    if found.source == wanted.source and found.rows == wanted.rows:
        for name, column in zip(ID_DATASETS[found.source], columns, strict=True):
            differences += _column_difference(file[name], column, name)
    if not differences:
        return versions
    shown = "; ".join(f"{key}: {values}" for key, values in differences[:6])
    more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
    raise ProvenanceMismatch(
        f"{where} of another plan is in the way ({shown}{more}); run with --restart to replace it, "
        "or choose another --name",
        [key for key, _ in differences],
    )


def plan_differences(found: Header, wanted: Header) -> list[tuple[str, str]]:
    """What makes two plans differ, as `(key, "found, expected")`; creation time, progress and ids aside.

    Provenance is compared key by key, so the answer names `provenance.pooling` and not just
    `provenance`.
    """
    differences = []
    for key in ("modality", "name", "source", "layout", "dim", "dtype", "rows"):
        old, new = getattr(found, key), getattr(wanted, key)
        if old != new:
            differences.append((key, f"{old!r}, expected {new!r}"))
    old_leaves, new_leaves = dict(_leaves(found.provenance)), dict(_leaves(wanted.provenance))
    for key in sorted({*old_leaves, *new_leaves} - {f"provenance.{CREATED}"}):
        if old_leaves.get(key) != new_leaves.get(key):
            old, new = old_leaves.get(key, "absent"), new_leaves.get(key, "absent")
            differences.append((key, f"{old}, expected {new}"))
    return differences


def _leaves(value: object, prefix: str = "provenance") -> Iterator[tuple[str, str]]:
    """Dotted keys of a JSON tree, and the JSON text of each leaf."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}")
    else:
        yield prefix, canonical_json(value)


def _column_difference(found: Any, wanted: Bytes, name: str) -> list[tuple[str, str]]:
    """Where a stored id column differs from the wanted one of the same length."""
    differing, first = 0, -1
    for start, stop in spans(wanted.size, block_rows(wanted.dtype.itemsize)):
        rows = np.flatnonzero(hdf5.read_text(found, start, stop) != wanted[start:stop])
        if rows.size and first < 0:
            first = start + int(rows[0])
        differing += rows.size
    if not differing:
        return []
    old, new = (bytes(column[first]).decode("utf-8", "replace") for column in (found, wanted))
    return [
        (
            name,
            f"{differing} of {wanted.size} differ, first in row {first} ({old!r}, expected "
            f"{new!r})",
        )
    ]
