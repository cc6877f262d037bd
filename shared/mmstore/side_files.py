"""What lies beside a set while it is written: side files, the vector log, the error log and the undo copy.

```
<name>.h5.lock              held by the one writer
<name>.h5.partial           HDF5: ids, status, and the rows of a dense set
<name>.h5.partial.new       a file that is being made, renamed when it is whole
<name>.h5.partial.vectors   ragged sets: vectors in the order in which they came
<name>.h5.partial.errors    one JSON line per corrupt row
<name>.h5.partial.undo      dense sets, only during the last step: everything of the partial but its vectors
```
A side file without its `.partial` belongs to nothing and is removed by the next writer.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmstore.errors import DamagedFeatureSet, StoreLocked
from mmstore.hdf5 import Place, translated, write_all
from mmstore.ids import block_rows, runs
from mmstore.spec import BLOCK_BYTES, PARTIAL_SUFFIX


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a set and its side files lie."""

    final: Path

    def _beside(self, suffix: str) -> Path:
        return self.final.with_name(self.final.name + suffix)

    @property
    def lock(self) -> Path:
        """The writer's lock."""
        return self._beside(".lock")

    @property
    def partial(self) -> Path:
        """The unfinished set."""
        return self._beside(PARTIAL_SUFFIX)

    @property
    def new(self) -> Path:
        """A file that is being made."""
        return self._beside(PARTIAL_SUFFIX + ".new")

    @property
    def vectors(self) -> Path:
        """The vector log."""
        return self._beside(PARTIAL_SUFFIX + ".vectors")

    @property
    def errors(self) -> Path:
        """The error log."""
        return self._beside(PARTIAL_SUFFIX + ".errors")

    @property
    def undo(self) -> Path:
        """The undo copy."""
        return self._beside(PARTIAL_SUFFIX + ".undo")

    def discard_partial(self) -> None:
        """Remove the unfinished set and its side files; the set first, so that a kill leaves only orphans."""
        for path in (self.partial, self.new, self.vectors, self.errors, self.undo):
            path.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Force a file, or on POSIX the entries of a folder, onto the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_synced(source: Path, target: Path) -> None:
    """Rename a whole file onto `target` in one step that survives a power cut."""
    sync_path(source)
    source.replace(target)
    sync_path(target.parent)


# ------------------------------------------------------------------------------------------------
# undo


def save_undo(paths: Paths, start: int, stop: int) -> None:
    """Copy everything of the partial set but bytes `[start, stop)`, so that `restore_undo` can bring it back.

    Finishing a dense set in place changes HDF5's metadata, which is not atomic. The vectors do not
    change then, so the copy is small: the ids and the status.
    """
    size = paths.partial.stat().st_size
    with paths.partial.open("rb") as source, paths.new.open("wb") as target:
        target.write(
            json.dumps({"size": size, "start": start, "stop": stop}).encode("ascii") + b"\n"
        )
        _copy(source, target, start)
        source.seek(stop)
        _copy(source, target, size - stop)
    replace_synced(paths.new, paths.undo)


def restore_undo(paths: Paths) -> None:
    """Bring the partial set back to what it was at `save_undo`, then remove the copy. Safe to repeat after a kill."""
    with paths.undo.open("rb") as source, paths.partial.open("r+b") as target:
        header = json.loads(source.readline())
        _copy(source, target, header["start"])
        target.seek(header["stop"])
        _copy(source, target, header["size"] - header["stop"])
        target.truncate(header["size"])
    sync_path(paths.partial)
    paths.undo.unlink()


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size > 0:
        block = source.read(min(size, BLOCK_BYTES))
        if not block:
            raise DamagedFeatureSet(
                f"{source.name}: shorter than expected; run again with --restart"
            )
        target.write(block)
        size -= len(block)


# ------------------------------------------------------------------------------------------------
# error log


