"""The layout of sound files that libsndfile would not read completely by itself."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

Piece = bytes | tuple[int, int]
"""Bytes that are inserted, or the stretch of the file from one offset to another (exclusive)."""


@dataclass(frozen=True)
class Layout:
    """How a sound file has to be read.

    Attributes:
        parts: The sounds one after the other, each as the pieces it is made of; None: the file as
            it is.
        promised: How much the header promises, in bytes or in samples; None where it promises
            nothing.
        there: How much the file has, in the same unit.
        unit: That unit.
        cut: Why the file is known to end early, whatever can be read; None where nothing says so.
        note: What is wrong with the file, although it is read.
        seconds: How long the file says it is, where it says that in time; None: it does not.
    """

    parts: tuple[tuple[Piece, ...], ...] | None = None
    promised: int | None = None
    there: int | None = None
    unit: str = "bytes of samples"
    cut: str | None = None
    note: str = ""
    seconds: float | None = None


AS_IT_IS = Layout()


class Spliced(io.RawIOBase):
    """A file that is made of pieces of another one; for reading.

    Args:
        path: The other file; it is open as long as this one.
        pieces: In order.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._stream = path.open("rb")
        self._pieces = pieces
        sizes = (len(one) if isinstance(one, bytes) else one[1] - one[0] for one in pieces)
        self._starts = list(accumulate(sizes, initial=0))
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._starts[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the current place."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as there are bytes and return their number."""
        done = 0
        while done < len(buffer) and self._place < self._starts[-1]:
            k = bisect_right(self._starts, self._place) - 1
            within = self._place - self._starts[k]
            size = min(len(buffer) - done, self._starts[k + 1] - self._place)
            piece = self._pieces[k]
            if isinstance(piece, bytes):
                got = piece[within : within + size]
            else:
                self._stream.seek(piece[0] + within)
                got = self._stream.read(size)
            if not got:  # the file has become shorter
                break
            buffer[done : done + len(got)] = got
            done += len(got)
            self._place += len(got)
        return done

    def close(self) -> None:
        """Close this file and the one underneath."""
        self._stream.close()
        super().close()


def joined(layouts: Sequence[Layout], bounds: Sequence[tuple[int, int]]) -> Layout:
    """Return the layout of sounds that follow each other between these offsets."""
    if len(layouts) == 1:
        return layouts[0]
    parts: list[tuple[Piece, ...]] = []
    for layout, bound in zip(layouts, bounds, strict=True):
        parts += layout.parts or ((bound,),)
    known = [one for one in layouts if one.promised is not None]
    promised = sum(one.promised or 0 for one in known)
    return Layout(tuple(parts), promised, sum(one.there or 0 for one in known), layouts[0].unit)
