"""Progress of a running command, on stderr; results go to stdout and never pass here.

Inner code knows the `Progress` protocol and nothing of terminals; only this module knows rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO

from mmbase.layout import hanging

PLAIN_PERIOD_S = 60.0
"""Seconds between lines where stderr is no terminal (a log file, a CI job)."""


class Task(Protocol):
    """A piece of work with a known number of steps."""

    def advance(self, steps: int = 1, message: str = "", label: str = "") -> None:
        """Report finished steps; `message` is the current state, such as a loss.

        `label`: a new one, if it has changed.
        """


class Progress(Protocol):
    """Progress reporter of long work."""

    def note(self, message: str) -> None:
        """Print a line that the user should see once, such as a guess; silent with `-q`."""

    def detail(self, message: str) -> None:
        """Print a line for those who asked for more (`-v`)."""

    def warn(self, message: str) -> None:
        """Print a warning, even with `-q`."""

    def task(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """Begin a task of `total` steps, `done` of them finished before."""


class Silent:
    """A reporter without output: the default of library calls."""

    def note(self, message: str) -> None:
        """Print nothing."""

    detail = warn = note

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a task that prints nothing."""
        yield self

    def advance(self, steps: int = 1, message: str = "", label: str = "") -> None:
        """Print nothing."""


class Series:
    """A reporter for tasks of similar length: each says which it is, and the time left for all.

    Args:
        total: How many tasks there are.
        progress: Where to report to; `through` changes it.

    Attributes:
        finished: Tasks that are over, also before this program began; set it to skip some.
    """

    def __init__(self, total: int, progress: Progress | None = None) -> None:
        self.total, self.finished = total, 0
        self._progress: Progress = progress or Silent()
        self._spent_s, self._worked = 0.0, 0.0  # seconds, and tasks that they were enough for

    def through(self, progress: Progress) -> Series:
        """Report there from now on; returns itself."""
        self._progress = progress
        return self

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self._progress.note(message)

    def detail(self, message: str) -> None:
        """See `Progress.detail`."""
        self._progress.detail(message)

    def warn(self, message: str) -> None:
        """See `Progress.warn`."""
        self._progress.warn(message)

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a task labelled `3 of 18, 12 min left for all: label`."""
        begun, advanced = time.monotonic(), done
        series = self

        def share() -> float:
            return (advanced - done) / max(1, total)

        def labelled() -> str:
            worked = series._worked + share()
            left = series.total - series.finished - advanced / max(1, total)
            told = f"{min(series.finished + 1, series.total)} of {series.total}"
            if worked > 0:
                spent = series._spent_s + time.monotonic() - begun
                told += f", {_time(max(0.0, left) * spent / worked)} left for all"
            return f"{told}: {label}"

        class Member:
            def advance(self, steps: int = 1, message: str = "", label: str = "") -> None:
                nonlocal advanced
                advanced += steps
                inner.advance(steps, message, labelled())

        try:
            with self._progress.task(labelled(), total, done) as inner:
                yield Member()
        finally:
            self._spent_s += time.monotonic() - begun
            self._worked += (total - done) / max(1, total)  # also if it stopped early
            self.finished += 1


class Terminal:
    """Notes on stderr, with a live bar on a terminal and a line now and then elsewhere.

    Args:
        verbosity: -1 quiet, 0 normal, 1 verbose.
        stream: Where to write; stderr when None.
    """

    def __init__(self, verbosity: int = 0, stream: TextIO | None = None) -> None:
        self.verbosity = verbosity
        self.stream = stream if stream is not None else sys.stderr
        self._bar: Any = None
        self._printed: float | None = None  # when the last line of progress was, of any task

    def begin(self) -> None:
        """Begin the time between two lines of progress, with the first task.

        It goes on through the tasks after it: of many short ones, none of which lasts for a line of
        its own, a line tells now and then.
        """
        if self._printed is None:
            self._printed = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line of progress; if so, the next one is a period away."""
        now = time.monotonic()
        if self._printed is not None and now - self._printed < PLAIN_PERIOD_S:
            return False
        self._printed = now
        return True

    def note(self, message: str) -> None:
        """Print a line, unless quiet."""
        if self.verbosity >= 0:
            self._print(message)

    def detail(self, message: str) -> None:
        """Print a line, if verbose."""
        if self.verbosity >= 1:
            self._print(message)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._print(f"warning: {message}")

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Task]:
        """Yield a task with a bar, or with lines off a terminal; with neither when quiet."""
        if self.verbosity < 0:
            yield Silent()
        elif not self.stream.isatty():
            yield _Lines(self, label, total, done)
        else:
            with _bar(self.stream) as self._bar:
                try:
                    yield _Bar(self._bar, label, total, done)
                finally:
                    self._bar = None

    def _print(self, message: str) -> None:
        if self.stream.isatty():  # the terminal itself would break words
            message = "\n".join(hanging(line, "", "  ") for line in message.split("\n"))
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            self.stream.write(message + "\n")
            self.stream.flush()


