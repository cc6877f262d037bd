"""The files beside a set while it is written: lock, rows, vector log, error log, undo copy.

```
<name>.h5.lock              held by the one writer
<name>.h5.lock.owner        the same, where the file system has no locks
<name>.h5.partial           HDF5: ids, status, and the rows of a dense set
<name>.h5.partial.new       a file that is being made, renamed when it is whole
<name>.h5.partial.vectors   ragged sets: vectors in the order in which they came
<name>.h5.partial.errors    one JSON line per corrupt row
<name>.h5.partial.undo      dense sets, only during the last step: the partial but its vectors
```
A side file without its `.partial` belongs to nothing; the next writer removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmstore.errors import DamagedFeatureSet, damaged
from mmstore.filesystem import replace_synced, sync, sync_path
from mmstore.hdf5 import write_all
from mmstore.ids import block_rows, runs
from mmstore.schema import Header
from mmstore.spec import BLOCK_BYTES, PARTIAL_SUFFIX

Rows = NDArray[np.int64]


class Paths:
    """The final path of a set, and those of its side files."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.lock = final.with_name(final.name + ".lock")
        self.partial, self.new, self.vectors, self.errors, self.undo = (
            final.with_name(final.name + PARTIAL_SUFFIX + suffix)
            for suffix in ("", ".new", ".vectors", ".errors", ".undo")
        )

    def discard_partial(self) -> None:
        """Remove the unfinished set and its side files."""
        # The set first: after a kill there are only orphans, and no set that lacks its vectors.
        for path in (self.partial, self.new, self.vectors, self.errors, self.undo):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# undo copy


def save_undo(paths: Paths, start: int, stop: int) -> None:
    """Copy all of the partial set but bytes `[start, stop)`, for `restore_undo`.

    Finishing a dense set in place changes HDF5's metadata, which is not atomic. The vectors do not
    change then, so the copy is small: the ids and the status.
    """
    size = paths.partial.stat().st_size
    with paths.partial.open("rb") as source, paths.new.open("wb") as target:
        header = json.dumps({"size": size, "start": start, "stop": stop})
        target.write(header.encode("ascii") + b"\n")
        _copy(source, target, start)
        source.seek(stop)
        _copy(source, target, size - stop)
    replace_synced(paths.new, paths.undo)


def restore_undo(paths: Paths) -> None:
    """Bring the partial set back to its state at `save_undo`; safe to repeat after a kill."""
    with paths.undo.open("rb") as source, paths.partial.open("r+b") as target:
        header = json.loads(source.readline())
        _copy(source, target, header["start"])
        target.seek(header["stop"])
        _copy(source, target, header["size"] - header["stop"])
        target.truncate(header["size"])
    # On the disk before the copy goes: until then the next writer can repeat all of this.
    sync_path(paths.partial)
    paths.undo.unlink()


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size > 0:
        block = source.read(min(size, BLOCK_BYTES))
        if not block:
            raise DamagedFeatureSet(f"{source.name}: too short; run again with --restart")
        target.write(block)
        size -= len(block)


# ------------------------------------------------------------------------------------------------
# rows


class Place(NamedTuple):
    """The bytes `[start, stop)` of a contiguous dataset in its file, row after row."""

    start: int
    stop: int
    row_bytes: int
    dtype: np.dtype[Any]


def place_of(file: Any, path: Path, name: str) -> Place:
    """Return where a dataset lies in its HDF5 file; `DamagedFeatureSet` if in several pieces."""
    data = file[name]
    offset, dtype = data.id.get_offset(), np.dtype(data.dtype.str)
    if data.size and offset is None:
        raise damaged(f"{path}:/{name}: is not stored contiguously")
    start, row_bytes = int(offset or 0), int(np.prod(data.shape[1:])) * dtype.itemsize
    return Place(start, start + data.shape[0] * row_bytes, row_bytes, dtype)


class _Unbuffered:
    """A file that is written past all buffers of this process."""

    def __init__(self, path: Path, mode: str) -> None:
        self._stream = FileIO(path, mode)

    def sync(self) -> None:
        """Force the content onto the disk."""
        sync(self._stream.fileno())

    def close(self) -> None:
        """Release the file."""
        self._stream.close()


