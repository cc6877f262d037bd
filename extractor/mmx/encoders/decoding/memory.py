"""The memory of contents that are being decoded: bounded for all threads together.

A file of 65 kB can hold 88 million pixels. Without a bound, the memory of a run grows with its
workers, and a shortage looks like a damaged file. So a decoder reserves what it is going to need,
and waits until others have finished with theirs; what is larger than the bound is decoded alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

DECODING_BYTES = 1 << 30
"""Contents that are being decoded, of all threads together: 250 million bytes of RGB pixels."""


class ByteBudget:
    """Bytes that threads share, served in the order in which they ask.

    Args:
        limit: The most that may be taken at any time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._taken = 0
        self._next = self._turn = 0

    def take(self, n_bytes: int) -> int:
        """Wait until `n_bytes` are free and take them, `limit` at most; return the number taken."""
        n_bytes = min(n_bytes, self.limit)
        with self._changed:
            mine, self._next = self._next, self._next + 1
            self._changed.wait_for(
                lambda: mine == self._turn and self._taken + n_bytes <= self.limit
            )
            self._taken += n_bytes
            self._turn += 1
            self._changed.notify_all()
        return n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Return taken bytes to the budget."""
        with self._changed:
            self._taken -= n_bytes
            self._changed.notify_all()


class _Thread(threading.local):
    bounded = alone = False
    n_bytes = 0
    waited_s = 0.0


budget = ByteBudget(DECODING_BYTES)
_thread = _Thread()


@contextmanager
def bounded() -> Iterator[None]:
    """Let decoders of this thread reserve memory, until the end of the block."""
    _thread.bounded = True
    try:
        yield
    finally:
        _thread.bounded = False
        _release()


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread has reserved memory, and keep others from it."""
    _release()
    _take(budget.limit)
    _thread.alone = True
    try:
        yield
    finally:
        _thread.alone = False
        _release()


def waited_s() -> float:
    """Return the seconds for which this thread has waited for memory so far."""
    return _thread.waited_s


def reserve(n_bytes: int) -> None:
    """Reserve memory for the next content, in place of that of the one before.

    Outside `bounded` nothing is reserved: decoding one content at a time needs no bound.
    """
    if _thread.bounded and not _thread.alone:
        _release()
        _take(n_bytes)


def is_shortage(n_bytes: int) -> bool:
    """Whether memory ran out for want of RAM, and not because the content is damaged.

    A damaged file makes some decoders ask for memory without end. Only a thread that is alone can
    tell: the machine has what such a content needs.
    """
    if _thread.alone:
        try:
            bytearray(n_bytes)
        except MemoryError:
            return True
        return False
    return True


def _take(n_bytes: int) -> None:
    began = time.perf_counter()
    _thread.n_bytes = budget.take(n_bytes)
    _thread.waited_s += time.perf_counter() - began


def _release() -> None:
    if _thread.n_bytes:
        budget.give_back(_thread.n_bytes)
        _thread.n_bytes = 0
