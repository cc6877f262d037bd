"""Results that are computed in a thread of its own, while the caller deals with earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from typing import TypeVar

Result = TypeVar("Result")
_POLL_S = 0.05


class _End:
    """Says that no more results come, or why."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(results: Generator[Result, None, None], depth: int) -> Generator[Result, None, None]:
    """Yield results in order, computed in another thread.

    Args:
        results: Advanced, and closed, in that thread only.
        depth: Results that may be waiting.

    Raises:
        BaseException: What `results` raises, when its turn comes.
    """
    waiting: queue.Queue[Result | _End] = queue.Queue(depth)
    closed = threading.Event()

    def compute() -> None:
        end = _End()
        try:
            with closing(results):
                for result in results:
                    waiting.put(result)
                    if closed.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads
            end = _End(error)
        waiting.put(end)

    thread = threading.Thread(target=compute, name="mmx-results")
    thread.start()
    try:
        while not isinstance(got := waiting.get(), _End):
            yield got
        if got.error is not None:
            raise got.error
    finally:
        closed.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                waiting.get(timeout=_POLL_S)  # it may be waiting for a place
        thread.join()
