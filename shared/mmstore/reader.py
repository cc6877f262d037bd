"""Reading a feature set: rows by id, never by position."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

import mmstore.hdf5 as hdf5
from mmstore import errors, spec
from mmstore.hashing import require_whole
from mmstore.hdf5 import translated
from mmstore.ids import Bytes, IdIndex, block_rows, decode_ids, lookup_keys, pair_keys, runs, spans
from mmstore.schema import Header, count_statuses
from mmstore.spec import Status

_READ_BYTES = 1 << 23  # rows are read in pieces of at most this size
_GAP_BYTES = 1 << 16  # reading this much too much is cheaper than seeking over it

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Batch = tuple[NDArray[np.str_], NDArray[Any] | list[NDArray[Any]], NDArray[np.uint8]]
Ids = Sequence[str] | Sequence[tuple[str, str]] | NDArray[Any]


T = TypeVar("T")


class FeatureSet:
    """One feature set, read-only.

    Before it hands out ids, statuses or vectors for the first time, the content is compared with
    the content digest, unless an earlier check is on record (`require_whole`).

    Nothing is opened before it is needed, and each process opens the file for itself, so an object
    may be used after a fork or sent to another process. `path` is `<root>/<modality>/<name>.h5`. It
    is a context manager; `close` may be left to the garbage collector.

    Raises:
        StoreError: From the first use on: `NotAFeatureSet`, `UnsupportedVersion`,
            `DamagedFeatureSet`, `StoreAccess` or `UnknownFeatureSet`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open_file: Any = None  # h5py.File; h5py has no types
        self._pid = -1
        self._known: Header | None = None
        self._is_whole = False

    @property
    def header(self) -> Header:
        """All metadata of the set."""
        if self._known is None:
            self._file()
        assert self._known is not None
        return self._known

    @property
    def modality(self) -> str:
        """`visual`, `textual`, `audio`, or another lower-case name."""
        return self.header.modality

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.header.name

    @property
    def source(self) -> str:
        """What a row belongs to: `item` or `interaction`."""
        return self.header.source

    @property
    def layout(self) -> str:
        """`dense` or `ragged`."""
        return self.header.layout

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.header.dim

    @property
    def provenance(self) -> dict[str, Any]:
        """How the vectors were made."""
        return self.header.provenance

    @property
    def complete(self) -> bool:
        """Whether no row is pending; False for a `.partial` file."""
        return self.header.complete

    @property
    def format_version(self) -> str:
        """`major.minor` of the file."""
        return self.header.format_version

    @property
    def content_digest(self) -> str:
        """BLAKE2b-256 of ids, status and vectors, hexadecimal; empty while rows are pending."""
        return self.header.content_digest

    @property
    def dtype(self) -> np.dtype[Any]:
        """How vectors are stored, float16 or float32."""
        return np.dtype(self.header.dtype)

    def __len__(self) -> int:
        return self.header.rows

    def __repr__(self) -> str:
        return f"FeatureSet({str(self.path)!r})"

    @property
    def ids(self) -> NDArray[np.str_]:
        """The ids in file order: shape (n,), or (n, 2) of user and item for interactions."""
        return _side_by_side([decode_ids(column) for column in self._columns])

    @property
    def raw_ids(self) -> Bytes:
        """The ids as UTF-8 bytes in file order, numpy kind `S`: shape (n,), or (n, 2) for pairs."""
        return _side_by_side(self._columns)

    @property
    def user_ids(self) -> NDArray[np.str_]:
        """Users of the interactions, shape (n,)."""
        return decode_ids(self._interaction_column(0))

    @property
    def item_ids(self) -> NDArray[np.str_]:
        """Items of the interactions, shape (n,)."""
        return decode_ids(self._interaction_column(1))

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """The `Status` of each row, shape (n,), read-only."""
        status = self._statuses(self._content())
        status.flags.writeable = False
        return status

    def counts(self) -> dict[Status, int]:
        """Return the number of rows of each status, without a check of the content."""
        return count_statuses(self._statuses(self._file()))

    def _statuses(self, file: Any) -> NDArray[np.uint8]:
        with translated(self.path):
            return np.asarray(file[spec.STATUS][:])

    def errors(self) -> list[tuple[int, str]]:
        """Return why corrupt rows are corrupt, as (row, message)."""
        with translated(self.path):
            file = self._file()
            if spec.ERRORS not in file:
                return []
            rows = np.asarray(file[spec.ERROR_ROW][:])
            messages = hdf5.read_text(file[spec.ERROR_MESSAGE])
        if not np.array_equal(rows, np.flatnonzero(self.status == Status.CORRUPT)):
            what = f"not the corrupt rows of /{spec.STATUS} in ascending order"
            raise errors.damaged(f"{self.path}:/{spec.ERRORS}: {what}")
        texts = [bytes(message).decode("utf-8", "replace") for message in messages]
        return list(zip(rows.tolist(), texts, strict=True))

    def matrix(
        self, ids: Ids, *, dtype: DTypeLike = np.float32, out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], Mask]:
        """Return the vectors of `ids`, in that order, and which of them are present.

        Vectors are of shape (len(ids), dim), NaN throughout in absent rows: those of unknown ids,
        and those that are missing or corrupt. `ids` are item ids (text, or an `S` array of UTF-8),
        for interactions (user, item) pairs; they may repeat. `out`, of the shape of the result and
        a dtype of its own, is filled and returned.

        Raises:
            InvalidInput: The set is ragged, an id is not text, `dtype` is no floating dtype, `out`
                has another shape, or a value does not fit in it.
            IncompleteFeatureSet: Rows are pending.
            DamagedFeatureSet: Ids repeat in the file, or the vector of a present row is not finite.
        """
        self._require(spec.DENSE)
        wanted = np.dtype(dtype) if out is None else out.dtype
        if wanted.kind != "f":
            raise errors.InvalidInput(
                f"dtype: got {wanted}, expected a floating dtype such as float32"
            )
        rows = self._find(ids)
        present = self._present(rows)
        features = np.empty((rows.size, self.dim), wanted) if out is None else out
        if features.shape != (rows.size, self.dim):
            shape = (rows.size, self.dim)
            raise errors.InvalidInput(f"out: got shape {features.shape}, expected {shape}")
        features[~present] = np.nan
        self._fill(features, rows, np.flatnonzero(present))
        return features, present

    def ragged(self, ids: Ids) -> list[NDArray[Any] | None]:
        """Return the vectors of each of `ids`: (k, dim) in the stored dtype, or None where absent.

        Raises:
            StoreError: As for `matrix`; `InvalidInput` where the set is dense.
        """
        self._require(spec.RAGGED)
        rows = self._find(ids)
        answer: list[NDArray[Any] | None] = [None] * rows.size
        positions = np.flatnonzero(self._present(rows))
        positions = positions[np.argsort(rows[positions], kind="stable")]  # in file order
        for i, j in runs(rows[positions], max_span=self._rows_per_read()):
            block = positions[i:j]
            matrices = self._ragged_rows(int(rows[block[0]]), int(rows[block[-1]]) + 1)
            for position in block.tolist():
                answer[position] = matrices[int(rows[position]) - int(rows[block[0]])]
        return answer

    def iter_batches(self, batch_size: int = 1024) -> Iterator[Batch]:
        """Yield all rows in file order, as (ids, features, status) of up to `batch_size` rows.

        Features are in the stored dtype: (b, dim) with NaN in absent rows, or for ragged sets a
        list of (k, dim) with k = 0 in absent rows. Ids are (b,), or (b, 2) for interactions.
        """
        if batch_size < 1:
            raise errors.InvalidInput(f"batch_size: got {batch_size}, expected >= 1")
        self._require(self.layout)
        for start, stop in spans(len(self), batch_size):
            ids = _side_by_side([decode_ids(column[start:stop]) for column in self._columns])
            if self.layout == spec.DENSE:
                with translated(self.path):
                    features: Any = np.asarray(self._content()[spec.FEATURES][start:stop])
            else:
                features = self._ragged_rows(start, stop)
            yield ids, features, self.status[start:stop]

    def verify(self) -> list[str]:
        """Return all violations of the format, one line each; never raises `StoreError`."""
        from mmstore.validate import verify_file

        return verify_file(self.path)

    def close(self) -> None:
        """Release the file; the next use opens it again."""
        file, self._open_file = self._open_file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Handles and caches stay in this process; the header has to be the same again elsewhere.
        nothing = {"_open_file": None, "_pid": -1, "_is_whole": False}
        return {"path": self.path, "_known": self._known, **nothing}

    def _file(self) -> Any:
        if self._open_file is not None and self._pid == os.getpid():
            return self._open_file
        self._open_file, self._is_whole = None, False
        file = hdf5.open_file(self.path)
        try:
            header, warning = hdf5.read_header(file, self.path)
            if self._known is not None and header != self._known:
                raise errors.StoreError(
                    f"{self.path}: was replaced while it was in use; start again"
                )
        except BaseException:
            file.close()
            raise
        if warning and self._known is None:
            warnings.warn(warning, errors.StoreWarning, stacklevel=3)
        self._known, self._open_file, self._pid = header, file, os.getpid()
        return file

    def _content(self) -> Any:
        """The open file, its ids, statuses and vectors as they were written."""
        file = self._file()
        if not self._is_whole and self.complete:
            require_whole(file, self.header, self.path)
        self._is_whole = True
        return file

    @cached_property
    def _columns(self) -> list[Bytes]:
        with translated(self.path):
            return [hdf5.read_text(self._content()[name]) for name in spec.ID_DATASETS[self.source]]

    def _interaction_column(self, which: int) -> Bytes:
        if self.source != spec.INTERACTION:
            raise errors.InvalidInput(f"{self.path}: its rows are items, not interactions; use ids")
        return self._columns[which]

    @cached_property
    def _index(self) -> IdIndex:
        keys = self._columns[0] if self.source == spec.ITEM else pair_keys(*self._columns)
        try:
            return IdIndex.build(keys, f"{self.path}:/ids")
        except errors.InvalidIds as error:
            raise errors.damaged(str(error)) from error

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        with translated(self.path):
            file = self._content()
            offsets = np.asarray(file[spec.OFFSETS][:])
            total = int(file[spec.FEATURES].shape[0])
        if offsets[0] != 0 or offsets[-1] != total or bool((np.diff(offsets) < 0).any()):
            raise errors.damaged(f"{self.path}:/{spec.OFFSETS}: not ascending from 0 to {total}")
        return offsets

    def _require(self, layout: str) -> None:
        if self.layout != layout:
            method = "matrix" if self.layout == spec.DENSE else "ragged"
            raise errors.InvalidInput(f"{self.path}: the set is {self.layout}; use {method}()")
        if not self.complete:
            cure = "run the extraction again, it goes on where it stopped"
            raise errors.IncompleteFeatureSet(f"{self.path}: rows are pending; {cure}")

    def _find(self, ids: Ids) -> NDArray[np.int64]:
        """Row of each id, -1 where the set does not know it, shape (len(ids),)."""
        return self._index.find(lookup_keys(ids, pairs=self.source == spec.INTERACTION))

    def _present(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if len(self) == 0:
            return np.zeros(rows.size, bool)
        return np.asarray((rows >= 0) & (self.status[rows] == Status.OK))

    def _rows_per_read(self) -> int:
        return block_rows(self.header.vector_bytes, _READ_BYTES)

    def _fill(self, features: NDArray[Any], rows: Rows, positions: Rows) -> None:
        """Copy row `rows[p]` of the file to `features[p]` for each position `p`."""
        # In file order and in long reads: seeking is slower than reading a little too much.
        wanted = rows[positions]
        if bool((wanted[1:] < wanted[:-1]).any()):
            order = np.argsort(wanted, kind="stable")
            positions, wanted = positions[order], wanted[order]
        gap = block_rows(self.header.vector_bytes, _GAP_BYTES)
        with translated(self.path):
            data = self._content()[spec.FEATURES]
            for i, j in runs(wanted, max_gap=gap, max_span=self._rows_per_read()):
                low, high = int(wanted[i]), int(wanted[j - 1]) + 1
                block = np.asarray(data[low:high])
                # Gaps or repetitions, perhaps as many of each: the length of the run says nothing.
                if not bool((np.diff(wanted[i:j]) == 1).all()):
                    block = block[wanted[i:j] - low]
                if not np.isfinite(block).all():
                    bad = int(wanted[i:j][~np.isfinite(block).all(axis=1)][0])
                    what = "is marked present and holds NaN or infinity"
                    raise errors.damaged(f"{self.path}:/{spec.FEATURES}: row {bad} {what}")
                features[positions[i:j]] = self._narrow(block, features.dtype)

    def _narrow(self, block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype.itemsize >= block.dtype.itemsize:
            return block
        try:
            with np.errstate(over="raise"):
                return block.astype(dtype)
        except FloatingPointError as error:
            what = f"{self.path}: values do not fit in {dtype}; ask for float32"
            raise errors.InvalidInput(what) from error

    def _ragged_rows(self, start: int, stop: int) -> list[NDArray[Any]]:
        offsets = self._offsets[start : stop + 1]
        with translated(self.path):
            vectors = np.asarray(self._content()[spec.FEATURES][int(offsets[0]) : int(offsets[-1])])
        if not np.isfinite(vectors).all():
            rows = f"rows {start} … {stop - 1}"
            raise errors.damaged(f"{self.path}:/{spec.FEATURES}: {rows} hold NaN or infinity")
        return [part.copy() for part in np.split(vectors, offsets[1:-1] - offsets[0])]


def _side_by_side(columns: list[NDArray[Any]]) -> NDArray[Any]:
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
