"""One decoded content for several encoders: within `shared_decoding` a thread remembers what it decoded last."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mmx.errors import ContentError

Decoded = TypeVar("Decoded")


class _Memory(threading.local):
    wanted = False
    last: tuple[Any, Any] | None = None


_memory = _Memory()


@contextmanager
def shared_decoding(wanted: bool = True) -> Iterator[None]:
    """Inside, a `remembered` function that is called again with the same content in this thread answers from memory."""
    _memory.wanted, _memory.last = wanted, None
    try:
        yield
    finally:
        _memory.wanted, _memory.last = False, None


def remembered(decode: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """Makes a decoder answer from memory within `shared_decoding`; its result must not be changed by those who get it."""

    @functools.wraps(decode)
    def answer(content: Any, *more: Any) -> Decoded:
        if not _memory.wanted:
            return decode(content, *more)
        key = (decode, content, *more)
        if _memory.last is None or _memory.last[0] != key:
            try:
                _memory.last = key, decode(content, *more)
            except ContentError as error:
                _memory.last = key, error
        result: Decoded | ContentError = _memory.last[1]
        if isinstance(result, ContentError):
            raise result
        return result

    return answer
