"""One writer per set: an exclusive lock file that dies with its process.

The lock is the operating system's (`fcntl` or `msvcrt`), not the existence of the file, so a killed
writer leaves nothing that has to be cleaned up by hand. Child processes do not inherit it.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

from mmstore.errors import StoreLocked
from mmstore.hdf5 import translated

_held: set[str] = set()  # fcntl locks do not exclude a second writer in the same process; this does
_guard = threading.Lock()


class WriterLock:
    """Holds `<name>.h5.lock` from construction until `release`.

    Raises:
        StoreLocked: Another writer, in this or in another process, holds it.
        StoreAccess: The lock file can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._key = f"{self._pid}:{path.resolve()}"
        with _guard:
            if self._key in _held:
                raise StoreLocked(
                    f"{path}: another writer in this process holds it; close that one first"
                )
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
                if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise
                raise StoreLocked(
                    f"{self.path}: another process writes this set; wait for it to end, or stop "
                    "it, and try again"
                ) from error
            # The last holder removes the file; a lock on a removed file excludes nobody, so take
            # the new one.
            try:
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def release(self) -> None:
        """Let others write; does nothing the second time or in a forked child."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if os.getpid() == self._pid and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        os.close(descriptor)
        with _guard:
            _held.discard(self._key)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
