from __future__ import annotations

import io

import pytest

import mmx.progress
from mmx.progress import ConsoleProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, verbosity: int = 0) -> str:
    with ConsoleProgress(verbosity, stream) as progress:
        progress.note("a note")
        progress.detail("a detail")
        progress.warn("a warning")
        progress.start("visual/x", 100, 20)
        progress.advance(30, "decode (90%)")
        progress.note("in between [bold]")
        progress.stop()
    return stream.getvalue()


def test_verbosity() -> None:
    assert work(io.StringIO()) == "a note\nwarning: a warning\nin between [bold]\n"
    assert work(io.StringIO(), -1) == "warning: a warning\n"
    assert "a detail\n" in work(io.StringIO(), 1)


def test_off_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmx.progress, "PLAIN_PERIOD_S", 0.0)
    text = work(io.StringIO())
    assert "visual/x: 50 of 100 items, " in text
    assert text.count("limited by decode (90%)") == 1
    assert "\x1b" not in text


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = work(Terminal())
    assert "visual/x" in text
    assert "limited by decode" in text
    assert "in between [bold]" in text


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in work(Terminal())
    assert "\x1b[32" not in work(Terminal())


def test_quiet_shows_no_bar_even_on_a_terminal() -> None:
    assert work(Terminal(), -1) == "warning: a warning\n"
