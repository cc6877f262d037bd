"""Notes and tasks on a terminal and off it."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest

import mmbase.progress
from mmbase.progress import Series, Silent, Terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, verbosity: int = 0) -> str:
    progress = Terminal(verbosity, stream)
    progress.note("a note")
    progress.detail("a detail")
    progress.warn("a warning")
    with progress.task("visual/x", 100, 20) as task:
        task.advance(30, "loss 0.5")
        progress.note("in between [bold]")
    return stream.getvalue()


def test_verbosity() -> None:
    assert work(io.StringIO()) == "a note\nwarning: a warning\nin between [bold]\n"
    assert work(io.StringIO(), -1) == "warning: a warning\n"
    assert "a detail\n" in work(io.StringIO(), 1)


def test_off_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmbase.progress, "PLAIN_PERIOD_S", 0.0)
    text = work(io.StringIO())
    assert "visual/x: 50 of 100, " in text
    assert text.count("s left  loss 0.5\n") == 1
    assert "\x1b" not in text


def test_rate_and_remaining_time_leave_out_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 0.0, 2.0, 60.0])  # the task begins, 40 steps take two seconds
    monkeypatch.setattr(mmbase.progress.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with Terminal(0, stream).task("t", 1100, 1000) as task:
        task.advance(40)
    assert stream.getvalue() == "t: 1,040 of 1,100, 20.0/s, 3 s left\n"


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = work(Screen())
    assert "visual/x" in text
    assert "loss 0.5" in text
    assert "in between [bold]" in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize(
    "label", ["vbpr seed 1", "trial 12/18 lr=0.0005, " + "reg_weight=0.01, " * 3]
)
def test_the_bar_never_lacks_its_count(
    width: int, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TERM", "xterm"), ("NO_COLOR", "1"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    screen = Screen()
    progress = Terminal(0, screen)
    with progress.task(label, 1500) as task:
        task.advance(30, "loss 0.5123  best Recall@20 0.0123")
        progress._bar.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", screen.getvalue()).replace("\r", "\n")
    (counted,) = {line for line in lines.splitlines() if "30/1,500" in line}
    assert "-:--:--" in counted  # the time that is left
    assert max(map(len, lines.splitlines())) <= width
    assert " ".join(label.split()) in " ".join(lines.split())
    assert "loss 0.5123  best Recall@20 0.0123" in counted or width < 80 or len(label) > 60
    assert "…" not in lines


def test_notes_are_broken_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    note = "visual: colour-hog, 760 of 785 items have a vector\nindented"
    for screen, expected in (
        (Screen(), "visual: colour-hog, 760 of 785\n  items have a vector\nindented\n"),
        (io.StringIO(), note + "\n"),
    ):
        Terminal(0, screen).note(note)
        assert screen.getvalue() == expected


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in work(Screen())
    assert "\x1b[32" not in work(Screen())


def test_quiet_shows_no_bar_even_on_a_terminal() -> None:
    assert work(Screen(), -1) == "warning: a warning\n"


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.note("x")
    progress.warn("x")
    with progress.task("x", 1) as task:
        task.advance()
    assert capsys.readouterr() == ("", "")


def test_tasks_of_a_series_are_numbered_and_tell_the_time_left_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(mmbase.progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(mmbase.progress, "PLAIN_PERIOD_S", 0.0)
    stream = io.StringIO()
    series = Series(4).through(Terminal(0, stream))
    series.finished = 1  # before this program began
    for name in ("a", "b"):
        with series.task(name, 10) as task:
            for _ in range(2):  # the second half of the first is stopped early
                now[0] += 60.0
                task.advance(5, "loss 1")
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "2 of 4, 5 min left for all",
        "2 of 4, 4 min left for all",
        "3 of 4, 3 min left for all",
        "3 of 4, 2 min left for all",
    ]
    assert lines[0] == "2 of 4, 5 min left for all: a: 5 of 10, 0.083/s, 60 s left  loss 1"


def test_a_task_that_ends_early_counts_as_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(mmbase.progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(mmbase.progress, "PLAIN_PERIOD_S", 0.0)
    stream = io.StringIO()
    series = Series(3).through(Terminal(0, stream))
    for steps in (2, 10):
        with series.task("x", 100) as task:
            now[0] += 6.0 * steps
            task.advance(steps)
    assert "2 of 3, 2 min left for all" in stream.getvalue()


def test_of_many_short_tasks_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them lasts for a line of its own."""
    now = [0.0]
    monkeypatch.setattr(mmbase.progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    series = Series(40).through(Terminal(0, stream))
    for number in range(40):
        with series.task(f"training {number}", 2) as task:
            for _ in range(2):
                now[0] += 7.0
                task.advance(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 40 * 14 // 63  # every ninth step is the first after a minute
    assert lines[0].startswith("5 of 40, ") and "training 4: 1 of 2" in lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_fits_the_terminal_as_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is laid out for the width that the terminal has then, narrower or wider."""
    import fcntl
    import pty
    import select
    import struct
    import termios

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    master, slave = pty.openpty()

    def resize(width: int) -> None:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def read() -> list[str]:
        text = b""
        while select.select([master], [], [], 0.05)[0]:
            text += os.read(master, 1 << 16)
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "\n", text.decode())
        return [line for line in plain.splitlines() if line.strip()]

    resize(120)
    # The width is that of the first of stdin, stdout and stderr that is a terminal.
    monkeypatch.setattr("rich.console._STD_STREAMS", (slave,))
    with os.fdopen(slave, "w", closefd=False) as stream:
        progress, told = Terminal(0, stream), {}
        with progress.task("visual/resnet50", 1500) as task:
            task.advance(30, "loss 0.5123  best Recall@20 0.0123")
            for width in (120, 60, 30, 100):
                progress._bar.live._refresh_thread.stop()  # no frame but those of the test
                resize(width)
                read()
                progress._bar.refresh()
                lines = read()
                assert max(map(len, lines)) < width, lines
                assert any("30/1,500" in line for line in lines)
                told[width] = "best Recall@20" in " ".join(lines)
    assert told == {120: True, 60: False, 30: False, 100: True}
    os.close(master)
    os.close(slave)
