"""The content digest: BLAKE2b-256 over the canonical byte stream that `FORMAT.md` defines.

Streamed in blocks, so that memory stays flat, and vectorised over ids, so that ten million of them
take no Python loop.

Before a reader hands out ids, statuses or vectors, it compares the whole content with the digest: a
second for each 0.8 GB. A set found whole is noted in the user's cache folder, by path, size, times
and inode, so that the next process pays nothing. Deleting the notes is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore.errors import damaged
from mmstore.hdf5 import translated
from mmstore.ids import block_rows, byte_lengths, byte_table, spans
from mmstore.schema import Header
from mmstore.spec import FEATURES, ID_DATASETS, OFFSETS, RAGGED, STATUS

_CANONICAL_NAN = {2: 0x7E00, 4: 0x7FC00000}
# Two changes this close may leave a file with equal times: FAT counts them in steps of 2 s.
_SETTLED_NS = 2_000_000_000
_MAX_NOTE_BYTES = 10_000


def content_digest(
    file: Any, header: Header, status: NDArray[np.uint8], offsets: NDArray[np.int64] | None
) -> str:
    """Return the digest of a set's content, 64 hexadecimal digits.

    It depends on the ids, the status of each row, shape (n,), and the vectors alone, not on names,
    provenance, messages, the width of id columns or byte order. `offsets` of ragged sets, shape
    (n + 1,), are the first vector of each row and the end.
    """
    features = file[FEATURES]
    vectors, dim = features.shape
    digest = hashlib.blake2b(digest_size=32)
    digest.update(
        f"mmstore.content/1\nsource={header.source}\nlayout={header.layout}\n"
        f"dtype={header.dtype}\nrows={status.size}\nvectors={vectors}\ndim={dim}\n".encode("ascii")
    )
    for name in ID_DATASETS[header.source]:
        column = file[name]
        step = block_rows(column.dtype.itemsize)
        # All lengths come before all texts, so that no choice of ids can imitate another one.
        for start, stop in spans(column.shape[0], step):
            digest.update(byte_lengths(np.asarray(column[start:stop])).astype("<u4").tobytes())
        for start, stop in spans(column.shape[0], step):
            block = np.asarray(column[start:stop])
            table = byte_table(block)
            used = np.arange(table.shape[1]) < byte_lengths(block)[:, None]  # (rows, width)
            digest.update(table[used].tobytes())
    digest.update(np.ascontiguousarray(status, "|u1").data)
    if offsets is not None:
        digest.update(np.ascontiguousarray(offsets, "<i8").data)
    # The next block is read while the last one is hashed, which takes four fifths of the time.
    with ThreadPoolExecutor(1) as other:
        hashed = None
        for start, stop in spans(vectors, block_rows(header.vector_bytes)):
            canonical = canonical_bytes(np.asarray(features[start:stop]))
            if hashed is not None:
                hashed.result()
            hashed = other.submit(digest.update, canonical)
    return digest.hexdigest()


def canonical_bytes(vectors: NDArray[Any]) -> memoryview:
    """Return little-endian row-major bytes of `vectors`, every NaN as the one quiet NaN."""
    size = vectors.dtype.itemsize
    bits = np.ascontiguousarray(vectors, dtype=f"<f{size}").view(f"<u{size}")
    absent = np.isnan(vectors)
    if absent.any():
        bits = np.where(absent, np.array(_CANONICAL_NAN[size], bits.dtype), bits)
    return bits.reshape(-1).view(np.uint8).data


# ------------------------------------------------------------------------------------------------
# whether a finished set still holds what its writer put into it


def require_whole(file: Any, header: Header, path: Path) -> None:
    """Check the content of an open, complete set against its digest, unless a note vouches for it.

    Raises:
        DamagedFeatureSet: It differs; the message names the first broken rule if the content breaks
            one by itself, such as a row with NaN.
    """
    identity = _identity(file, header)
    if identity is None or _noted(path) != identity:
        with translated(path):
            status = np.asarray(file[STATUS][:])
            ragged = header.layout == RAGGED
            offsets = np.asarray(file[OFFSETS][:]) if ragged else None
            digest = content_digest(file, header, status, offsets)
        if digest != header.content_digest:
            from mmstore.validate import problems

            with translated(path):
                what = next(problems(file, header), ": was changed while it was read")
                raise damaged(f"{path}{what}")
        if identity is not None and identity == _identity(file, header):
            _note(path, identity)


def notes_folder() -> Path | None:
    """`$MMSTORE_CACHE` (`off`: none), else `mmstore` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    given = os.environ.get("MMSTORE_CACHE")
    if given:
        return None if given == "off" else Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmstore"
    except RuntimeError:  # a user without a home
        return None


def _identity(file: Any, header: Header) -> dict[str, object] | None:
    """Return what changes when the open file is changed or replaced; None if the system won't say.

    The time of the last change of the inode is part of it: unlike the time of modification, no
    program can set it back.
    """
    try:
        found = os.fstat(file.id.get_vfd_handle())
    except (OSError, RuntimeError, ValueError, TypeError):
        return None
    return {
        "content_digest": header.content_digest,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
    }


def _note_path(path: Path) -> Path | None:
    folder = notes_folder()
    if folder is None:
        return None
    key = os.fsencode(path.resolve())
    return folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.json"


def _noted(path: Path) -> object:
    with suppress(OSError, ValueError, RecursionError):
        note = _note_path(path)
        if note is not None and note.stat().st_size <= _MAX_NOTE_BYTES:
            return json.loads(note.read_text(encoding="ascii"))
    return None


def _note(path: Path, identity: dict[str, object]) -> None:
    changed = max(int(str(identity[key])) for key in ("mtime_ns", "ctime_ns"))
    if time.time_ns() - changed < _SETTLED_NS:
        return  # one more change could still leave the same times
    with suppress(OSError):  # a folder that can't be written: the next process checks again
        if (note := _note_path(path)) is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_suffix(".partial")
            partial.write_text(json.dumps(identity), encoding="ascii")
            partial.replace(note)
