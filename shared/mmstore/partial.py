"""The unfinished set: making it, finding one to go on with, and making the finished set of it.

Each step makes its result under another name and renames it when it is whole, or (for the one step
that works in place) keeps an undo copy. So a process killed in any of them leaves a set that can be
continued.

Dense rows go straight to their place in the partial file, ragged rows into a log that `assemble`
copies in row order. A log for both would be one path less, but at 50,000 x 4096 float32 it costs 15
to 90 % more CPU, and for every dense set twice the time to finish and twice the disk.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import mmstore.hdf5 as hdf5
from mmstore import errors, spec
from mmstore.errors import DamagedFeatureSet, NotAFeatureSet, ProvenanceMismatch, StoreWarning
from mmstore.filesystem import replace_synced
from mmstore.hashing import content_digest, require_whole
from mmstore.hdf5 import translated
from mmstore.ids import Bytes, block_rows, spans
from mmstore.schema import Header, canonical_json
from mmstore.side_files import (
    Paths,
    Place,
    RowFile,
    VectorLog,
    place_of,
    restore_undo,
    save_undo,
)
from mmstore.spec import Status

_MARGIN = 1 << 20  # attributes, group and chunk tables, alignment


class Errors(NamedTuple):
    """The corrupt rows, ascending, and the message of each."""

    rows: NDArray[np.int64]
    messages: list[bytes]

    @property
    def nbytes(self) -> int:
        """Bytes that they take in a file."""
        return self.rows.size * (8 + max(map(len, self.messages), default=0))


# ------------------------------------------------------------------------------------------------
# making it


def create_partial(paths: Paths, header: Header, columns: list[Bytes]) -> None:
    """Make a partial set with every row pending.

    Raises:
        StoreFull: The vectors of a dense set are larger than the free space.
    """
    needed = header.rows * header.vector_bytes if header.layout == spec.DENSE else 0
    free = shutil.disk_usage(paths.final.parent).free
    if needed > free:
        what = f"{paths.final}: needs {needed / 1e9:.2f} GB ({free / 1e9:.2f} GB are free)"
        raise errors.StoreFull(f"{what}; free space on that disk, or store float16")
    offsets = np.zeros(header.rows + 1, np.int64)
    _write_partial(paths, header, columns, np.zeros(header.rows, np.uint8), offsets)


def copy_as_partial(
    paths: Paths, header: Header, columns: list[Bytes], status: NDArray[np.uint8]
) -> None:
    """Make a partial set out of the finished one, with another status."""
    header = replace(header, complete=False, content_digest="", format_version=spec.FORMAT_VERSION)
    if header.layout == spec.DENSE:
        shutil.copyfile(paths.final, paths.new)
        with hdf5.edit_file(paths.new, _MARGIN) as file:
            del file[spec.ERRORS]  # finishing writes it anew
            hdf5.write_header(file, header)
            place = place_of(file, paths.new, spec.STATUS)
        rows = RowFile(paths.new, {spec.STATUS: place})
        rows.put(spec.STATUS, np.arange(header.rows), status)
        rows.close()
        replace_synced(paths.new, paths.partial)
        return
    # The finished file has its vectors in row order: they become the log as they are.
    with hdf5.open_file(paths.final) as file:
        features, offsets = file[spec.FEATURES], np.asarray(file[spec.OFFSETS][:])
        log = VectorLog(paths.vectors, header, 0)
        for start, stop in spans(features.shape[0], block_rows(header.vector_bytes)):
            log.append(features[start:stop])
        log.sync()  # before the partial set exists, whose rows refer to it
        log.close()
    _write_partial(paths, header, columns, status, offsets)


def _write_partial(
    paths: Paths,
    header: Header,
    columns: list[Bytes],
    status: NDArray[np.uint8],
    offsets: NDArray[np.int64],
) -> None:
    with hdf5.new_file(paths.new, _size(header, columns)) as file:
        hdf5.write_header(file, header)
        _write_rows(file, header, columns, status)
        if header.layout == spec.RAGGED:
            file.create_dataset(spec.START, data=offsets[:-1].astype("<i8"))
            file.create_dataset(spec.LENGTH, data=np.diff(offsets).astype("<i8"))
        hdf5.create_features(file, header, header.rows if header.layout == spec.DENSE else 0)
    replace_synced(paths.new, paths.partial)


def _write_rows(file: Any, header: Header, columns: list[Bytes], status: NDArray[Any]) -> None:
    for name, column in zip(spec.ID_DATASETS[header.source], columns, strict=True):
        hdf5.create_text(file, name, column)
    file.create_dataset(spec.STATUS, data=status)


def _size(header: Header, columns: list[Bytes]) -> int:
    """Upper bound of a partial file's bytes, without the vectors."""
    provenance = len(canonical_json(header.provenance).encode("utf-8"))
    return header.rows * (1 + 16) + sum(column.nbytes for column in columns) + provenance + _MARGIN


