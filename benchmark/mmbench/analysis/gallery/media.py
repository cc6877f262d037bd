"""Pictures and sounds of a page: as much of them as there is room for."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from mmbase.catalogue.thumbnails import can_draw, data_uri, thumbnail
from mmbase.errors import INSTALL_EXTRA, ContentError
from mmbase.layout import counted

Files: TypeAlias = Sequence[tuple[int, Path]]
"""Numbers of items with a file of theirs."""

FOR_SOUNDS = 500_000
"""Bytes of a page that sounds may take."""

PER_FILE = 40
"""Bytes of what stands around a file on a page."""

PER_ABSENT = 16
"""Bytes that say why one is not there."""

_SMALL_SOUND = 64_000  # bytes of a file that is embedded
_SIDE = 96  # pixels of a thumbnail


def thumbnails(files: Files, room: int) -> tuple[list[tuple[int, str]], dict[str, str], list[str]]:
    """Return data URIs by number of item while there is room, and what there is to say.

    Returns:
        Numbers and data URIs; by the reason why others have none, their selectors; and notes.
    """
    if files and not can_draw():
        told = f"{counted(len(files), 'picture is', 'pictures are')} left out: Pillow, which makes"
        return [], {}, [f"{told} the thumbnails, is not installed: {INSTALL_EXTRA}"]
    found: list[tuple[int, str]] = []
    absent: dict[str, list[str]] = {}
    broken: list[str] = []
    for number, path in files:
        if room <= 0:
            absent.setdefault("left out", []).append(f".p{number}::after")
            continue
        try:
            uri = data_uri(thumbnail(path, _SIDE))
        except ContentError as error:
            broken.append(str(error))
            absent.setdefault("can’t be shown", []).append(f".p{number}::after")
            continue
        room -= len(uri) + PER_FILE
        found.append((number, uri))
    notes = []
    if n_over := len(files) - len(found) - len(broken):
        told = f"{len(found):,} of {len(files):,} pictures are shown"
        notes.append(f"{told}: the other {n_over:,} do not fit in a page of 3 MB")
    if broken:
        told = counted(len(broken), "picture can’t", "pictures can’t")
        notes.append(f"{told} be shown, e.g. {broken[0]}")
    return found, {why: ",".join(which) for why, which in absent.items()}, notes


def sound_addresses(files: Files, room: int, out: Path) -> tuple[dict[int, str], int]:
    """Return the address of each item's sound, and how many of them hold the sound itself."""
    found: dict[int, str] = {}
    n_embedded = 0
    room = min(room, FOR_SOUNDS)
    for number, path in files:
        try:
            size = path.stat().st_size
            if size <= _SMALL_SOUND and size * 4 // 3 + 100 < room:
                kind = mimetypes.guess_type(path.name)[0] or "audio/wav"
                found[number] = data_uri(path.read_bytes(), kind)
                room -= len(found[number]) + 20
                n_embedded += 1
                continue
        except OSError:
            continue
        relative = os.path.relpath(path.resolve(), out.parent.resolve())
        found[number] = quote(Path(relative).as_posix())
    return found, n_embedded


def in_words(n_embedded: int, n_linked: int) -> str:
    """Return where the sounds are, in a sentence."""
    parts = []
    if n_embedded:
        parts.append(f"{counted(n_embedded, 'sound is', 'sounds are')} part of this page")
    if n_linked:
        others = counted(n_linked, "sound is", "sounds are")
        parts.append(f"{others} played from the dataset’s folder while this page stays where it is")
    return "; ".join(parts) + "."
