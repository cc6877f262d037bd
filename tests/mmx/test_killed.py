"""Commands that were killed at a change of a file: the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet  # noqa: F401 - imported once, and not in every fork
import pytest

from mmbase.cli import run
from mmx.cli import cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
EXPORT = ("store", "export", "st/visual/a.h5", "-q", "--format")
COMMANDS = {
    "demo": ("demo", "-q", "--out", "d", "--items", "24", "--users", "5"),
    "import": (
        *("store", "import", "-q", "--format", "npy", "--modality", "visual", "--name", "b"),
        *("a.npy", "--ids", "ids.txt", "--out", "st"),
    ),
    "npy": (*EXPORT, "npy", "--out", "x.npy"),
    "safetensors": (*EXPORT, "safetensors", "--out", "x.safetensors"),
    "parquet": (*EXPORT, "parquet", "--out", "x.parquet"),
    "csv": (*EXPORT, "csv", "--out", "x.csv"),
    "npy-folder": (*EXPORT, "npy-folder", "--out", "x", "--mapping", "map.tsv"),
}


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


def forked(arguments: tuple[str, ...], root: Path, at: int) -> tuple[int, int]:
    """Run a command in `root` in a process that dies at change `at`; its code, changes so far."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: none of them is ours
        child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.chdir(root)
            killer = Killer(root, at)
            sys.addaudithook(killer)
            code = run(cli, list(arguments))
            os.write(write, b"%d" % killer.seen)
        os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return os.waitstatus_to_exitcode(status), int(pipe.read() or 0)


def content(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def trial(name: str, tmp_path: Path, trials: int) -> None:
    base, root = tmp_path / "base", tmp_path / "root"
    base.mkdir()
    np.save(base / "a.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    (base / "ids.txt").write_text("".join(f"i{row}\n" for row in range(4)))
    first = tuple("a" if part == "b" else part for part in COMMANDS["import"])
    assert forked(first, base, -1)[0] == 0
    shutil.copytree(base, root)
    code, changes = forked(COMMANDS[name], root, -1)
    expected = content(root)
    assert code == 0 and changes
    assert forked(COMMANDS[name], root, -1)[0] == 0 and content(root) == expected
    for at in range(1, changes + 1, max(1, changes // trials)):
        shutil.rmtree(root)
        shutil.copytree(base, root)
        assert forked(COMMANDS[name], root, at)[0] == 137
        assert forked(COMMANDS[name], root, -1)[0] == 0, f"change {at}"
        assert content(root) == expected, f"change {at}"


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_some_changes(name: str, tmp_path: Path) -> None:
    trial(name, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_change(name: str, tmp_path: Path) -> None:
    trial(name, tmp_path, 10_000)
