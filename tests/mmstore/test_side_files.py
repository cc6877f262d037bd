"""The writer's lock on its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mmstore import StoreAccess, StoreLocked
from mmstore.side_files import WriterLock

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
    ("number", "error"), [(errno.EAGAIN, StoreLocked), (errno.ENOLCK, StoreAccess)]
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
