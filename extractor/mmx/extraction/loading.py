"""Contents loaded for encoders, one after the other: what a thread or a process does with a span.

Nothing here knows plans or windows, so that a loading process needs little else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mmbase.catalogue.files import Content, File
from mmbase.catalogue.paths import Absent
from mmbase.process import out_of_memory
from mmx.encoders import Encoder
from mmx.encoders.base import own_work_s
from mmx.encoders.decoding import alone, bounded, observed, on_background, shared_decoding, waited_s
from mmx.errors import ContentError
from mmx.extraction.disk import busy_and_queued_s, disk
from mmx.extraction.passes import NOT_AN_ITEMS_FAULT, Loaded, unforeseen
from mmx.extraction.remote import fetched

LEFT = object()
"""Marks an item that the caller has to load. (An exception would keep its tensors alive.)"""

Usable: TypeAlias = Path | str | tuple[File, ...]
LoadOne: TypeAlias = Callable[[Encoder, Usable], Loaded]


@dataclass
class Reading:
    """Loaded contents, and what loading them took.

    Attributes:
        items: For each encoder one item per content; None for an encoder that takes none.
        n_bytes: Size of the contents.
        cpu_s: Seconds for which the thread, or the process, computed.
        wall_s: Seconds from the first content to the last, without waits for memory that other
            threads had, and without time in the queue for a processor.
        read_s: Seconds of them that reading blocked, see `mmx.extraction.disk`.
        own_s: Of `cpu_s`, what each encoder did of its own.
        sound_s: Seconds of sound that were read.
        noted: Places of contents that were read with a remark.
        left: Places of contents that the caller has to load, ascending.
    """

    items: list[list[Loaded] | None]
    n_bytes: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    read_s: float = 0.0
    own_s: list[float] = field(default_factory=list)
    sound_s: float = 0.0
    noted: list[tuple[int, str]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def replace(self, places: Sequence[int], other: Reading) -> None:
        """Take over contents that were loaded elsewhere, in these places, with what they took."""
        for mine, others in zip(self.items, other.items, strict=True):
            if mine is not None and others is not None:
                for place, item in zip(places, others, strict=True):
                    mine[place] = item
        self.cpu_s += other.cpu_s
        self.wall_s += other.wall_s
        self.read_s += other.read_s
        self.own_s = [one + more for one, more in zip(self.own_s, other.own_s, strict=True)]
        self.sound_s += other.sound_s
        self.noted = sorted([*self.noted, *((places[k], note) for k, note in other.noted)])
        self.left = [places[k] for k in other.left]


def read(
    encoders: Sequence[Encoder | None],
    contents: Sequence[Content],
    background: str | None,
    load_one: LoadOne,
) -> Reading:
    """Load contents for encoders that share them; safe to call from any thread.

    Args:
        encoders: None for one that takes none of them.
        contents: Of consecutive rows.
        background: Colour behind transparent pixels, #rrggbb.
        load_one: Loads a usable content; its `LEFT` leaves that content to the caller.
    """
    began, (busy, queued) = time.perf_counter() - waited_s(), busy_and_queued_s()
    items: list[list[Loaded] | None] = [None if encoder is None else [] for encoder in encoders]
    found = Reading(items, own_s=[0.0] * len(items))
    takers = [
        (place, encoder, loaded)
        for place, (encoder, loaded) in enumerate(zip(encoders, items, strict=True))
        if encoder is not None and loaded is not None
    ]
    if _are_texts(contents):  # nothing is decoded
        for number, encoder, loaded in takers:
            found.own_s[number] -= own_work_s()
            loaded += _load_texts(encoder, contents, load_one)
            found.own_s[number] += own_work_s()
        found.left = [k for k in range(len(contents)) if any(of[k] is LEFT for *_, of in takers)]
        found.n_bytes, takers = sum(map(_size, contents)), []
    for place, content in enumerate(contents if takers else ()):
        found.n_bytes += _size(content)
        n_left = len(found.left)
        with (
            fetched(content) as (usable, fetched_s),
            shared_decoding(len(takers) > 1),
            bounded(),
            on_background(background),
        ):
            found.read_s += fetched_s or _read_wait_s(usable)
            for number, encoder, loaded in takers:
                found.own_s[number] -= own_work_s()
                with observed() as seen:
                    loaded.append(_loaded(encoder, usable, load_one))
                found.own_s[number] += own_work_s()
                if loaded[-1] is LEFT and len(found.left) == n_left:
                    found.left.append(place)
        if len(found.left) == n_left:
            found.sound_s += seen.sound_s
            found.noted += [(place, note) for note in seen.notes]
    busy_now, queued_now = busy_and_queued_s()
    found.cpu_s = busy_now - busy
    found.wall_s = time.perf_counter() - waited_s() - began - (queued_now - queued)
    return found


def _are_texts(contents: Sequence[Content]) -> bool:
    return all(content is None or isinstance(content, str | ContentError) for content in contents)


def _load_texts(encoder: Encoder, contents: Sequence[Content], load_one: LoadOne) -> list[Loaded]:
    """Load texts, in one call where the encoder has a way of its own to load many."""
    usual = getattr(Encoder, "load_many", None)
    if getattr(type(encoder), "load_many", usual) is not usual:
        texts = [content for content in contents if isinstance(content, str)]
        with suppress(Exception):  # raised again by the item that causes it
            many = iter(encoder.load_many(texts))
            return [next(many) if isinstance(content, str) else content for content in contents]
    return [_loaded(encoder, content, load_one) for content in contents]


def _loaded(encoder: Encoder, content: Content, load_one: LoadOne) -> Loaded:
    if content is None or isinstance(content, ContentError):
        return content
    if isinstance(content, Absent):
        return None
    return load_one(encoder, content)


def load_here(encoder: Encoder, content: Usable) -> Loaded:
    """Load a content; if memory runs out, again while no other thread decodes.

    `LEFT` says that there is not enough memory for it even alone.
    """
    loaded = _tried(encoder, content)
    if loaded is LEFT:
        with alone():
            loaded = _tried(encoder, content)
    return loaded


def _tried(encoder: Encoder, content: Usable) -> Loaded:
    try:
        return encoder.load(content)  # type: ignore[arg-type]
    except ContentError as error:
        return error
    except FileNotFoundError:
        return None  # gone since the folder was listed
    except OSError as error:
        return ContentError(error.strerror or type(error).__name__)
    except NOT_AN_ITEMS_FAULT:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, others can be loaded
        return LEFT if out_of_memory(error) else ContentError(unforeseen(error))


def load_or_leave(encoder: Encoder, content: Usable) -> Loaded:
    """Load a content, and leave it to the caller where anything but its decoder's verdict comes up.

    So another process, which may lack memory, a package or the device, never makes an item corrupt.
    """
    try:
        return encoder.load(content)  # type: ignore[arg-type]
    except ContentError as error:
        return ContentError(str(error))
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 - the caller finds it again
        return LEFT


def _read_wait_s(content: Content) -> float:
    if isinstance(content, Path):
        return disk.wait_s(content)
    return sum(map(_read_wait_s, content)) if isinstance(content, tuple) else 0.0


def _size(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, tuple):
        return sum(map(_size, content))
    try:
        # os.stat takes half the time of Path.stat.
        return os.stat(content).st_size if isinstance(content, Path) else 0  # noqa: PTH116
    except OSError:
        return 0
