"""That the processes of `tests.processes` are safe: their server never has a second thread."""

from __future__ import annotations

import os
import signal
from multiprocessing.forkserver import _forkserver  # type: ignore[attr-defined]
from pathlib import Path

import pytest

from tests.processes import Forked, ended


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_server_has_one_thread(tmp_path: Path) -> None:
    assert "mmbench" in ended("mmbench", "--version", cwd=tmp_path).stdout
    threads = Path(f"/proc/{_forkserver._forkserver_pid}/task")
    assert len([*threads.iterdir()]) == 1


def stop() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_exit_codes_and_messages_are_those_of_the_command(tmp_path: Path) -> None:
    done = Forked("mmx", "extract", "--model", "nothing", cwd=tmp_path)
    assert done.wait() == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
    killed = Forked("mmx", "--version", cwd=tmp_path, prepare=stop)
    assert (killed.wait(), killed.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