class RowFile(_Unbuffered):
    """Writes rows of an unfinished set with plain file writes at the places that HDF5 reserved.

    HDF5 itself is not used for rows: it buffers small writes, drops the buffer silently when
    writing it fails, and crashes the process when it can't empty it at the end. A plain write
    either reaches the operating system, and then survives the death of the process, or raises.

    Args:
        path: An HDF5 file that no HDF5 library has open.
        places: Where its datasets lie, by name.
    """

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self._places = dict(places)
        super().__init__(path, "r+b")

    def put(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Write `values[i]`, shape (b, ...), to row `rows[i]` of dataset `name`; rows differ."""
        place = self._places[name]
        # In row order, so that neighbouring rows take one write.
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        if not np.array_equal(in_order, rows):
            values = values[order]
        data = _raw(values, place.dtype)
        for i, j in runs(in_order):
            self._stream.seek(place.start + int(in_order[i]) * place.row_bytes)
            write_all(self._stream, data[i * place.row_bytes : j * place.row_bytes])


def _raw(values: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data


# ------------------------------------------------------------------------------------------------
# logs


class ErrorLog:
    """Why rows are corrupt, one JSON line each; the last line of a row counts."""

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
        """Return the messages of `rows`, ascending, in that order."""
        unknown = b"unknown (the log of the extraction that met it was lost)"
        found = dict.fromkeys(rows.tolist(), unknown)
        if self._path.exists():
            self._cut_torn_line()
            with self._path.open("rb") as stream:
                for line in stream:
                    # A damaged line costs the reason, not the set.
                    with suppress(ValueError, LookupError, TypeError, AttributeError):
                        entry = json.loads(line)
                        if entry["row"] in found:
                            found[entry["row"]] = entry["message"].encode("utf-8")
        return list(found.values())

    def sync(self) -> None:
        """Force the log onto the disk."""
        if self._stream is not None:
            sync(self._stream.fileno())

    def close(self) -> None:
        """Release the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _cut_torn_line(self) -> None:
        """Drop a last line without its end: a kill tore it, and its row is still pending."""
        with suppress(FileNotFoundError), self._path.open("r+b") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)


class VectorLog(_Unbuffered):
    """The vectors of an unfinished ragged set, in the order in which they came.

    Rows refer to the first `used` vectors; what a killed writer left behind them goes. A shorter
    file raises `DamagedFeatureSet`.
    """

    def __init__(self, path: Path, header: Header, used: int) -> None:
        self._header = header
        self._vector_bytes = header.vector_bytes
        super().__init__(path, "r+b" if path.exists() else "w+b")
        size, needed = self._stream.seek(0, os.SEEK_END), used * self._vector_bytes
        if size < needed:
            self._stream.close()
            what = f"{path}: shorter than the rows that refer to it ({size} of {needed} bytes)"
            raise DamagedFeatureSet(f"{what}; run again with --restart")
        self._stream.truncate(needed)
        self.used = used

    def append(self, vectors: NDArray[np.floating]) -> int:
        """Add `vectors`, shape (k, dim), and return the number of the first."""
        first = self.used
        # Not at the end of the file: a failed write may have left something there.
        self._stream.seek(first * self._vector_bytes)
        write_all(self._stream, _raw(vectors, self._header.vector_dtype))
        self.used += len(vectors)
        return first

    def gather(self, start: Rows, length: Rows) -> Iterator[NDArray[np.floating]]:
        """Yield the vectors of row after row, in blocks of shape (k, dim).

        `start` and `length`, shape (n,), are each row's first vector and number of vectors, > 0.
        """
        if start.size == 0:
            return
        limit = block_rows(self._vector_bytes)
        # Rows that lie one behind the other in the log are read together.
        edges = np.flatnonzero(start[1:] != start[:-1] + length[:-1]) + 1
        firsts = start[np.concatenate(([0], edges))]
        ends = (start + length)[np.concatenate((edges, [start.size])) - 1]
        pieces: list[NDArray[np.floating]] = []
        held = 0
        for at, end in zip(firsts.tolist(), ends.tolist(), strict=True):
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
        vectors = np.empty((count, self._header.dim), self._header.vector_dtype)
        view = vectors.reshape(-1).view(np.uint8).data
        while len(view):
            done = self._stream.readinto(view)
            if not done:
                what = f"{self._stream.name}: ends too early; run again with --restart"
                raise DamagedFeatureSet(what)
            view = view[done:]
        return vectors