# ------------------------------------------------------------------------------------------------
# finishing it


def finish_in_place(
    paths: Paths, header: Header, status: NDArray[np.uint8], reasons: Errors
) -> str:
    """Dense: add what the partial set lacks, rename it, and return its digest.

    Nobody else has the partial file open, and no row of `status`, shape (n,), is pending.
    """
    with hdf5.open_file(paths.partial) as file:
        digest = content_digest(file, header, status, None)
        place = place_of(file, paths.partial, spec.FEATURES)
    # HDF5 rewrites its tables in many small steps; a kill between them leaves neither the old file
    # nor the new one. The copy of all but the vectors brings the old one back.
    save_undo(paths, place.start, place.stop)
    with hdf5.edit_file(paths.partial, _MARGIN + reasons.nbytes) as file:
        hdf5.create_errors(file, *reasons)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.partial, paths.final)
    return digest


def assemble(
    paths: Paths, header: Header, log: VectorLog, status: NDArray[np.uint8], reasons: Errors
) -> str:
    """Ragged: copy the vectors in row order into a new file, rename it, and return its digest.

    No row of `status`, shape (n,), is pending.
    """
    present = status == Status.OK
    with hdf5.open_file(paths.partial) as partial:
        start, length = np.asarray(partial[spec.START][:]), np.asarray(partial[spec.LENGTH][:])
        columns = [hdf5.read_text(partial[name]) for name in spec.ID_DATASETS[header.source]]
    length[~present] = 0  # a row that was retried may still have its old place
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(length)))  # (n + 1,)
    vectors = int(offsets[-1])
    # One sixty-fourth more than the vectors, for the last chunk and the index of chunks.
    size = _size(header, columns) + vectors * header.vector_bytes * 65 // 64 + reasons.nbytes
    with hdf5.new_file(paths.new, size) as file:
        _write_rows(file, header, columns, status)
        file.create_dataset(spec.OFFSETS, data=offsets.astype("<i8"))
        features = hdf5.create_features(file, header, vectors)
        at = 0
        for block in log.gather(start[present], length[present]):
            features[at : at + len(block)] = block
            at += len(block)
        hdf5.create_errors(file, *reasons)
        file.flush()
        digest = content_digest(file, header, status, offsets)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.new, paths.final)
    return digest


# ------------------------------------------------------------------------------------------------
# finding it


class Unfinished(NamedTuple):
    """An unfinished set of the wanted plan."""

    header: Header
    status: NDArray[np.uint8]  # (n,)
    places: dict[str, Place]  # of the datasets that rows are written to
    used_vectors: int  # ragged: one past the last vector of the log that a finished row refers to


def unfinished_set(paths: Paths, wanted: Header, columns: list[Bytes]) -> Unfinished | None:
    """Return the unfinished set at `paths`, or None, with a warning, where it is beyond use.

    Another plan raises `ProvenanceMismatch`.
    """
    try:
        if paths.undo.exists():  # a kill interrupted `finish_in_place`
            with translated(paths.undo):
                restore_undo(paths)
        with hdf5.open_file(paths.partial) as file:
            found, _ = hdf5.read_header(file, paths.partial)
            dense = found.layout == spec.DENSE
            names = [spec.STATUS, *([spec.FEATURES] if dense else [spec.START, spec.LENGTH])]
            places = {name: place_of(file, paths.partial, name) for name in names}
            status = np.asarray(file[spec.STATUS][:])
            if status.size and int(status.max()) > max(Status):
                got = f"{status.max()} (expected 0 … {max(Status)})"
                raise DamagedFeatureSet(f"{paths.partial}:/{spec.STATUS}: holds {got}")
            refuse_other_plan(found, wanted, file, columns, f"{paths.partial}: an unfinished set")
            used = 0 if dense else _used_vectors(file, status)
    except (NotAFeatureSet, DamagedFeatureSet) as error:
        warnings.warn(f"{error}; the unfinished set is begun anew", StoreWarning, stacklevel=5)
        return None
    return Unfinished(found, status, places, used)


