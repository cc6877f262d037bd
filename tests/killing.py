"""Commands in a process of their own that dies at a chosen change of a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

Command = Callable[[], int]


class Killer:
    """An audit hook that ends the process before its n-th change of a file below a folder."""

    def __init__(self, root: Path, at: int) -> None:
        self.root, self.at, self.seen = str(root), at, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if not (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")):
            return
        path = arguments[0]
        if isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(self.root):
            self.seen += 1
            if self.seen == self.at:
                os._exit(137)


def forked(command: Command, root: Path, at: int = -1) -> tuple[int, int]:
    """Run a command in `root` in a process that dies at change `at`; its code, changes so far."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: none of them is ours
        child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException):
            signal.alarm(120)  # what hangs fails
            os.chdir(root)
            killer = Killer(root, at)
            sys.addaudithook(killer)
            code = command()
            os.write(write, b"%d" % killer.seen)
        os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return os.waitstatus_to_exitcode(status), int(pipe.read() or 0)


def content(root: Path) -> dict[str, bytes | None]:
    """Return what is below a folder: the bytes of files, None for folders."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def check_killed(command: Command, base: Path, trials: int, *, again: Sequence[int] = (0,)) -> None:
    """Kill a command at some of its changes; repeated, it must end as if it had not been killed.

    Args:
        command: What to run, in a copy of `base`.
        base: The folder in which it finds its input.
        trials: At how many of its changes to kill it.
        again: Exit codes of the command where its output is complete; that changes nothing.
    """
    root = base.with_name("root")
    shutil.copytree(base, root)
    code, changes = forked(command, root)
    expected = content(root)
    assert code == 0 and changes
    assert forked(command, root)[0] in again
    assert content(root) == expected
    trials = min(trials, changes)
    for at in (1 + (2 * trial + 1) * changes // (2 * trials) for trial in range(trials)):
        shutil.rmtree(root)
        shutil.copytree(base, root)
        assert forked(command, root, at)[0] == 137
        assert forked(command, root)[0] == 0, f"change {at}"
        got = content(root)
        lost, left = expected.keys() - got.keys(), got.keys() - expected.keys()
        other = {name for name in expected if got.get(name, b"") != expected[name]} - lost
        told = f"change {at}: lost {lost}, left {left}, other bytes in {other}"
        assert not lost and not left and not other, told
