"""Interrupts that wait for a good moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mmbase.process import held_interrupts


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Programs that a shell starts in the background ignore SIGINT; these tests are about those that do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts() as let_through:
        let_through()
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            let_through()
        let_through()
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_never_lost() -> None:
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        interrupt()


def test_other_threads_are_left_alone() -> None:
    outcome = []

    def work() -> None:
        with held_interrupts() as let_through:
            let_through()
            outcome.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == ["done"]
