"""What is shown on stderr while something runs; results go to stdout and never pass here."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


PLAIN_PERIOD_S = 15.0
"""Seconds between lines where stderr is no terminal."""


class Progress(Protocol):
    """Where long work reports to."""

    def note(self, message: str) -> None:
        """One line that stays."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A piece of work with a known number of steps."""


class Task(Protocol):
    """One piece of work."""

    def advance(self, steps: int = 1, message: str = "") -> None:
        """So many steps are done; `message` says how it stands."""


class Silent:
    """Says nothing; for tests and `-q`."""

    def note(self, message: str) -> None:
        """Nothing."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A task that says nothing."""
        yield _SilentTask()


class _SilentTask:
    def advance(self, steps: int = 1, message: str = "") -> None:
        pass


class Terminal:
    """A live bar with rate and remaining time on a terminal; elsewhere a plain line every `PLAIN_PERIOD_S`."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console: Console = Console(stderr=True, highlight=False)

    def note(self, message: str) -> None:
        """One line that stays."""
        self.console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar on a terminal, else lines."""
        if not self.console.is_terminal:
            yield _Lines(self, label, total, done)
            return
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[message]}"),
        )
        with bars.Progress(*columns, console=self.console, transient=True) as bar:
            identity = bar.add_task(label, total=total, completed=done, message="")
            yield _Bar(bar, identity)


class _Bar:
    def __init__(self, bar: object, identity: object) -> None:
        self._bar, self._identity = bar, identity

    def advance(self, steps: int = 1, message: str = "") -> None:
        self._bar.update(self._identity, advance=steps, message=message)  # type: ignore[attr-defined]


class _Lines:
    def __init__(self, terminal: Terminal, label: str, total: int, done: int) -> None:
        self._terminal, self._label, self._total, self._done = terminal, label, total, done
        self._started = self._last = time.monotonic()
        self._begun_at = done

    def advance(self, steps: int = 1, message: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last < PLAIN_PERIOD_S:
            return
        self._last = now
        rate = (self._done - self._begun_at) / (now - self._started)
        left = (self._total - self._done) / rate if rate else float("inf")
        self._terminal.note(
            f"{self._label}: {self._done}/{self._total}, {rate:.2g}/s, {left:.0f} s left  {message}"
        )


def make_progress(*, quiet: bool = False) -> Progress:
    """The progress for a command line."""
    return Silent() if quiet else Terminal()
