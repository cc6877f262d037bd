"""Results that another thread computes: their order, their errors, and their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from mmx.extraction.background import ahead


def test_results_come_in_order_and_are_computed_ahead_as_far_as_said() -> None:
    made: list[int] = []

    def numbers() -> Generator[int, None, None]:
        for k in range(20):
            made.append(k)
            yield k

    found = []
    for k in ahead(numbers(), 3):
        found.append(k)
        assert len(made) <= len(found) + 3 + 1
        time.sleep(0.001)
    assert found == made == list(range(20))


def test_an_error_comes_in_its_turn() -> None:
    def numbers() -> Generator[int, None, None]:
        yield from range(5)
        raise KeyError("here")

    found = []
    with pytest.raises(KeyError, match="here"):
        for k in ahead(numbers(), 8):
            found.append(k)
    assert found == list(range(5))


def test_who_stops_reading_ends_the_thread_and_what_it_holds() -> None:
    closed: list[str] = []

    def numbers() -> Generator[int, None, None]:
        try:
            yield from iter(int, 1)
        finally:
            closed.append(threading.current_thread().name)

    results = ahead(numbers(), 2)
    for _ in range(5):
        next(results)
    results.close()
    assert closed == ["mmx-results"]
    assert "mmx-results" not in [thread.name for thread in threading.enumerate()]
