"""The steps that make one file out of another: a new partial set, a finished one, and back again.

Each makes its result under another name and renames it when it is whole, or (for the one step that
works in place) keeps an undo copy, so that a process killed in any of them leaves a set that can be
continued.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore import hdf5
from mmstore.blocks import block_rows, spans
from mmstore.errors import StoreFull
from mmstore.hashing import file_digest
from mmstore.ids import Bytes
from mmstore.row_file import RowFile
from mmstore.schema import Header, canonical_json
from mmstore.side_files import Paths, VectorLog, replace_synced, save_undo
from mmstore.spec import (
    DENSE,
    ERRORS,
    FEATURES,
    FORMAT_VERSION,
    ID_DATASETS,
    OFFSETS,
    RAGGED,
    STATUS,
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
