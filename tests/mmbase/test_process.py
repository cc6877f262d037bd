"""Interrupts that wait for a good moment, and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mmbase.process import StopRequest, held_interrupts, out_of_memory, sigterm_as_interrupt


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Handle SIGINT, which programs that a shell starts in the background ignore."""
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


def test_a_stop_request_is_met_at_a_safe_moment_and_a_second_one_at_once() -> None:
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_becomes_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        sigterm_as_interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_terminal_that_is_closed_is_an_interrupt_unless_nohup_asked_otherwise() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may run under nohup
        sigterm_as_interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt), held_interrupts() as let_through:
            os.kill(os.getpid(), signal.SIGHUP)
            let_through()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sigterm_as_interrupt()
        with held_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("odd"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process may inherit a peak")
def test_the_peak_of_memory_is_that_of_this_process_alone() -> None:
    """And not of the one that started it."""
    held = bytearray(300 << 20)  # 300 MiB, all of it touched
    program = "from mmbase.process import peak_memory_bytes as p; print(p())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert len(held) > 250 << 20 > int(done.stdout)
