"""Commands in forks of this process: real processes and signals, and nothing is imported again.

What the start of an interpreter with torch costs (2.7 CPU seconds) is most of a short command.
Tests of imports and of the installed scripts start those.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from mmbase import cli as shell
from mmbench.cli import cli as mmbench

_LIMIT_S = 280  # what hangs fails


def _tool(name: str) -> Any:
    if name == "mmbench":
        return mmbench
    from mmx.cli import cli

    return cli


def _run(
    tool: str,
    arguments: Sequence[str],
    cwd: str | Path,
    streams: Sequence[int],
    environment: Mapping[str, str],
    prepare: Callable[[], object] | None = None,
    tell: Callable[[int], object] = lambda code: None,
) -> NoReturn:
    """Run a command in the forked process, tell its exit code, and end the process."""
    code = 99
    with contextlib.suppress(BaseException):
        signal.alarm(_LIMIT_S)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ.update(environment)
        os.chdir(cwd)
        if prepare is not None:
            prepare()
        code = shell.run(_tool(tool), arguments, prog_name=tool)
        sys.stdout.flush()
        sys.stderr.flush()
        tell(code)
    os._exit(code)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: none of them is ours
        return os.fork()


class Forked:
    """A command of a tool in a process of its own; `wait` and so on as of `subprocess.Popen`.

    Args:
        tool: `mmx` or `mmbench`.
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


_CLIENT = """#!{python} -ISs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([{tool!r}, sys.argv[1:], os.getcwd(), dict(os.environ)])
socket.send_fds(server, [len(asked.encode()).to_bytes(8, "big")], [1, 2])
server.sendall(asked.encode())
sys.exit(int(server.recv(8) or 1))
"""


class Served:
    """A folder with the commands of the tools, for `make`; forks of this process do the work.

    Args:
        folder: Where to make the commands.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder
        folder.mkdir()
        self._address = Path(tempfile.mkdtemp(prefix="mm")) / "s"  # tests' paths are too long
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._address))
        self._listener.listen()
        for tool in ("mmx", "mmbench"):
            script = folder / tool
            text = _CLIENT.format(python=sys.executable, address=str(self._address), tool=tool)
            script.write_text(text, encoding="utf-8")
            script.chmod(0o755)

    def close(self) -> None:
        """End it."""
        self._listener.close()
        shutil.rmtree(self._address.parent)

    def call(
        self, command: Sequence[str], environment: Mapping[str, str], kill_after_s: float = 1e9
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that calls the tools; kill it with all it has started after some time."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            whole = subprocess.Popen(
                command, stdout=out, stderr=err, env=environment, start_new_session=True
            )
            end_s = time.monotonic() + min(kill_after_s, _LIMIT_S)
            running: set[int] = set()
            while whole.poll() is None:
                if time.monotonic() > end_s:
                    for process in (-whole.pid, *running):
                        os.kill(process, signal.SIGKILL)
                    whole.wait()
                if select.select([self._listener], [], [], 0.01)[0]:
                    running.add(self._begin())
                running -= {one for one in running if os.waitpid(one, os.WNOHANG)[0]}
            for one in running:
                os.waitpid(one, 0)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, whole.returncode, out.read(), err.read())

    def _begin(self) -> int:
        """Take a client's command line and streams; return the process that does it."""
        client = self._listener.accept()[0]
        with client:
            size, streams, _, _ = socket.recv_fds(client, 8, 2)
            asked = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
            child = _fork()
            if child == 0:
                tool, arguments, cwd, environment = json.loads(asked)
                tell = lambda code: client.sendall(b"%d" % code)  # noqa: E731
                _run(tool, arguments, cwd, streams, environment, tell=tell)
            for stream in streams:
                os.close(stream)
        return child
