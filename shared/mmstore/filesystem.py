"""Locks and durable writes, and how the store does without them.

Network folders, overlays and mounts of object stores may have no locks, or no way to force bytes
onto the disk.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

from mmstore.errors import StoreLocked, StoreWarning
from mmstore.hdf5 import translated

_UNSUPPORTED = {
    errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY,
}  # fmt: skip


def sync(descriptor: int) -> None:
    """Force a file or folder onto the disk; only warn if the file system cannot.

    Raises:
        OSError: The disk failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"this file system cannot force files onto the disk ({error.strerror}): what a power "
            "cut would leave of them is uncertain",
            StoreWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )


def replace_synced(source: Path, target: Path) -> None:
    """Rename a whole file onto `target` in one step that survives a power cut."""
    # The bytes before the name: else a power cut could leave the name of a file without content.
    sync_path(source)
    source.replace(target)
    sync_path(target.parent)


def sync_path(path: Path) -> None:
    """Force a file or folder onto the disk; as `sync`."""
    if path.is_dir() and os.name == "nt":  # Windows can't open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


_held: set[str] = set()  # fcntl locks do not exclude a second writer in the same process; this does
_guard = threading.Lock()


class WriterLock:
    """Holds `<name>.h5.lock` from construction until `release`: one writer per set.

    The lock is the operating system's, not the existence of the file, so a killed writer leaves
    nothing that has to be cleaned up by hand. Child processes don't inherit it. Where the file
    system has no locks, a file that can be made only once says who writes; a warning tells. One
    that a killed writer of this machine left is taken over.

    Raises:
        StoreLocked: Another writer, in this or in another process, holds it.
        StoreAccess: The lock file can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = path.with_name(path.name + ".owner")
        self._owned = False
        self._pid = os.getpid()
        self._key = f"{self._pid}:{path.resolve()}"
        with _guard:
            if self._key in _held:
                what = f"{path}: another writer in this process holds it"
                raise StoreLocked(f"{what}; close that one first")
            with translated(path):
                self._descriptor: int | None = self._acquire()
            _held.add(self._key)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _UNSUPPORTED:
                    return self._claim(str(error.strerror))
                if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise
                what = f"{self.path}: another process writes this set"
                raise StoreLocked(f"{what}; wait for it to end, or stop it") from error
            # The last holder removes the file; a lock on a removed file excludes nobody, so take
            # the new one.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            os.close(descriptor)

    def _claim(self, reason: str) -> int:
        """Make the owner's file, and return a descriptor of it."""
        self.path.unlink(missing_ok=True)
        own = json.dumps({"host": socket.gethostname(), "process": self._pid})
        for _ in range(2):
            with suppress(FileExistsError):
                descriptor = os.open(self._owner, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                self._owned = True
                os.write(descriptor, own.encode())
                warnings.warn(
                    f"{self.path.parent}: this file system has no locks ({reason}); writers are "
                    f"kept apart by the file {self._owner.name}",
                    StoreWarning,
                    stacklevel=5,
                )
                return descriptor
            if not _is_abandoned(self._owner):
                break
            self._owner.unlink(missing_ok=True)
        raise StoreLocked(
            f"{self._owner}: another process writes this set, here or on another machine; wait for "
            "it to end, or remove that file if there is none"
        )

    def release(self) -> None:
        """Let others write; does nothing the second time or in a forked child."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if os.getpid() == self._pid and sys.platform != "win32":
            (self._owner if self._owned else self.path).unlink(missing_ok=True)
        os.close(descriptor)
        with _guard:
            _held.discard(self._key)


def _is_abandoned(owner: Path) -> bool:
    """Whether the process that an owner's file names is of this machine and has ended."""
    try:
        told = json.loads(owner.read_bytes())
        if told["host"] != socket.gethostname():
            return False
        os.kill(int(told["process"]), 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
