"""The writer's lock on its own."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from mmstore import StoreAccess, StoreLocked, StoreWarning
from mmstore.filesystem import WriterLock, sync

fcntl = pytest.importorskip("fcntl")  # the lock of POSIX systems


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, others may remove the file, and may make a new one."""
    path = tmp_path / "x.h5.lock"
    lock = fcntl.lockf
    others = iter([lambda: path.unlink(), lambda: (path.unlink(), path.touch()), lambda: None])

    def interfere(descriptor: int, flags: int) -> None:
        next(others)()
        lock(descriptor, flags)

    monkeypatch.setattr(fcntl, "lockf", interfere)
    held = WriterLock(path)
    assert held._descriptor is not None and os.path.samestat(
        os.fstat(held._descriptor), path.stat()
    )
    held.release()
    held.release()
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EAGAIN, StoreLocked), (errno.EIO, StoreAccess)]
)
def test_a_lock_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", refuse)
        with pytest.raises(error):
            WriterLock(tmp_path / "x.h5.lock")
    WriterLock(tmp_path / "x.h5.lock").release()


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.usefixtures("lockless")
def test_without_locks_one_writer_goes_on_with_a_warning(tmp_path: Path) -> None:
    path, owner = tmp_path / "x.h5.lock", tmp_path / "x.h5.lock.owner"
    with pytest.warns(StoreWarning, match=r"has no locks \(No locks available\).*lock\.owner"):
        held = WriterLock(path)
    assert owner.is_file() and not path.exists()
    with pytest.raises(StoreLocked, match="another writer in this process"):
        WriterLock(path)
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("lockless")
@pytest.mark.parametrize(
    ("host", "process", "is_taken"),
    [
        (socket.gethostname(), os.getppid(), True),
        (socket.gethostname(), 2**22 + 1, False),  # no system has a process of this number
        ("elsewhere", 2**22 + 1, True),
        (None, None, True),  # unreadable: somebody may be about to write it
    ],
)
def test_without_locks_another_owner_is_respected_while_it_may_live(
    tmp_path: Path, host: str | None, process: int | None, is_taken: bool
) -> None:
    owner = tmp_path / "x.h5.lock.owner"
    told = json.dumps({"host": host, "process": process}) if host else ""
    owner.write_text(told, encoding="utf-8")
    if is_taken:
        with pytest.raises(StoreLocked, match="remove that file if there is none"):
            WriterLock(tmp_path / "x.h5.lock")
        assert owner.read_text(encoding="utf-8") == told
        return
    with pytest.warns(StoreWarning):
        WriterLock(tmp_path / "x.h5.lock").release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(StoreWarning, match="cannot force files onto the disk"):
        sync(0)
    number = errno.EIO  # a disk that fails is another matter
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(0)
