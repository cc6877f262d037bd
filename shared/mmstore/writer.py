"""Writing a feature set: a kill at any instant loses only the batches since the last flush."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

import mmstore.arguments as arguments
import mmstore.partial as partial
from mmstore import errors
from mmstore.filesystem import WriterLock
from mmstore.hdf5 import translated
from mmstore.ids import Bytes, Column, Pairs, block_rows, runs, spans
from mmstore.schema import Header, count_statuses, name_of, with_creation_time
from mmstore.side_files import ErrorLog, Paths, RowFile, VectorLog
from mmstore.spec import DENSE, FEATURES, INTERACTION, ITEM, LENGTH, RAGGED, START, STATUS, Status

_STATUS_GAP = 1 << 14  # bytes of known status that are rewritten rather than starting another write


class FeatureSetWriter:
    """Writes one feature set, or goes on with one that an earlier process could not finish.

    Rows come in any order and in any batches. `write`, `mark_missing` and `mark_corrupt` put them
    into the file; `flush` then records that they are done. `finish` puts the set under its final
    name in one step. Leaving the context without `finish` keeps the unfinished set.

    * An unfinished set of the same plan (everything but the creation time) is continued: see
      `pending`.
    * A finished one of the same plan has nothing pending and `finished` is True. With
      `retry_failed` its corrupt rows (with `retry_missing` its missing ones) become pending again,
      in a copy; the old set stays until the new one replaces it. Where no row is, versions of
      programs in the provenance may differ: see `versions_differ`.
    * One of another plan is never touched without `restart`.

    Args:
        path: Final path, `<root>/<modality>/<name>.h5`, which gives the set its name; missing
            folders are made.
        modality: `visual`, `textual`, `audio`, or any lower-case name.
        dim: Length of a vector, >= 1.
        ids: Unique item ids in the catalogue's order, text or an `S` array of UTF-8, shape (n,);
            or `Pairs(users, items)` for a set of interactions, each pair once.
        layout: `dense` (one vector per row) or `ragged` (one or more).
        dtype: `float32` or `float16`.
        provenance: How the vectors are made, as JSON values. It should hold no host name, user name
            or absolute path. `created` is added where it is absent.
        restart: Discard an unfinished set, and replace a finished one on `finish`.
        replaces: Content digest of a finished set of another plan that `finish` may replace; an
            unfinished set of this plan is continued.
        retry_failed: Make corrupt rows pending again: their files may have been repaired.
        retry_missing: Make missing rows pending again: their files may have come since.
        fsync: Also force every flush onto the disk (some milliseconds each), to survive a power
            cut.

    Attributes:
        header: The set's metadata, with the creation time of its first run.
        finished: True once the set lies under its final name.
        versions_differ: Keys such as `provenance.libraries.numpy` in which a finished set differs.

    Raises:
        InvalidInput: An argument breaks a rule of the format.
        ProvenanceMismatch: Another plan's file is in the way.
        StoreLocked: Another writer holds the set.
        StoreFull: The vectors can't fit on the disk; `StoreAccess` for other refusals.
    """

    def __init__(
        self,
        path: Path,
        *,
        modality: str,
        dim: int,
        ids: Column | Pairs,
        layout: str = DENSE,
        dtype: str = "float32",
        provenance: Mapping[str, Any],
        restart: bool = False,
        replaces: str = "",
        retry_failed: bool = False,
        retry_missing: bool = False,
        fsync: bool = False,
    ) -> None:
        self.path = Path(path)
        self.finished = False
        self.versions_differ: list[str] = []
        columns = arguments.id_columns(ids)
        self.header = Header(
            modality=modality,
            name=name_of(self.path),
            source=INTERACTION if isinstance(ids, Pairs) else ITEM,
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
        self._dirty: list[NDArray[np.int64]] = []  # rows whose status is not in the file yet
        self._rows: RowFile | None = None
        self._vectors: VectorLog | None = None
        self._errors = ErrorLog(self._paths.errors)
        retry = [Status.CORRUPT] * retry_failed + [Status.MISSING] * retry_missing
        self._lock: WriterLock | None = None
        try:
            with translated(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                cure = "remove it, or choose another --name"
                raise errors.NotAFeatureSet(f"{self.path}: is a folder; {cure}")
            self._lock = WriterLock(self._paths.lock)
        except errors.StoreAccess as error:
            # Where nobody can write, a finished set can still be taken, which needs no lock. In a
            # folder that nobody may look into there is nothing.
            paths = self._paths.partial, self._paths.lock
            begun = any(os.path.exists(path) for path in paths)  # noqa: PTH110
            if restart or retry or begun or not os.path.isfile(self.path):  # noqa: PTH113
                raise errors.StoreAccess(f"{error}, or write elsewhere with --out") from error
        try:
            self._open(columns, restart=restart, replaces=replaces, retry=retry)
        except BaseException:
            self._release()
            raise

    def _open(
        self, columns: list[Bytes], *, restart: bool, replaces: str, retry: list[Status]
    ) -> None:
        paths = self._paths
        with translated(paths.partial):
            # Half a file of a step that was killed, and with it all that nobody will go on with.
            paths.new.unlink(missing_ok=True)
            if restart:
                paths.discard_partial()
            resuming = paths.partial.exists() and self._attach(columns)
            if not resuming:
                paths.discard_partial()
                kept = self.path.exists() and not restart
                if kept and not (replaces and partial.finished_digest(paths) == replaces):
                    if not self._adopt_finished(columns, retry):
                        return
                else:
                    partial.create_partial(paths, self.header, columns)
        if not resuming and not self._attach(columns):
            what = f"{paths.partial}: can't be read back just after it was made"
            raise errors.DamagedFeatureSet(f"{what}; check the disk")
        if retry:
            self._mark(np.flatnonzero(np.isin(self._status, retry)), Status.PENDING)
            self.flush()

    def _attach(self, columns: list[Bytes]) -> bool:
        """Open the partial file for writing; False where it is beyond use."""
        found = partial.unfinished_set(self._paths, self.header, columns)
        if found is None:
            return False
        self.header, self._status = found.header, found.status
        if self.header.layout == RAGGED:
            self._vectors = VectorLog(self._paths.vectors, self.header, found.used_vectors)
        self._rows = RowFile(self._paths.partial, found.places)
        return True

    def _adopt_finished(self, columns: list[Bytes], retry: list[Status]) -> bool:
        """Take a finished set of the same plan; True where a partial copy has rows to retry."""
        found = partial.finished_set(self._paths, self.header, columns, retry)
        self.header, self._status, self.versions_differ = found
        again = np.isin(self._status, retry)
        if not again.any():
            self.finished = True
            self._release()
            return False
        status = np.where(again, np.uint8(Status.PENDING), self._status)
        partial.copy_as_partial(self._paths, self.header, columns, status)
        return True

    @property
    def pending(self) -> NDArray[np.int64]:
        """Rows that still have to be written, ascending, shape (p,)."""
        return np.flatnonzero(self._status == Status.PENDING)

    @property
    def status(self) -> NDArray[np.uint8]:
        """The status of every row, shape (n,), to be read only."""
        return self._status

    def counts(self) -> dict[Status, int]:
        """Return the number of rows of each status."""
        return count_statuses(self._status)

    def write(self, rows: ArrayLike, features: ArrayLike) -> None:
        """Store real `features`, shape (b, dim), of pending `rows`, each once, shape (b,).

        A row whose vector has NaN or infinity after the cast to the stored dtype becomes corrupt.

        Raises:
            InvalidInput: A row is not pending, or the shapes do not fit.
            StoreFull: The disk is full; what was flushed is kept.
        """
        rows = self._check_rows(rows, DENSE)
        given = arguments.vectors(features, rows.size, self.header.dim)
        stored = arguments.cast(given, self.header.vector_dtype)
        good = np.isfinite(stored).all(axis=1)
        if not good.all():
            stored = np.where(good[:, None], stored, np.array(np.nan, stored.dtype))
        self._put(FEATURES, rows, stored)
        self._mark(rows[good], Status.OK)
        self._mark_not_finite(rows, good, given)

    def write_ragged(self, rows: ArrayLike, vectors: Sequence[ArrayLike]) -> None:
        """Store for each of `rows` (see `write`) one or more vectors, of shape (k, dim).

        A row with none, or with NaN or infinity, becomes corrupt.
        """
        rows = self._check_rows(rows, RAGGED)
        arguments.check_count("vectors", vectors, rows.size)
        given = [arguments.vectors(matrix, None, self.header.dim) for matrix in vectors]
        stored = [arguments.cast(matrix, self.header.vector_dtype) for matrix in given]
        good = np.array([len(one) > 0 and bool(np.isfinite(one).all()) for one in stored], bool)
        kept = [matrix for matrix, fine in zip(stored, good, strict=True) if fine]
        if kept:
            assert self._vectors is not None
            length = np.array([len(matrix) for matrix in kept], np.int64)
            with translated(self._paths.partial):
                first = self._vectors.append(np.concatenate(kept))
            self._put(START, rows[good], first + np.cumsum(length) - length)
            self._put(LENGTH, rows[good], length)
            self._mark(rows[good], Status.OK)
        self._mark_not_finite(rows, good, given)

    def mark_missing(self, rows: ArrayLike) -> None:
        """Record that the items of `rows` (pending, each once, shape (b,)) have no such content."""
        rows = self._check_rows(rows)
        self._put_absent(rows)
        self._mark(rows, Status.MISSING)

    def mark_corrupt(self, rows: ArrayLike, messages: Sequence[str]) -> None:
        """Record that the content of `rows` could not be turned into vectors.

        `messages` say why, one for each row; each is kept as one line of at most 500 bytes.
        """
        rows = self._check_rows(rows)
        arguments.check_count("messages", messages, rows.size)
        self._put_absent(rows)
        self._log_corrupt(rows, messages)

    def flush(self) -> None:
        """Record all rows so far as done."""
        rows = self._require_open()
        if not self._dirty:
            return
        with translated(self._paths.partial):
            # Vectors before status: a row that the file calls done has its vector there. A power
            # cut keeps that order only if the vectors are forced onto the disk in between.
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

    def finish(self) -> str:
        """Put the set under its final name and return its content digest (64 hexadecimal digits).

        Raises:
            IncompleteFeatureSet: Rows are pending.
            StoreFull: The disk is full; the unfinished set is kept.
        """
        if self.finished:
            return self.header.content_digest
        self.flush()
        if n_pending := self.pending.size:
            state = f"{n_pending} of {self.header.rows} rows are pending"
            raise errors.IncompleteFeatureSet(f"{self.path}: {state}; write or mark them first")
        with translated(self._paths.partial):
            corrupt = np.flatnonzero(self._status == Status.CORRUPT)
            reasons = partial.Errors(corrupt, self._errors.read(corrupt))
            if self._vectors is None:
                self._close_files()  # HDF5 edits the file now
                digest = partial.finish_in_place(self._paths, self.header, self._status, reasons)
            else:
                digest = partial.assemble(
                    self._paths, self.header, self._vectors, self._status, reasons
                )
            self.header = replace(self.header, complete=True, content_digest=digest)
            self.finished = True
            self._close_files()
            self._paths.discard_partial()
        self._release()
        return digest

    def close(self) -> None:
        """Flush and let go of the set; an unfinished one can be continued. May be repeated."""
        try:
            if self._rows is not None and os.getpid() == self._pid:
                self.flush()
        finally:
            self._release()

    def discard(self) -> None:
        """Remove the unfinished set, so that the next one begins anew; a finished one stays."""
        self._require_open()
        with translated(self._paths.partial):
            self._close_files()
            self._paths.discard_partial()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except errors.StoreError as second:  # the first error is the one to show
            error.add_note(f"closing the unfinished set failed too: {second}")

    def _check_rows(self, rows: ArrayLike, layout: str | None = None) -> NDArray[np.int64]:
        self._require_open()
        if layout not in (None, self.header.layout):
            method = "write" if self.header.layout == DENSE else "write_ragged"
            raise errors.InvalidInput(
                f"{self.path}: the set is {self.header.layout}; use {method}()"
            )
        return arguments.pending_rows(rows, self._status)

    def _put(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        with translated(self._paths.partial):
            self._require_open().put(name, rows, values)

    def _put_absent(self, rows: NDArray[np.int64]) -> None:
        if self.header.layout == RAGGED:
            return
        rows = np.sort(rows)
        step = block_rows(self.header.vector_bytes)
        absent = np.full((min(step, rows.size), self.header.dim), np.nan, self.header.dtype)
        for start, stop in spans(rows.size, step):
            self._put(FEATURES, rows[start:stop], absent[: stop - start])

    def _mark_not_finite(self, rows: NDArray[np.int64], good: NDArray[Any], given: Any) -> None:
        bad = np.flatnonzero(~good)
        if bad.size:
            dtype = self.header.dtype
            self._log_corrupt(rows[bad], [arguments.why_not_finite(given[i], dtype) for i in bad])

    def _log_corrupt(self, rows: NDArray[np.int64], messages: Sequence[object]) -> None:
        with translated(self._paths.partial):
            self._errors.append(rows, [arguments.clean_message(message) for message in messages])
        self._mark(rows, Status.CORRUPT)

    def _mark(self, rows: NDArray[np.int64], status: Status) -> None:
        if rows.size:
            self._status[rows] = status
            self._dirty.append(rows)

    def _require_open(self) -> RowFile:
        if os.getpid() != self._pid:
            what = f"{self.path}: a writer can't be used in a forked process"
            raise errors.InvalidInput(f"{what}; write from the one that opened it")
        if self._rows is None:
            state = "finished" if self.finished else "closed"
            raise errors.InvalidInput(
                f"{self.path}: the writer is {state}; nothing more can be written"
            )
        return self._rows

    def _close_files(self) -> None:
        rows, self._rows = self._rows, None
        for file in (rows, self._errors, self._vectors):
            if file is not None:
                file.close()

    def _release(self) -> None:
        if os.getpid() != self._pid:
            return
        try:
            with translated(self._paths.partial):
                self._close_files()
        finally:
            if self._lock is not None:
                self._lock.release()