class ErrorLog:
    """Why rows are corrupt, one JSON line each, appended as it happens; the last line of a row counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: FileIO | None = None

    def append(self, rows: NDArray[np.int64], messages: list[bytes]) -> None:
        """Write through to the operating system, so that a killed process loses none of it."""
        if self._stream is None:
            self._cut_torn_line()
            self._stream = self._path.open("ab", buffering=0)
        lines = [
            json.dumps({"row": row, "message": message.decode("utf-8")}) + "\n"
            for row, message in zip(rows.tolist(), messages, strict=True)
        ]
        try:
            write_all(self._stream, "".join(lines).encode("ascii"))
        except OSError:
            self.close()  # half a line may be there: the next use cuts it off
            raise

    def read(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The messages of `rows` (ascending), in that order."""
        found = dict.fromkeys(
            rows.tolist(), b"unknown (the log of the extraction that met it was lost)"
        )
        if self._path.exists():
            self._cut_torn_line()
            with self._path.open("rb") as stream:
                for line in stream:
                    with suppress(
                        ValueError, LookupError, TypeError, AttributeError
                    ):  # damaged: the reason is unknown
                        entry = json.loads(line)
                        if entry["row"] in found:
                            found[entry["row"]] = entry["message"].encode("utf-8")
        return list(found.values())

    def sync(self) -> None:
        """Force the log onto the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Release the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _cut_torn_line(self) -> None:
        """Drop a last line without its end: a kill came in between, and its row is still pending."""
        if not self._path.exists():
            return
        with self._path.open("r+b") as stream:
            data = stream.read()
            if not data.endswith(b"\n"):
                stream.truncate(data.rfind(b"\n") + 1)


# ------------------------------------------------------------------------------------------------
# vector log


class VectorLog:
    """The vectors of an unfinished ragged set, appended in the order in which they came.

    Args:
        path: The file; made when it is absent.
        dim: Length of a vector.
        dtype: How vectors are stored, `float16` or `float32`.
        used: Number of vectors that rows refer to; whatever a killed writer left behind them is cut
            off.

    Raises:
        DamagedFeatureSet: The file is shorter than `used` vectors.
    """

    def __init__(self, path: Path, dim: int, dtype: str, used: int) -> None:
        self._dim = dim
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._vector_bytes = dim * self._dtype.itemsize
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)
        size = self._stream.seek(0, os.SEEK_END)
        if size < used * self._vector_bytes:
            self._stream.close()
            raise DamagedFeatureSet(
                f"{path}: shorter than the rows that refer to it (got {size} bytes, expected at "
                "least "
                f"{used * self._vector_bytes}); run again with --restart"
            )
        self._stream.truncate(used * self._vector_bytes)
        self.used = used

    def append(self, vectors: NDArray[np.floating]) -> int:
        """Add `vectors`, shape (k, dim), and return the number of the first."""
        first = self.used
        self._stream.seek(
            first * self._vector_bytes
        )  # not the end: a failed write may have left something there
        write_all(
            self._stream,
            np.ascontiguousarray(vectors, dtype=self._dtype).reshape(-1).view(np.uint8).data,
        )
        self.used += len(vectors)
        return first

    def gather(
        self, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> Iterator[NDArray[np.floating]]:
        """The vectors `start[i] ... start[i] + length[i]` of row after row, in blocks of shape (k, dim).

        Args:
            start: First vector of each row, shape (n,).
            length: Number of vectors of each row, all > 0, shape (n,).
        """
        limit = block_rows(self._vector_bytes)
        # Rows that lie one behind the other in the log are read together.
        edges = np.flatnonzero(start[1:] != start[:-1] + length[:-1]) + 1
        firsts = np.concatenate(([0], edges)).astype(np.int64)
        lasts = np.concatenate((edges, [start.size])).astype(np.int64)
        if start.size == 0:
            return
        ends = (start + length)[lasts - 1]
        pieces: list[NDArray[np.floating]] = []
        held = 0
        for at, end in zip(start[firsts].tolist(), ends.tolist(), strict=True):
            while at < end:
                take = min(end - at, limit - held)
                pieces.append(self._read(at, take))
                at, held = at + take, held + take
                if held == limit:
                    yield np.concatenate(pieces)
                    pieces, held = [], 0
        if pieces:
            yield np.concatenate(pieces)

    def _read(self, first: int, count: int) -> NDArray[np.floating]:
        self._stream.seek(first * self._vector_bytes)
        vectors = np.empty((count, self._dim), self._dtype)
        view = vectors.reshape(-1).view(np.uint8).data
        while len(view):
            done = self._stream.readinto(view)
            if not done:
                raise DamagedFeatureSet(
                    f"{self._stream.name}: ends too early; run again with --restart"
                )
            view = view[done:]
        return vectors

    def sync(self) -> None:
        """Force the log onto the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Release the file."""
        self._stream.close()


# ------------------------------------------------------------------------------------------------
# rows


class RowFile:
    """Writes rows of contiguous datasets in place.

    Args:
        path: An HDF5 file that no HDF5 library has open.
        places: Where its datasets lie, by name.
    """

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self.places = dict(places)
        self._stream = path.open("r+b", buffering=0)

    def put(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Write `values[i]` to row `rows[i]` of dataset `name`, in runs of neighbouring rows.

        Args:
            name: The dataset.
            rows: Distinct rows in any order, shape (b,).
            values: Shape (b, ...).
        """
        place = self.places[name]
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        if not np.array_equal(in_order, rows):
            values = values[order]
        data = memoryview(
            np.ascontiguousarray(values, dtype=place.dtype).reshape(-1).view(np.uint8).data
        )
        size = place.row_bytes
        for i, j in runs(in_order):
            self._stream.seek(place.start + int(in_order[i]) * size)
            write_all(self._stream, data[i * size : j * size])

    def sync(self) -> None:
        """Force what was written onto the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Release the file."""
        self._stream.close()


# ------------------------------------------------------------------------------------------------
# lock

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
