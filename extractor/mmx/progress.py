"""What a running command says while it works: on stderr, never on stdout.

Inner code knows the `Progress` protocol and nothing of terminals; only this module knows rich.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

PLAIN_PERIOD_S = 10.0
"""How often a line is printed where stderr is no terminal (a log file, a CI job)."""


class Progress(Protocol):
    """What working code may say."""

    def note(self, message: str) -> None:
        """One line that the user should see once, such as a guess; silent with `-q`."""

    def detail(self, message: str) -> None:
        """One line for those who asked for more (`-v`)."""

    def warn(self, message: str) -> None:
        """One line that is shown even with `-q`."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """A stretch of work of `total` items begins, `done` of which are there already."""

    def advance(self, n: int, bottleneck: str = "") -> None:
        """`n` more items are done; `bottleneck` names the stage that takes most of the time."""

    def stop(self) -> None:
        """The stretch of work is over, finished or not."""


class SilentProgress:
    """Says nothing: the default of library calls."""

    def note(self, message: str) -> None:
        """Nothing."""

    def detail(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, n: int, bottleneck: str = "") -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class ConsoleProgress:
    """Notes and progress on stderr: a bar on a terminal, a line now and then elsewhere.

    Args:
        verbosity: -1 quiet, 0 normal, 1 verbose.
        stream: Where to write; stderr when None.
    """

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self.verbosity = verbosity
        self.stream = stream if stream is not None else sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._label = ""
        self._total = self._done = self._first = 0
        self._began = self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def note(self, message: str) -> None:
        """One line, unless quiet."""
        if self.verbosity >= 0:
            self._line(message)

    def detail(self, message: str) -> None:
        """One line, if verbose."""
        if self.verbosity >= 1:
            self._line(message)

    def warn(self, message: str) -> None:
        """One line, always."""
        self._line(f"warning: {message}")

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begins a bar, or the period of plain lines."""
        self.stop()
        self._label, self._total, self._done, self._first = label, total, done, done
        self._began = self._said = time.monotonic()
        if self.verbosity >= 0 and self.stream.isatty():
            self._bar = _rich_bar(self.stream)
            self._task = self._bar.add_task(
                label, total=total, completed=done, rate="", bottleneck=""
            )
            self._bar.start()

    def advance(self, n: int, bottleneck: str = "") -> None:
        """Moves the bar, or prints a line when the last one is `PLAIN_PERIOD_S` ago."""
        self._done += n
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task, advance=n, rate=f"{rate:,.1f} items/s", bottleneck=_share(bottleneck)
            )
        elif self.verbosity >= 0 and now - self._said >= PLAIN_PERIOD_S:
            self._said = now
            left = (self._total - self._done) / rate if rate > 0 else 0.0
            tail = f", {_share(bottleneck)}" if bottleneck else ""
            self._line(
                f"{self._label}: {self._done:,} of {self._total:,} items, {rate:,.1f} items/s, "
                f"{left:,.0f} s left{tail}"
            )

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            self.stream.write(message + "\n")
            self.stream.flush()


def _share(bottleneck: str) -> str:
    return f"limited by {bottleneck}" if bottleneck else ""


def _rich_bar(stream: TextIO) -> Any:
    """A rich bar that obeys NO_COLOR and leaves no trace of itself when it stops."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bottleneck]}"),
        console=Console(file=stream),
        transient=True,
    )