def finished_set(
    paths: Paths, wanted: Header, columns: list[Bytes], retry: Collection[Status]
) -> tuple[Header, NDArray[np.uint8], list[str]]:
    """Return header and status, shape (n,), of the finished set, and the versions that differ.

    Raises:
        ProvenanceMismatch: It has another plan. Versions of programs may differ as long as it has
            no row to `retry`.
    """
    with hdf5.open_file(paths.final) as file, translated(paths.final):
        found, _ = hdf5.read_header(file, paths.final)
        status = np.asarray(file[spec.STATUS][:])
        where, done = f"{paths.final}: a finished set", not np.isin(status, list(retry)).any()
        versions = refuse_other_plan(found, wanted, file, columns, where, any_versions=done)
        if not done:  # its rows are going to be copied
            require_whole(file, found, paths.final)
        return found, status, versions


def finished_digest(paths: Paths) -> str:
    """Return the content digest of the finished set."""
    with hdf5.open_file(paths.final) as file:
        return hdf5.read_header(file, paths.final)[0].content_digest


def _used_vectors(file: Any, status: NDArray[np.uint8]) -> int:
    used = 0
    for start, stop in spans(status.size, block_rows(16)):
        ends = file[spec.START][start:stop] + file[spec.LENGTH][start:stop]
        used = max(used, int(ends[status[start:stop] == Status.OK].max(initial=0)))
    return used


# ------------------------------------------------------------------------------------------------
# comparing plans


def refuse_other_plan(
    found: Header,
    wanted: Header,
    file: Any,
    columns: list[Bytes],
    where: str,
    *,
    any_versions: bool = False,
) -> list[str]:
    """Check that a file, open, has the wanted plan: all but its creation time and progress.

    `any_versions` lets the versions of programs differ; their keys are the answer. The message
    begins with `where`.
    """
    differences = dict(plan_differences(found, wanted))
    versions = [key for key in differences if any_versions and f"{key}.".startswith(spec.VERSIONS)]
    for key in versions:
        del differences[key]
    if found.source == wanted.source and found.rows == wanted.rows:
        for name, column in zip(spec.ID_DATASETS[found.source], columns, strict=True):
            if difference := _column_difference(file[name], column):
                differences[name] = difference
    if not differences:
        return versions
    shown = "; ".join(f"{key}: {values}" for key, values in list(differences.items())[:6])
    more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
    raise ProvenanceMismatch(
        f"{where} of another plan is in the way ({shown}{more}); run with --restart to replace it, "
        "or choose another --name",
        list(differences),
    )


def plan_differences(found: Header, wanted: Header) -> Iterator[tuple[str, str]]:
    """Yield `(key, "found, expected")`; `provenance.pooling`, not just `provenance`.

    Creation times may differ, and so may the ids themselves.
    """
    for key in ("modality", "name", "source", "layout", "dim", "dtype", "rows"):
        old, new = getattr(found, key), getattr(wanted, key)
        if old != new:
            yield key, f"{old!r}, expected {new!r}"
    old_leaves, new_leaves = dict(_leaves(found.provenance)), dict(_leaves(wanted.provenance))
    for key in sorted({*old_leaves, *new_leaves} - {f"provenance.{spec.CREATED}"}):
        old, new = old_leaves.get(key, "absent"), new_leaves.get(key, "absent")
        if old != new:
            yield key, f"{old}, expected {new}"


def _leaves(value: object, prefix: str = "provenance") -> Iterator[tuple[str, str]]:
    """Yield dotted keys of a JSON tree, and the JSON text of each leaf."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}")
    else:
        yield prefix, canonical_json(value)


def _column_difference(found: Any, wanted: Bytes) -> str:
    """Return how a stored id column differs from the wanted one of the same length, or nothing."""
    differing, first = 0, -1
    for start, stop in spans(wanted.size, block_rows(wanted.dtype.itemsize)):
        rows = np.flatnonzero(hdf5.read_text(found, start, stop) != wanted[start:stop])
        if rows.size and first < 0:
            first = start + int(rows[0])
        differing += rows.size
    if not differing:
        return ""
    old, new = (bytes(column[first]).decode("utf-8", "replace") for column in (found, wanted))
    return f"{differing} of {wanted.size} differ, first in row {first} ({old!r}, expected {new!r})"
