"""Writing a feature set so that a kill at any instant loses at most the batches since the last flush."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmstore import hdf5
from mmstore.blocks import block_rows, runs, spans
from mmstore.errors import (
    DamagedFeatureSet,
    IncompleteFeatureSet,
    InvalidInput,
    NotAFeatureSet,
    ProvenanceMismatch,
    StoreError,
    StoreFull,
    StoreWarning,
)
from mmstore.hashing import content_digest
from mmstore.hdf5 import translated
from mmstore.ids import Bytes, duplicate_error, encode_ids, first_duplicate, pair_keys
from mmstore.locking import WriterLock
from mmstore.partial import (
    ErrorLog,
    Paths,
    VectorLog,
    clean_message,
    replace_synced,
    restore_undo,
    save_undo,
)
from mmstore.schema import Header, name_of, plan_differences, with_creation_time
from mmstore.spec import (
    DENSE,
    ERRORS,
    FEATURES,
    FORMAT_VERSION,
    ID_DATASETS,
    INTERACTION,
    ITEM,
    OFFSETS,
    RAGGED,
    STATUS,
    WRITING,
    Status,
)

_STATUS_GAP = 1 << 14  # bytes of known status that are rewritten rather than starting another write
_START, _LENGTH = f"{WRITING}/start", f"{WRITING}/length"


class FeatureSetWriter:
    """Writes one feature set, or goes on with one that an earlier process could not finish.

    Rows are written in any order and any batches. `write`, `mark_missing` and `mark_corrupt` hand their data to the
    operating system at once; `flush` then records, in an order that survives a kill, that they are done. `finish`
    puts the set under its final name in one step. Leaving the context without `finish` keeps the unfinished set.

    * An unfinished set of the same plan (everything but the creation time) is continued: see `pending`.
    * A finished one of the same plan has nothing pending and `finished` is True. With `retry_failed` its corrupt rows
      become pending again, in a copy; the old set stays until the new one replaces it.
    * One of another plan is never touched without `restart`.

    Args:
        path: Final path, `<root>/<modality>/<name>.h5`; missing folders are made.
        modality: `visual`, `textual`, `audio`, or any lower-case name.
        name: The set's name; must equal the stem of `path`, from which it is taken by default.
        dim: Length of a vector, >= 1.
        ids: Unique item ids in the catalogue's order, text or an `S` array of UTF-8, shape (n,); `source="item"`.
        user_ids: Users of the interactions, shape (n,); `source="interaction"`.
        item_ids: Items of the interactions, shape (n,); pairs must be unique.
        source: `item` or `interaction`.
        layout: `dense` (one vector per row) or `ragged` (one or more).
        dtype: `float32` or `float16`.
        provenance: How the vectors are made, as JSON values. It should hold no host name, user name or absolute path.
            `created` is added where it is absent.
        restart: Discard an unfinished set, and replace a finished one on `finish`.
        retry_failed: Make corrupt rows pending again.
        fsync: Also force every flush onto the disk (some milliseconds each), to survive a power cut.

    Attributes:
        path: The final path.
        header: What the set says about itself, with the creation time of its first run.
        finished: True once the set lies under its final name.

    Raises:
        InvalidInput: An argument breaks a rule of the format.
        ProvenanceMismatch: Another plan's file is in the way.
        StoreLocked: Another writer holds the set.
        StoreAccess: The operating system refuses; `StoreFull` where the vectors can't fit on the disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        modality: str,
        name: str | None = None,
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
        fsync: bool = False,
    ) -> None:
        self.path = Path(path)
        self.finished = False
        self._lock: WriterLock | None = None
        self._file: Any = None  # h5py.File; h5py has no types
        stem = name_of(self.path)
        if name is not None and name != stem:
            raise InvalidInput(
                f"{path}: the set's name and its file name differ ({name!r} and {stem!r}); make them equal"
            )
        columns = _encode_columns(source, ids, user_ids, item_ids)
        self.header = Header(
            modality=modality,
            name=stem,
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
        self._full = False
        with translated(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self._paths.lock)
        try:
            self._open(columns, restart=restart, retry_failed=retry_failed)
        except BaseException:
            self._release()
            raise

    # -------------------------------------------------------------------------------------------- opening

    def _open(self, columns: list[Bytes], *, restart: bool, retry_failed: bool) -> None:
        paths = self._paths
        with translated(paths.partial):
            paths.new.unlink(missing_ok=True)
            if restart:
                paths.discard_partial()
            resuming = paths.partial.exists() and self._attach(columns)
            if not resuming:
                paths.discard_partial()
        if not resuming and not restart and self.path.exists():
            if not self._adopt_finished(columns, retry_failed=retry_failed):
                return
        elif not resuming:
            self._create(columns)
        if self._file is None and not self._attach(columns):
            raise DamagedFeatureSet(f"{paths.partial}: can't be read back just after it was made; check the disk")
        if retry_failed:
            corrupt = np.flatnonzero(self._status == Status.CORRUPT)
            self._mark(corrupt, Status.PENDING)
            self.flush()

    def _create(self, columns: list[Bytes]) -> None:
        """Make a partial file with every row pending; it appears under its name when it is whole."""
        header = self.header
        needed = header.rows * header.vector_bytes if header.layout == DENSE else 0
        with translated(self._paths.partial):
            free = shutil.disk_usage(self.path.parent).free
            if needed > free:
                raise StoreFull(
                    f"{self.path}: needs {needed / 1e9:.2f} GB for {header.rows} x {header.dim} {header.dtype} vectors, "
                    f"and {free / 1e9:.2f} GB are free; free space, or store float16"
                )
            with hdf5.create_file(self._paths.new) as file:
                _fill_new(file, header, columns, self._status)
            replace_synced(self._paths.new, self._paths.partial)

    def _attach(self, columns: list[Bytes]) -> bool:
        """Open the partial file for writing; False where it is beyond use and has to be begun anew."""
        paths = self._paths
        try:
            if paths.undo.exists():
                with translated(paths.undo):
                    restore_undo(paths.partial, paths.undo)
            file = hdf5.open_file(paths.partial, "r+")
            try:
                found, _ = hdf5.read_header(file, paths.partial)
            except BaseException:
                file.close()
                raise
        except (NotAFeatureSet, DamagedFeatureSet) as error:
            warnings.warn(f"{error}; the unfinished set is begun anew", StoreWarning, stacklevel=4)
            return False
        self._file = file
        self._refuse_other_plan(found, file, columns, paths.partial, "an unfinished set")
        self.header = found
        self._status = np.asarray(file[STATUS][:])
        if found.layout == RAGGED:
            self._vectors = VectorLog(paths.vectors, found.dim, found.dtype, self._used_vectors())
        return True

    def _used_vectors(self) -> int:
        """One past the last vector of the log that a finished row refers to."""
        used = 0
        for start, stop in spans(self._status.size, block_rows(16)):
            done = self._status[start:stop] == Status.OK
            ends = self._file[_START][start:stop] + self._file[_LENGTH][start:stop]
            used = max(used, int(ends[done].max(initial=0)))
        return used

    def _adopt_finished(self, columns: list[Bytes], *, retry_failed: bool) -> bool:
        """Take a finished set of the same plan as it is; True where a partial copy was made to retry its failures."""
        with hdf5.open_file(self.path) as file:
            found, _ = hdf5.read_header(file, self.path)
            self._refuse_other_plan(found, file, columns, self.path, "a finished set")
            self.header = found
            self._status = np.asarray(file[STATUS][:])
        corrupt = self._status == Status.CORRUPT
        if not (retry_failed and corrupt.any()):
            self.finished = True
            self._release()
            return False
        with translated(self._paths.partial):
            _copy_as_partial(self._paths, columns, np.where(corrupt, np.uint8(Status.PENDING), self._status))
        return True

    def _refuse_other_plan(self, found: Header, file: Any, columns: list[Bytes], path: Path, what: str) -> None:
        differences = plan_differences(found, self.header)
        if found.source == self.header.source and found.rows == self.header.rows:
            for name, column in zip(ID_DATASETS[found.source], columns, strict=True):
                differences += _column_difference(file[name], column, name)
        if not differences:
            return
        shown = "; ".join(f"{key}: {values}" for key, values in differences[:6])
        more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
        raise ProvenanceMismatch(
            f"{path}: {what} of another plan is in the way ({shown}{more}); "
            "run with --restart to replace it, or choose another --name",
            [key for key, _ in differences],
        )

    # -------------------------------------------------------------------------------------------- writing

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

        A vector with NaN or infinity, after the cast to the stored dtype, is not stored: its row becomes corrupt.

        Args:
            rows: Pending rows, each once, shape (b,).
            features: Their vectors, shape (b, dim), real numbers.

        Raises:
            InvalidInput: A row is not pending, or the shapes do not fit.
            StoreFull: The disk is full; what was flushed is kept.
        """
        rows = self._check_rows(rows, DENSE)
        given = _as_vectors(features, (rows.size, self.header.dim))
        stored = _cast(given, self.header.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            stored = np.where(finite[:, None], stored, np.array(np.nan, stored.dtype))
        self._put(rows, stored)
        self._mark(rows[finite], Status.OK)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            self._log_corrupt(rows[bad], [_why_not_finite(given[i], self.header.dtype) for i in bad])

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
        _check_length("vectors", vectors, rows.size)
        given = [_as_vectors(matrix, (None, self.header.dim)) for matrix in vectors]
        stored = [_cast(matrix, self.header.dtype) for matrix in given]
        good = np.array([len(matrix) > 0 and bool(np.isfinite(matrix).all()) for matrix in stored], dtype=bool)
        kept = [matrix for matrix, fine in zip(stored, good, strict=True) if fine]
        if kept:
            assert self._vectors is not None
            length = np.array([len(matrix) for matrix in kept], np.int64)
            with self._guarded():
                first = self._vectors.append(np.concatenate(kept))
            start = first + np.cumsum(length) - length
            self._put_at(_START, rows[good], start)
            self._put_at(_LENGTH, rows[good], length)
            self._mark(rows[good], Status.OK)
        bad = np.flatnonzero(~good)
        if bad.size:
            self._log_corrupt(rows[bad], [_why_not_finite(given[i], self.header.dtype) for i in bad])

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
        _check_length("messages", messages, rows.size)
        self._put_absent(rows)
        self._log_corrupt(rows, messages)

    def flush(self) -> None:
        """Record all rows so far as done: vectors first, then their status, so that a kill never leaves half a row."""
        self._require_open()
        if not self._dirty:
            return
        with self._guarded():
            self._file.flush()
            if self._fsync:
                self._errors.sync()
                if self._vectors is not None:
                    self._vectors.sync()
                hdf5.sync(self._file)
            rows = np.unique(np.concatenate(self._dirty))
            status = self._file[STATUS]
            for i, j in runs(rows, max_gap=_STATUS_GAP):
                low, high = int(rows[i]), int(rows[j - 1]) + 1
                status[low:high] = self._status[low:high]
            self._file.flush()
            if self._fsync:
                hdf5.sync(self._file)
        self._dirty.clear()

    # -------------------------------------------------------------------------------------------- finishing

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
                f"{self.path}: {n_pending} of {self.header.rows} rows are pending; write or mark them before finish()"
            )
        corrupt = np.flatnonzero(self._status == Status.CORRUPT)
        with self._guarded():
            messages = self._errors.read(corrupt)
            digest = (
                self._finish_in_place(corrupt, messages)
                if self.header.layout == DENSE
                else self._assemble(corrupt, messages)
            )
        self.finished = True
        with translated(self.path):
            self.header, _ = self._read_final_header()
        with translated(self._paths.partial):
            self._close_files()
            self._paths.discard_partial()
        self._release()
        return digest

    def _read_final_header(self) -> tuple[Header, str | None]:
        with hdf5.open_file(self.path) as file:
            return hdf5.read_header(file, self.path)

    def _finish_in_place(self, corrupt: NDArray[np.int64], messages: list[bytes]) -> str:
        """Dense: add what is missing to the partial file, guarded by the undo copy, and rename it."""
        file, paths = self._file, self._paths
        columns = [file[name] for name in ID_DATASETS[self.header.source]]
        digest = content_digest(
            source=self.header.source, layout=DENSE, ids=columns, status=self._status, features=file[FEATURES]
        )
        start = int(file[FEATURES].id.get_offset() or 0)
        stop = start + self.header.rows * self.header.vector_bytes if start else 0
        self._close_files()
        save_undo(paths.partial, paths.undo, start, stop)
        with hdf5.open_file(paths.partial, "r+") as file:
            hdf5.create_errors(file, corrupt, messages)
            _complete(file, digest)
        replace_synced(paths.partial, self.path)
        return digest

    def _assemble(self, corrupt: NDArray[np.int64], messages: list[bytes]) -> str:
        """Ragged: copy the vectors in row order into a new file and rename it."""
        assert self._vectors is not None
        partial, header = self._file, self.header
        present = self._status == Status.OK
        start, length = np.asarray(partial[_START][:]), np.asarray(partial[_LENGTH][:])
        length[~present] = 0
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(length)))
        with hdf5.create_file(self._paths.new) as file:
            hdf5.write_header(file, header)
            columns = ID_DATASETS[header.source]
            for name in columns:
                hdf5.create_text(file, name, hdf5.read_text(partial[name]))
            file.create_dataset(STATUS, data=self._status)
            file.create_dataset(OFFSETS, data=offsets.astype("<i8"))
            features = hdf5.create_features(file, header, int(offsets[-1]))
            at = 0
            for block in self._vectors.gather(start[present], length[present]):
                features[at : at + len(block)] = block
                at += len(block)
            hdf5.create_errors(file, corrupt, messages)
            digest = content_digest(
                source=header.source,
                layout=RAGGED,
                ids=[file[name] for name in columns],
                status=self._status,
                features=features,
                offsets=offsets,
            )
            _complete(file, digest)
        replace_synced(self._paths.new, self.path)
        return digest

    def close(self) -> None:
        """Flush and let go of the set; an unfinished one stays and can be continued. Repeating it does nothing."""
        try:
            if self._file is not None and not self._full and os.getpid() == self._pid:
                self.flush()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except StoreError as second:  # the first error is the one to show
            error.add_note(f"closing the unfinished set failed too: {second}")

    # -------------------------------------------------------------------------------------------- helpers

    def _check_rows(self, rows: ArrayLike, layout: str | None = None) -> NDArray[np.int64]:
        self._require_open()
        if layout is not None and layout != self.header.layout:
            method = "write" if self.header.layout == DENSE else "write_ragged"
            raise InvalidInput(f"{self.path}: the set is {self.header.layout}; use {method}()")
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InvalidInput(f"rows: got {given.dtype} of shape {given.shape}, expected integers of shape (b,)")
        checked = given.astype(np.int64)
        if checked.size == 0:
            return checked
        if int(checked.min()) < 0 or int(checked.max()) >= self.header.rows:
            raise InvalidInput(f"rows: got {checked.min()} … {checked.max()}, expected 0 … {self.header.rows - 1}")
        status = self._status[checked]
        if status.any():
            at = int(np.flatnonzero(status)[0])
            raise InvalidInput(
                f"rows: row {checked[at]} is {Status(status[at]).name.lower()} already; write rows of `pending` only"
            )
        if np.unique(checked).size != checked.size:
            raise InvalidInput("rows: a row occurs twice in one call; give each row once")
        return checked

    def _put(self, rows: NDArray[np.int64], vectors: NDArray[Any]) -> None:
        self._put_at(FEATURES, rows, vectors)

    def _put_at(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Write `values[i]` to row `rows[i]` of a dataset, in runs of neighbouring rows."""
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        if not np.array_equal(in_order, rows):
            values = values[order]
        with self._guarded():
            data = self._file[name]
            for i, j in runs(in_order):
                data[int(in_order[i]) : int(in_order[i]) + j - i] = values[i:j]

    def _put_absent(self, rows: NDArray[np.int64]) -> None:
        if self.header.layout == RAGGED:
            return
        rows = np.sort(rows)
        step = block_rows(self.header.vector_bytes)
        absent = np.full((min(step, rows.size), self.header.dim), np.nan, self.header.dtype)
        for start, stop in spans(rows.size, step):
            self._put(rows[start:stop], absent[: stop - start])

    def _log_corrupt(self, rows: NDArray[np.int64], messages: Iterable[object]) -> None:
        with self._guarded():
            self._errors.append(rows, [clean_message(message) for message in messages])
        self._mark(rows, Status.CORRUPT)

    def _mark(self, rows: NDArray[np.int64], status: Status) -> None:
        if rows.size:
            self._status[rows] = status
            self._dirty.append(rows)

    def _require_open(self) -> None:
        if os.getpid() != self._pid:
            raise InvalidInput(
                f"{self.path}: a writer can't be used in a forked process; write from the one that opened it"
            )
        if self._file is None:
            state = "finished" if self.finished else "closed"
            raise InvalidInput(f"{self.path}: the writer is {state}; nothing more can be written")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Translate errors of writing, and remember a full disk, so that closing does not try to write again."""
        try:
            with translated(self._paths.partial):
                yield
        except StoreFull:
            self._full = True
            raise

    def _close_files(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
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


# ------------------------------------------------------------------------------------------------ pure steps


def _encode_columns(
    source: str,
    ids: Sequence[str] | NDArray[Any] | None,
    user_ids: Sequence[str] | NDArray[Any] | None,
    item_ids: Sequence[str] | NDArray[Any] | None,
) -> list[Bytes]:
    """The id columns of a set, checked to be unique."""
    if source == INTERACTION:
        if ids is not None or user_ids is None or item_ids is None:
            raise InvalidInput("ids: source 'interaction' takes user_ids and item_ids, and no ids")
        columns = [encode_ids(user_ids, "user_ids"), encode_ids(item_ids, "item_ids")]
        if columns[0].size != columns[1].size:
            raise InvalidInput(f"ids: {columns[0].size} user_ids for {columns[1].size} item_ids; give as many of each")
        keys = pair_keys(*columns)
    else:
        if ids is None or user_ids is not None or item_ids is not None:
            raise InvalidInput("ids: source 'item' takes ids, and neither user_ids nor item_ids")
        columns = [encode_ids(ids)]
        keys = columns[0]
    if first_duplicate(keys) is not None:
        raise duplicate_error(keys, "ids")
    return columns


def _fill_new(file: Any, header: Header, columns: list[Bytes], status: NDArray[np.uint8]) -> None:
    """Everything that a partial file holds before its first row."""
    hdf5.write_header(file, header)
    for name, column in zip(ID_DATASETS[header.source], columns, strict=True):
        hdf5.create_text(file, name, column)
    file.create_dataset(STATUS, data=status)
    if header.layout == RAGGED:
        for name in (_START, _LENGTH):
            file.create_dataset(name, data=np.zeros(header.rows, "<i8"))
    hdf5.create_features(file, header, header.rows if header.layout == DENSE else 0)


def _copy_as_partial(paths: Paths, columns: list[Bytes], status: NDArray[np.uint8]) -> None:
    """Make a partial file out of a finished one, with another status."""
    with hdf5.open_file(paths.final) as file:
        found, _ = hdf5.read_header(file, paths.final)
    found = replace(found, complete=False, content_digest="", format_version=FORMAT_VERSION)
    if found.layout == DENSE:
        shutil.copyfile(paths.final, paths.new)
        with hdf5.open_file(paths.new, "r+") as file:
            del file[ERRORS]
            hdf5.write_header(file, found)
            file[STATUS][:] = status
    else:
        with hdf5.open_file(paths.final) as file, hdf5.create_file(paths.new) as new:
            vectors = VectorLog(paths.vectors, found.dim, found.dtype, 0)
            features, offsets = file[FEATURES], np.asarray(file[OFFSETS][:])
            for start, stop in spans(features.shape[0], block_rows(found.vector_bytes)):
                vectors.append(features[start:stop])
            vectors.sync()
            vectors.close()
            _fill_new(new, found, columns, status)
            new[_START][:] = offsets[:-1]
            new[_LENGTH][:] = np.diff(offsets)
    replace_synced(paths.new, paths.partial)


def _complete(file: Any, digest: str) -> None:
    file.attrs["complete"] = np.bool_(True)
    file.attrs["content_digest"] = digest
    file.flush()


def _column_difference(found: Any, wanted: Bytes, name: str) -> list[tuple[str, str]]:
    """Where a stored id column differs from the wanted one of the same length."""
    differing, first = 0, -1
    for start, stop in spans(wanted.size, block_rows(wanted.dtype.itemsize)):
        rows = np.flatnonzero(hdf5.read_text(found, start, stop) != wanted[start:stop])
        if rows.size and first < 0:
            first = start + int(rows[0])
        differing += rows.size
    if not differing:
        return []
    old, new = (bytes(column[first]).decode("utf-8", "replace") for column in (found, wanted))
    return [(name, f"{differing} of {wanted.size} differ, first in row {first} ({old!r}, expected {new!r})")]


def _as_vectors(features: ArrayLike, shape: tuple[int | None, int]) -> NDArray[Any]:
    given = np.asarray(features)
    if (
        given.ndim != 2
        or given.dtype.kind not in "fiu"
        or given.shape[1] != shape[1]
        or shape[0] not in (None, len(given))
    ):
        rows = "k" if shape[0] is None else shape[0]
        raise InvalidInput(
            f"features: got {given.dtype} of shape {given.shape}, expected real numbers of shape ({rows}, {shape[1]})"
        )
    return given


def _cast(vectors: NDArray[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow becomes infinity, which the caller looks for
        return vectors.astype(np.dtype(dtype).newbyteorder("<"), copy=False)


def _why_not_finite(vectors: NDArray[Any], dtype: str) -> str:
    if vectors.size == 0:
        return "the extractor returned no vector"
    finite = np.isfinite(vectors)
    if finite.all():
        largest, limit = float(np.abs(vectors).max()), float(np.finfo(dtype).max)
        return f"the vector does not fit in {dtype} (largest magnitude {largest:.6g}, limit {limit:.6g})"
    return f"the extractor returned NaN or infinity in {int((~finite).sum())} of {vectors.size} values"


def _check_length(what: str, values: Sequence[Any], expected: int) -> None:
    if isinstance(values, str) or len(values) != expected:
        got = "one string" if isinstance(values, str) else f"{len(values)}"
        raise InvalidInput(f"{what}: got {got}, expected one for each of {expected} rows")
