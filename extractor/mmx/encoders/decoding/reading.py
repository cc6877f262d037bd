"""The state of a decoding thread: its last content, its observations, the background colour.

Within `shared_decoding` several encoders of one content decode it once. Within `observed` the
decoders report how much they read, and damage that they could work around.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mmx.errors import ContentError

Decoded = TypeVar("Decoded")


@dataclass
class Observed:
    """What the decoders of one item report.

    Attributes:
        notes: What is wrong with contents that were read all the same, one line each.
        sound_s: Seconds of sound that were read.
    """

    notes: list[str] = field(default_factory=list)
    sound_s: float = 0.0


class _Thread(threading.local):
    remembers = False
    last: tuple[Any, Any, Observed] | None = None
    observed: Observed | None = None
    background: str | None = None


_thread = _Thread()


@contextmanager
def observed() -> Iterator[Observed]:
    """Collect what decoders of this thread report within the block."""
    before, _thread.observed = _thread.observed, Observed()
    try:
        yield _thread.observed
    finally:
        _thread.observed = before


def tell(note: str = "", sound_s: float = 0.0) -> None:
    """Report a note or a duration of the content that is being decoded."""
    if _thread.observed is not None:
        _thread.observed.sound_s += sound_s
        if note and note not in _thread.observed.notes:
            _thread.observed.notes.append(note)


@contextmanager
def on_background(colour: str | None) -> Iterator[None]:
    """Let pictures be composed on a colour, #rrggbb; None: their transparency is ignored."""
    before, _thread.background = _thread.background, colour
    try:
        yield
    finally:
        _thread.background = before


def background() -> str | None:
    """Return the colour on which this thread composes pictures."""
    return _thread.background


@contextmanager
def shared_decoding(wanted: bool = True) -> Iterator[None]:
    """Let `remembered` functions answer from memory when a thread repeats its last content.

    The memory ends with the block.
    """
    _thread.remembers, _thread.last = wanted, None
    try:
        yield
    finally:
        _thread.remembers, _thread.last = False, None


def remembered(decode: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """Let a decoder answer from memory within `shared_decoding`; its result must not be changed."""

    @functools.wraps(decode)
    def answer(content: Any, *more: Any) -> Decoded:
        if not _thread.remembers:
            return decode(content, *more)
        key = (decode, content, *more)
        if _thread.last is None or _thread.last[0] != key:
            _thread.last = None  # its memory is needed
            result: Decoded | ContentError
            with observed() as seen:
                try:
                    result = decode(content, *more)
                except ContentError as error:
                    result = error
            _thread.last = key, result, seen
        _, result, seen = _thread.last
        tell(sound_s=seen.sound_s)
        for note in seen.notes:
            tell(note)
        if isinstance(result, ContentError):
            raise result
        return result

    return answer