class _Rate:
    """Steps per second since the task began."""

    def __init__(self) -> None:
        self.done, self.began = 0, time.monotonic()

    def after(self, steps: int) -> float:
        self.done += steps
        return self.done / max(time.monotonic() - self.began, 1e-9)


class _Bar:
    def __init__(self, bar: Any, label: str, total: int, done: int) -> None:
        self._bar, self._rate = bar, _Rate()
        self._task = bar.add_task(label, total=total, completed=done, rate="", message="")

    def advance(self, steps: int = 1, message: str = "", label: str = "") -> None:
        rate = f"{_number(self._rate.after(steps))}/s"
        more = {"description": label} if label else {}
        self._bar.update(self._task, advance=steps, rate=rate, message=message, **more)


class _Lines:
    def __init__(self, terminal: Terminal, label: str, total: int, done: int) -> None:
        self._terminal, self._label, self._total, self._done = terminal, label, total, done
        self._rate = _Rate()
        terminal.begin()

    def advance(self, steps: int = 1, message: str = "", label: str = "") -> None:
        self._done, self._label = self._done + steps, label or self._label
        rate = self._rate.after(steps)
        if not self._terminal.due():
            return
        left = (self._total - self._done) / rate if rate else float("inf")
        line = f"{self._label}: {self._done:,} of {self._total:,}, {_number(rate)}/s"
        self._terminal.note(f"{line}, {left:,.0f} s left  {message}".rstrip())


def _time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _number(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 10 else f"{rate:.2g}"


def _bar(stream: TextIO) -> Any:
    """Return a rich bar that obeys NO_COLOR and leaves no trace of itself when it stops."""
    from rich import progress as rich
    from rich.cells import cell_len
    from rich.console import Console, Group, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream)

    class Line(rich.ProgressColumn):
        """What fits: count, time, label, bar, message, rate; a long label has its own line."""

        def render(self, task: rich.Task) -> RenderableType:
            label, time_left = task.description, rich.TimeRemainingColumn().render(task)
            count = f"{task.completed:,.0f}/{task.total or 0:,.0f}"
            rate, message = task.fields["rate"], task.fields["message"]
            bar = 24 if console.width >= 100 else 10
            # By importance; each with its place in the line, and its columns.
            parts: list[tuple[int, int, RenderableType]] = [
                (2, len(count), Text(count)),
                (4, len(time_left.plain), time_left),
                (0, cell_len(label), Text(label)),
                (1, bar, ProgressBar(max(1, task.total or 1), task.completed, width=bar)),
                (5, cell_len(message), Text(message)),
                (3, len(rate), Text(rate)),
            ]
            width, above = console.width - 1, []
            if cell_len(label) + len(count) + len(time_left.plain) + 2 > width:
                above = [Text(label)]
                parts = [part for part in parts if part[0] != 0]
            shown: list[tuple[int, RenderableType]] = []
            for place, size, part in parts:
                if 0 < size <= width:
                    shown.append((place, part))
                    width -= size + 1
            grid = Table.grid(padding=(0, 1))
            grid.add_row(*(part for _, part in sorted(shown, key=lambda one: one[0])))
            return Group(*above, grid)

    return rich.Progress(Line(), console=console, transient=True)
