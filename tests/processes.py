"""Commands in processes of their own, with real signals, in which nothing is imported again.

What the start of an interpreter with torch costs (2 to 7 CPU seconds) is most of a short command.
These processes are forks of a server (`multiprocessing`'s forkserver) that has imported the
libraries and runs nothing, so that it has a single thread. A fork of the test's own process may
wait for ever: libgomp in a fork waits for the threads that a training with two threads left in
the process of the tests. Tests of imports and of the installed scripts start those.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import _forkserver as _server  # type: ignore[attr-defined]
from pathlib import Path
from typing import IO, Any

LIMIT_S = 280  # what hangs fails
IMPORTED = [
    "torch._dynamo", "mmbench.commands.reproduce", "mmbench.commands.tune",
    "mmbench.runs.executors", "mmbench.analysis.recommend", "mmbench.ops.kernels.rows",
    "mmbench.ops.kernels.draws", "mmx.commands.extract", "mmx.commands.fetch",
    "mmx.extraction.extract", "sklearn.feature_extraction.text", "sklearn.utils.extmath",
]  # fmt: skip
"""By the server, where they are installed; a test of more adds to it when it is imported."""


def server() -> ForkServerContext:
    """How to start a process that has imported most of what the tools do; see above."""
    context = multiprocessing.get_context("forkserver")
    # One thread: pyarrow's allocator and BLAS have others, and start them when they are imported.
    with _environment(JE_ARROW_MALLOC_CONF="background_thread:false", OPENBLAS_NUM_THREADS="1"):
        context.set_forkserver_preload([*IMPORTED, "tests.preloaded"])
        if multiprocessing.parent_process() is None:
            _server.ensure_running()
        else:  # a fork of the server, which knows where it is, and starts another one otherwise
            _server.ensure_running = lambda: None  # type: ignore[method-assign]
    return context


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(
    tool: str,
    arguments: Sequence[str],
    cwd: str | Path,
    streams: Sequence[str],
    environment: Mapping[str, str],
    prepare: Callable[[], object] | None,
) -> None:
    """Run a command in its process, and end that with the command's exit code."""
    signal.alarm(LIMIT_S)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if tool == "mmbench":
        from mmbench.cli import cli
    else:
        from mmx.cli import cli
    if prepare is not None:
        prepare()
    cli.main([*arguments], prog_name=tool)


class Forked:
    """A command of a tool in a process of its own; `wait` and so on as of `subprocess.Popen`.

    Args:
        tool: `mmbench` or `mmx`.
        arguments: Its command line.
        cwd: The folder in which it runs.
        environment: Variables that it has beside those of this process.
        prepare: A module's function that is called first in the process, as to set a limit.
    """

    def __init__(
        self,
        tool: str,
        *arguments: str | Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        self.returncode: int | None = None
        self.stdout = self.stderr = ""
        streams = [file.name for file in self._files]
        self._process = begin(
            tool,
            [*map(str, arguments)],
            cwd,
            streams,
            {**os.environ, **(environment or {})},
            prepare,
        )
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._end(0) if self.returncode is None else self.returncode

    def wait(self) -> int:
        """Return the exit code when it has ended; `stdout` and `stderr` are there then."""
        code = self._end(None) if self.returncode is None else self.returncode
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _end(self, timeout_s: float | None) -> int | None:
        self._process.join(timeout_s)
        self.returncode = self._process.exitcode
        if self.returncode is not None:
            self.stdout, self.stderr = map(_content, self._files)
        return self.returncode


def begin(*arguments: Any) -> ForkServerProcess:
    """Start `_run` with these arguments in a process of its own."""
    process = server().Process(target=_run, args=arguments)
    process.start()
    return process


def _content(file: IO[str]) -> str:
    with file:
        return file.read()


def ended(tool: str, *arguments: str | Path, cwd: Path, expect: int = 0, **how: Any) -> Forked:
    """Run a command to its end, see `Forked`; it must have this exit code and no traceback."""
    process = Forked(tool, *arguments, cwd=cwd, **how)
    code = process.wait()
    assert code == expect, f"exit code {code}\n{process.stdout}\n{process.stderr}"
    assert "Traceback" not in process.stderr
    return process


_CLIENT = """#!{python} -ISs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
server.sendall(json.dumps([{tool!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
server.shutdown(socket.SHUT_WR)
sys.exit(int(server.recv(8) or 1))
"""


class Served:
    """A folder with the commands of the tools, for `make`; forks of the server do their work.

    Args:
        folder: Where to make the commands.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder
        folder.mkdir()
        # The paths of tests are too long for a socket.
        self._place = tempfile.TemporaryDirectory(prefix="mm")
        address = str(Path(self._place.name) / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        for tool in ("mmx", "mmbench"):
            text = _CLIENT.format(python=sys.executable, address=address, tool=tool)
            (folder / tool).write_text(text, encoding="utf-8")
            (folder / tool).chmod(0o755)

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self._place.cleanup()

    def call(
        self, command: Sequence[str], environment: Mapping[str, str], kill_after_s: float = LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that calls the tools; kill it with all it has started after some time."""
        with (
            tempfile.NamedTemporaryFile("a+") as out,
            tempfile.NamedTemporaryFile("a+") as err,
            subprocess.Popen(
                command, stdout=out, stderr=err, env=environment, start_new_session=True
            ) as whole,
        ):
            until_s = time.monotonic() + kill_after_s
            while whole.poll() is None:
                if self._is_asked():
                    self._serve(whole.pid, (out.name, err.name), until_s)
                elif time.monotonic() > until_s:
                    os.killpg(whole.pid, signal.SIGKILL)
            while self._is_asked():  # by what was killed
                self._listener.accept()[0].close()
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(command, whole.returncode, out.read(), err.read())

    def _is_asked(self) -> bool:
        return bool(select.select([self._listener], [], [], 0.01)[0])

    def _serve(self, group: int, streams: Sequence[str], until_s: float) -> None:
        """Run what a client asks for; kill it, and before it the group that waits for it."""
        client = self._listener.accept()[0]
        with client, client.makefile("rb") as asked:
            tool, arguments, cwd, environment = json.loads(asked.read())
            process = begin(tool, arguments, cwd, streams, environment, None)
            while process.exitcode is None:
                process.join(0.01)
                if time.monotonic() > until_s:
                    os.killpg(group, signal.SIGKILL)
                    process.kill()
                    process.join()
            with suppress(BrokenPipeError):
                client.sendall(b"%d" % process.exitcode)
