"""Writing a feature set so that a kill at any instant loses at most the batches since the last flush."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmstore import arguments
from mmstore.errors import (
    DamagedFeatureSet,
    IncompleteFeatureSet,
    InvalidInput,
    NotAFeatureSet,
    StoreError,
)
from mmstore.hdf5 import translated
from mmstore.ids import Bytes, block_rows, runs, spans
from mmstore.partial import (
    LENGTH,
    START,
    assemble,
    copy_as_partial,
    create_partial,
    finish_in_place,
    finished_set,
    unfinished_set,
)
from mmstore.schema import Header, name_of, with_creation_time
from mmstore.side_files import ErrorLog, Paths, RowFile, VectorLog, WriterLock
from mmstore.spec import DENSE, FEATURES, ITEM, RAGGED, STATUS, Status

_STATUS_GAP = 1 << 14  # bytes of known status that are rewritten rather than starting another write


class FeatureSetWriter:
    """Writes one feature set, or goes on with one that an earlier process could not finish.

    Rows are written in any order and in any batches. `write`, `mark_missing` and `mark_corrupt` put
    vectors into the file; `flush` then records, in an order that survives a kill, that their rows
    are done. `finish` puts the set under its final name in one step. Leaving the context without
    `finish` keeps the unfinished set.

    * An unfinished set of the same plan (everything but the creation time) is continued: see
    `pending`.
    * A finished one of the same plan has nothing pending and `finished` is True. With
    `retry_failed` its corrupt rows
      (with `retry_missing` its missing ones) become pending again, in a copy; the old set stays
      until the new one replaces it. Where no row is, versions of programs in the provenance may
      differ: see `versions_differ`.
    * One of another plan is never touched without `restart`.

    Args:
        path: Final path, `<root>/<modality>/<name>.h5`, which says the set's name; missing folders
            are made.
        modality: `visual`, `textual`, `audio`, or any lower-case name.
        dim: Length of a vector, >= 1.
        ids: Unique item ids in the catalogue's order, text or an `S` array of UTF-8, shape (n,);
            `source="item"`.
        user_ids: Users of the interactions, shape (n,); `source="interaction"`.
        item_ids: Items of the interactions, shape (n,); pairs must be unique.
        source: `item` or `interaction`.
        layout: `dense` (one vector per row) or `ragged` (one or more).
        dtype: `float32` or `float16`.
        provenance: How the vectors are made, as JSON values. It should hold no host name, user name
            or absolute path. `created` is added where it is absent.
        restart: Discard an unfinished set, and replace a finished one on `finish`.
        retry_failed: Make corrupt rows pending again: their files may have been repaired.
        retry_missing: Make missing rows pending again: their files may have come since.
        fsync: Also force every flush onto the disk (some milliseconds each), to survive a power
            cut.

    Attributes:
        path: The final path.
        header: What the set says about itself, with the creation time of its first run.
        finished: True once the set lies under its final name.
        versions_differ: Keys such as `provenance.libraries.numpy` in which a finished set that was
            found differs.

    Raises:
        InvalidInput: An argument breaks a rule of the format.
        ProvenanceMismatch: Another plan's file is in the way.
        StoreLocked: Another writer holds the set.
        StoreAccess: The operating system refuses; `StoreFull` where the vectors can't fit on the
            disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        modality: str,
        dim: int,
        ids: Sequence[str] | NDArray[Any] | None = None,
        user_ids: Sequence[str] | NDArray[Any] | None = None,
        item_ids: Sequence[str] | NDArray[Any] | None = None,
        source: str = ITEM,
        layout: str = DENSE,
        dtype: str = "float32",
        provenance: Mapping[str, Any],
        restart: bool = False,
        retry_failed: bool = False,
        retry_missing: bool = False,
        fsync: bool = False,
    ) -> None:
        self.path = Path(path)
        self.finished = False
        self.versions_differ: list[str] = []
        self._lock: WriterLock | None = None
        self._rows: RowFile | None = None
        columns = arguments.id_columns(source, ids, user_ids, item_ids)
        self.header = Header(
            modality=modality,
            name=name_of(self.path),
            source=source,
            layout=layout,
            dim=int(dim) if isinstance(dim, np.integer) else dim,
            dtype=str(np.dtype(dtype)) if isinstance(dtype, np.dtype | type) else dtype,
            rows=int(columns[0].size),
            provenance=with_creation_time(provenance),
        )
        self._paths = Paths(self.path)
        self._fsync = fsync
        self._pid = os.getpid()
        self._status = np.zeros(self.header.rows, np.uint8)
        self._dirty: list[NDArray[np.int64]] = []
        self._errors = ErrorLog(self._paths.errors)
        self._vectors: VectorLog | None = None
        with translated(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise NotAFeatureSet(
                    f"{self.path}: is a folder; remove it, or choose another --name"
                )
        failed = [Status.CORRUPT] if retry_failed else []
        missing = [Status.MISSING] if retry_missing else []
        self._lock = WriterLock(self._paths.lock)
        try:
            self._open(columns, restart=restart, retry=[*failed, *missing])
        except BaseException:
            self._release()
            raise

    # --------------------------------------------------------------------------------------------
    # opening

    def _open(self, columns: list[Bytes], *, restart: bool, retry: list[Status]) -> None:
        paths = self._paths
        with translated(paths.partial):
            paths.new.unlink(missing_ok=True)
            if restart:
                paths.discard_partial()
            resuming = paths.partial.exists() and self._attach(columns)
            if not resuming:
                paths.discard_partial()
        if not resuming and not restart and self.path.exists():
            if not self._adopt_finished(columns, retry):
                return
        elif not resuming:
            with translated(paths.partial):
                create_partial(paths, self.header, columns)
        if self._rows is None and not self._attach(columns):
            raise DamagedFeatureSet(
                f"{paths.partial}: can't be read back just after it was made; check the disk"
            )
        if retry:
            self._mark(np.flatnonzero(np.isin(self._status, retry)), Status.PENDING)
            self.flush()

    def _attach(self, columns: list[Bytes]) -> bool:
        """Open the partial file for writing; False where it is beyond use and has to be begun anew."""
        found = unfinished_set(self._paths, self.header, columns)
        if found is None:
            return False
        self.header, self._status = found.header, found.status
        if self.header.layout == RAGGED:
            self._vectors = VectorLog(
                self._paths.vectors, self.header.dim, self.header.dtype, found.used_vectors
            )
        self._rows = RowFile(self._paths.partial, found.places)
        return True

    def _adopt_finished(self, columns: list[Bytes], retry: list[Status]) -> bool:
        """Take a finished set of the same plan as it is; True where a partial copy was made to retry its failures."""
        self.header, self._status, self.versions_differ = finished_set(
            self._paths, self.header, columns, retry
        )
        again = np.isin(self._status, retry)
        if not again.any():
            self.finished = True
            self._release()
            return False
        with translated(self._paths.partial):
            status = np.where(again, np.uint8(Status.PENDING), self._status)
            copy_as_partial(self._paths, self.header, columns, status)
        return True

    # --------------------------------------------------------------------------------------------
    # writing

    @property
    def pending(self) -> NDArray[np.int64]:
        """Rows that still have to be written, ascending, shape (p,)."""
        return np.flatnonzero(self._status == Status.PENDING)

    def counts(self) -> dict[Status, int]:
        """How many rows there are of each status."""
        counts = np.bincount(self._status, minlength=len(Status))
        return {status: int(counts[status]) for status in Status}

    def write(self, rows: ArrayLike, features: ArrayLike) -> None:
        """Store one vector for each of `rows`.

        A vector with NaN or infinity, after the cast to the stored dtype, is not stored: its row
        becomes corrupt.

        Args:
            rows: Pending rows, each once, shape (b,).
            features: Their vectors, shape (b, dim), real numbers.

        Raises:
            InvalidInput: A row is not pending, or the shapes do not fit.
            StoreFull: The disk is full; what was flushed is kept.
        """
        rows = self._check_rows(rows, DENSE)
        given = arguments.vectors(features, rows.size, self.header.dim)
        stored = arguments.cast(given, self.header.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            stored = np.where(finite[:, None], stored, np.array(np.nan, stored.dtype))
        self._put_at(FEATURES, rows, stored)
        self._mark(rows[finite], Status.OK)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            self._log_corrupt(
                rows[bad], [arguments.why_not_finite(given[i], self.header.dtype) for i in bad]
            )

    def write_ragged(self, rows: ArrayLike, vectors: Sequence[ArrayLike]) -> None:
        """Store one or more vectors for each of `rows`; a row with none, with NaN or infinity becomes corrupt.

        Args:
            rows: Pending rows, each once, shape (b,).
            vectors: For each row an array of shape (k, dim), k >= 1.

        Raises:
            InvalidInput: A row is not pending, or the shapes do not fit.
            StoreFull: The disk is full; what was flushed is kept.
        """
        rows = self._check_rows(rows, RAGGED)
        arguments.one_for_each("vectors", vectors, rows.size)
        given = [arguments.vectors(matrix, None, self.header.dim) for matrix in vectors]
        stored = [arguments.cast(matrix, self.header.dtype) for matrix in given]
        good = np.array(
            [len(matrix) > 0 and bool(np.isfinite(matrix).all()) for matrix in stored], dtype=bool
        )
        kept = [matrix for matrix, fine in zip(stored, good, strict=True) if fine]
        if kept:
            assert self._vectors is not None
            length = np.array([len(matrix) for matrix in kept], np.int64)
            with translated(self._paths.partial):
                first = self._vectors.append(np.concatenate(kept))
            start = first + np.cumsum(length) - length
            self._put_at(START, rows[good], start)
            self._put_at(LENGTH, rows[good], length)
            self._mark(rows[good], Status.OK)
        bad = np.flatnonzero(~good)
        if bad.size:
            self._log_corrupt(
                rows[bad], [arguments.why_not_finite(given[i], self.header.dtype) for i in bad]
            )

    def mark_missing(self, rows: ArrayLike) -> None:
        """Record that the items of `rows` (pending, each once, shape (b,)) have no such content."""
        rows = self._check_rows(rows)
        self._put_absent(rows)
        self._mark(rows, Status.MISSING)

    def mark_corrupt(self, rows: ArrayLike, messages: Sequence[str]) -> None:
        """Record that the content of `rows` (pending, each once, shape (b,)) could not be turned into vectors.

        Args:
            rows: The rows.
            messages: Why, one for each row; kept as one line of at most 500 bytes.
        """
        rows = self._check_rows(rows)
        arguments.one_for_each("messages", messages, rows.size)
        self._put_absent(rows)
        self._log_corrupt(rows, messages)

    def flush(self) -> None:
        """Record all rows so far as done: vectors first, then their status, so that a kill never leaves half a row."""
        rows = self._require_open()
        if not self._dirty:
            return
        with translated(self._paths.partial):
            if self._fsync:
                self._errors.sync()
                if self._vectors is not None:
                    self._vectors.sync()
                rows.sync()
            dirty = np.unique(np.concatenate(self._dirty))
            for i, j in runs(dirty, max_gap=_STATUS_GAP):
                span = np.arange(dirty[i], dirty[j - 1] + 1)
                rows.put(STATUS, span, self._status[span])
            if self._fsync:
                rows.sync()
        self._dirty.clear()

    # --------------------------------------------------------------------------------------------
    # finishing

    def finish(self) -> str:
        """Put the set under its final name and return its content digest (64 hexadecimal digits).

        Raises:
            IncompleteFeatureSet: Rows are pending.
            StoreFull: The disk is full; the unfinished set is kept.
        """
        if self.finished:
            return self.header.content_digest
        self.flush()
        if n_pending := int(np.count_nonzero(self._status == Status.PENDING)):
            raise IncompleteFeatureSet(
                f"{self.path}: {n_pending} of {self.header.rows} rows are pending; write or mark "
                "them before finish()"
            )
        with translated(self._paths.partial):
            if self._vectors is None:
                self._close_files()
                digest = finish_in_place(self._paths, self.header, self._status, self._corrupt())
            else:
                digest = assemble(
                    self._paths, self.header, self._vectors, self._status, self._corrupt()
                )
            self.header = replace(self.header, complete=True, content_digest=digest)
            self.finished = True
            self._close_files()
            self._paths.discard_partial()
        self._release()
        return digest

    def _corrupt(self) -> tuple[NDArray[np.int64], list[bytes]]:
        """The corrupt rows and why they are."""
        rows = np.flatnonzero(self._status == Status.CORRUPT)
        return rows, self._errors.read(rows)

    def close(self) -> None:
        """Flush and let go of the set; an unfinished one stays and can be continued. Repeating it does nothing."""
        try:
            if self._rows is not None and os.getpid() == self._pid:
                self.flush()
        finally:
            self._release()

    def discard(self) -> None:
        """Remove the unfinished set, so that the next one begins anew. A finished set of that name stays.

        Raises:
            StoreError: The set is finished, closed or in another process, or its files can't be
                removed.
        """
        self._require_open()
        with translated(self._paths.partial):
            self._close_files()
            self._paths.discard_partial()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except StoreError as second:  # the first error is the one to show
            error.add_note(f"closing the unfinished set failed too: {second}")

    # --------------------------------------------------------------------------------------------
    # helpers

    def _check_rows(self, rows: ArrayLike, layout: str | None = None) -> NDArray[np.int64]:
        self._require_open()
        if layout is not None and layout != self.header.layout:
            method = "write" if self.header.layout == DENSE else "write_ragged"
            raise InvalidInput(f"{self.path}: the set is {self.header.layout}; use {method}()")
        return arguments.pending_rows(rows, self._status)

    def _put_at(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        with translated(self._paths.partial):
            self._require_open().put(name, rows, values)

    def _put_absent(self, rows: NDArray[np.int64]) -> None:
        if self.header.layout == RAGGED:
            return
        rows = np.sort(rows)
        step = block_rows(self.header.vector_bytes)
        absent = np.full((min(step, rows.size), self.header.dim), np.nan, self.header.dtype)
        for start, stop in spans(rows.size, step):
            self._put_at(FEATURES, rows[start:stop], absent[: stop - start])

    def _log_corrupt(self, rows: NDArray[np.int64], messages: Iterable[object]) -> None:
        with translated(self._paths.partial):
            self._errors.append(rows, [arguments.clean_message(message) for message in messages])
        self._mark(rows, Status.CORRUPT)

    def _mark(self, rows: NDArray[np.int64], status: Status) -> None:
        if rows.size:
            self._status[rows] = status
            self._dirty.append(rows)

    def _require_open(self) -> RowFile:
        if os.getpid() != self._pid:
            raise InvalidInput(
                f"{self.path}: a writer can't be used in a forked process; write from the one that "
                "opened it"
            )
        if self._rows is None:
            state = "finished" if self.finished else "closed"
            raise InvalidInput(f"{self.path}: the writer is {state}; nothing more can be written")
        return self._rows

    def _close_files(self) -> None:
        rows, self._rows = self._rows, None
        if rows is not None:
            rows.close()
        self._errors.close()
        if self._vectors is not None:
            self._vectors.close()

    def _release(self) -> None:
        if os.getpid() != self._pid:
            return
        try:
            with translated(self._paths.partial):
                self._close_files()
        finally:
            if self._lock is not None:
                self._lock.release()
