"""The steps that make one file out of another: a new partial set, a finished one, and back again.

Each makes its result under another name and renames it when it is whole, or (for the one step that works in place)
keeps an undo copy, so that a process killed in any of them leaves a set that can be continued.
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
from mmstore.partial import Paths, VectorLog, replace_synced, save_undo
from mmstore.schema import Header
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


def create_partial(paths: Paths, header: Header, columns: list[Bytes]) -> None:
    """Make a partial set with every row pending.

    Raises:
        StoreFull: The vectors of a dense set are larger than the free space.
    """
    needed = header.rows * header.vector_bytes if header.layout == DENSE else 0
    free = shutil.disk_usage(paths.final.parent).free
    if needed > free:
        raise StoreFull(
            f"{paths.final}: needs {needed / 1e9:.2f} GB for {header.rows} x {header.dim} {header.dtype} vectors "
            f"({free / 1e9:.2f} GB are free); free space on that disk, or store float16"
        )
    with hdf5.create_file(paths.new) as file:
        _fill_new(file, header, columns, np.zeros(header.rows, np.uint8))
    replace_synced(paths.new, paths.partial)


def copy_as_partial(paths: Paths, header: Header, columns: list[Bytes], status: NDArray[np.uint8]) -> None:
    """Make a partial set out of the finished one, with another status."""
    header = replace(header, complete=False, content_digest="", format_version=FORMAT_VERSION)
    if header.layout == DENSE:
        shutil.copyfile(paths.final, paths.new)
        with hdf5.open_file(paths.new, "r+") as file:
            del file[ERRORS]
            hdf5.write_header(file, header)
            file[STATUS][:] = status
    else:
        log = VectorLog(paths.vectors, header.dim, header.dtype, 0)
        with hdf5.open_file(paths.final) as file, hdf5.create_file(paths.new) as new:
            features, offsets = file[FEATURES], np.asarray(file[OFFSETS][:])
            for start, stop in spans(features.shape[0], block_rows(header.vector_bytes)):
                log.append(features[start:stop])
            log.sync()
            _fill_new(new, header, columns, status)
            new[START][:] = offsets[:-1]
            new[LENGTH][:] = np.diff(offsets)
        log.close()
    replace_synced(paths.new, paths.partial)


def finish_in_place(
    paths: Paths, header: Header, digest: str, extent: tuple[int, int], errors: tuple[NDArray[np.int64], list[bytes]]
) -> None:
    """Dense: add what the partial set lacks, guarded by the undo copy, and rename it. It must be closed.

    Args:
        paths: Where the set lies.
        header: Its header so far.
        digest: Its content digest.
        extent: First byte and end of its vectors in the file; both 0 where it has none.
        errors: The corrupt rows and their messages.
    """
    save_undo(paths.partial, paths.undo, *extent)
    with hdf5.open_file(paths.partial, "r+") as file:
        hdf5.create_errors(file, *errors)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.partial, paths.final)


def assemble(
    paths: Paths,
    header: Header,
    partial: Any,
    log: VectorLog,
    status: NDArray[np.uint8],
    errors: tuple[NDArray[np.int64], list[bytes]],
) -> str:
    """Ragged: copy the vectors in row order from the log into a new file, rename it, and return its digest.

    Args:
        paths: Where the set lies.
        header: Its header so far.
        partial: The open partial set.
        log: Its vectors.
        status: Status of each row, shape (n,), none pending.
        errors: The corrupt rows and their messages.
    """
    present = status == Status.OK
    start, length = np.asarray(partial[START][:]), np.asarray(partial[LENGTH][:])
    length[~present] = 0
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(length)))  # (n + 1,)
    with hdf5.create_file(paths.new) as file:
        for name in ID_DATASETS[header.source]:
            hdf5.create_text(file, name, hdf5.read_text(partial[name]))
        file.create_dataset(STATUS, data=status)
        file.create_dataset(OFFSETS, data=offsets.astype("<i8"))
        features = hdf5.create_features(file, header, int(offsets[-1]))
        at = 0
        for block in log.gather(start[present], length[present]):
            features[at : at + len(block)] = block
            at += len(block)
        hdf5.create_errors(file, *errors)
        digest = file_digest(file, header, status, offsets)
        hdf5.write_header(file, replace(header, complete=True, content_digest=digest))
    replace_synced(paths.new, paths.final)
    return digest


def _fill_new(file: Any, header: Header, columns: list[Bytes], status: NDArray[np.uint8]) -> None:
    """Everything that a partial file holds before its first row."""
    hdf5.write_header(file, header)
    for name, column in zip(ID_DATASETS[header.source], columns, strict=True):
        hdf5.create_text(file, name, column)
    file.create_dataset(STATUS, data=status)
    if header.layout == RAGGED:
        for name in (START, LENGTH):
            file.create_dataset(name, data=np.zeros(header.rows, "<i8"))
    hdf5.create_features(file, header, header.rows if header.layout == DENSE else 0)
