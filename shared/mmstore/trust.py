"""Whether a finished set still holds what its writer put into it.

Before a reader hands out ids, statuses or vectors, it compares the whole content with the content
digest: a second for each 0.8 GB. What was found whole is noted in the user's cache folder, by path,
size, times and inode, so that the next process pays nothing. Deleting the notes is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmstore import spec
from mmstore.errors import damaged
from mmstore.hashing import content_digest
from mmstore.hdf5 import translated
from mmstore.schema import Header

# Two changes this close may leave a file with equal times: FAT counts them in steps of 2 s.
_SETTLED_NS = 2_000_000_000
_MAX_NOTE_BYTES = 10_000


def require_whole(file: Any, header: Header, path: Path) -> None:
    """Check the content of an open, complete set against its digest, unless it is known as whole.

    Raises:
        DamagedFeatureSet: It differs; the message names the first broken rule if the content breaks
            one by itself, such as a row with NaN.
    """
    identity = _identity(file, header)
    if identity is None or _noted(path) != identity:
        with translated(path):
            status = np.asarray(file[spec.STATUS][:])
            ragged = header.layout == spec.RAGGED
            offsets = np.asarray(file[spec.OFFSETS][:]) if ragged else None
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
