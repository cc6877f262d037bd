"""Commands in forks of this process: real processes and signals, and nothing is imported again.

What the start of an interpreter with torch costs (2.7 CPU seconds) is most of a short command.
Tests of imports and of the installed scripts start those; so do those of extraction, which has
threads, for which a fork of a test's process may wait in vain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from mmbase import cli as shell
from mmbench.cli import cli as mmbench

_LIMIT_S = 280  # what hangs fails


def _run(
    tool: str,
    arguments: Sequence[str],
    cwd: str | Path,
    streams: Sequence[int],
    environment: Mapping[str, str],
    prepare: Callable[[], object] | None = None,
) -> NoReturn:
    """Run a command in the forked process, and end it."""
    code = 99
    with contextlib.suppress(BaseException):
        signal.alarm(_LIMIT_S)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
        os.environ.update(environment)
        os.chdir(cwd)
        if prepare is not None:
            prepare()
        code = shell.run(mmbench, arguments, prog_name=tool)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: none of them is ours
        return os.fork()


class Forked:
    """A command of a tool in a process of its own; `wait` and so on as of `subprocess.Popen`.

    Args:
        tool: `mmbench`.
        arguments: Its command line.
        cwd: The folder in which it runs.
        environment: Variables that it has beside those of this process.
        prepare: Called first in the process, as to set a limit.
    """

    def __init__(
        self,
        tool: str,
        *arguments: str | Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.returncode: int | None = None
        self.stdout = self.stderr = ""
        streams = [file.fileno() for file in self._files]
        self.pid = _fork()
        if self.pid == 0:
            _run(tool, [*map(str, arguments)], cwd, streams, environment or {}, prepare)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._end(os.WNOHANG) if self.returncode is None else self.returncode

    def wait(self) -> int:
        """Return the exit code when it has ended; `stdout` and `stderr` are there then."""
        code = self._end(0) if self.returncode is None else self.returncode
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _end(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
            self.stdout, self.stderr = map(_content, self._files)
        return self.returncode


def _content(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def ended(tool: str, *arguments: str | Path, cwd: Path, expect: int = 0, **how: Any) -> Forked:
    """Run a command to its end, see `Forked`; it must have this exit code and no traceback."""
    process = Forked(tool, *arguments, cwd=cwd, **how)
    code = process.wait()
    assert code == expect, f"exit code {code}\n{process.stdout}\n{process.stderr}"
    assert "Traceback" not in process.stderr
    return process
