"""Reading a feature set: rows by id, never by position."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mmstore import hdf5
from mmstore.errors import (
    DamagedFeatureSet,
    IncompleteFeatureSet,
    InvalidIds,
    InvalidInput,
    StoreError,
    StoreWarning,
)
from mmstore.hdf5 import EXTRACT_AGAIN, translated
from mmstore.ids import (
    Bytes,
    IdIndex,
    block_rows,
    decode_ids,
    encode_lookup,
    pair_keys,
    runs,
    spans,
)
from mmstore.schema import Header
from mmstore.spec import (
    DENSE,
    ERROR_MESSAGE,
    ERROR_ROW,
    ERRORS,
    FEATURES,
    ID_DATASETS,
    INTERACTION,
    ITEM,
    OFFSETS,
    RAGGED,
    STATUS,
    Status,
)

_READ_BYTES = 1 << 23  # rows are read in pieces of at most this size
_GAP_BYTES = 1 << 16  # reading this much too much is cheaper than seeking over it

Ids = Sequence[str] | Sequence[tuple[str, str]] | NDArray[Any]


class FeatureSet:
    """One feature set, read-only.

    Nothing is opened before it is needed, and each process opens the file for itself, so an object
    may be used after a fork or sent to another process. It is a context manager; `close` may be
    left to the garbage collector.

    Args:
        path: The file, `<root>/<modality>/<name>.h5`.

    Raises:
        StoreError: From the first use on: `NotAFeatureSet`, `UnsupportedVersion`,
            `DamagedFeatureSet`, `StoreAccess` or `UnknownFeatureSet`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open_file: Any = None  # h5py.File; h5py has no types
        self._pid = -1
        self._known: Header | None = None

    # ------------------------------------------------------------------------------------ header

    @property
    def header(self) -> Header:
        """Everything that the set says about itself."""
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
        """The set's name."""
        return self.header.name

    @property
    def source(self) -> str:
        """`item` or `interaction`."""
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
    def dtype(self) -> np.dtype[Any]:
        """How vectors are stored, float16 or float32."""
        return np.dtype(self.header.dtype)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the vectors were made."""
        return self.header.provenance

    @property
    def content_digest(self) -> str:
        """BLAKE2b-256 of ids, status and vectors, 64 hexadecimal digits; empty while the set is incomplete."""
        return self.header.content_digest

    @property
    def complete(self) -> bool:
        """False while rows are pending (a `.partial` file)."""
        return self.header.complete

    @property
    def format_version(self) -> str:
        """`major.minor` of the file."""
        return self.header.format_version

    def __len__(self) -> int:
        """Number of rows, present or not."""
        return self.header.rows

    def __repr__(self) -> str:
        return f"FeatureSet({str(self.path)!r})"

    # ------------------------------------------------------------------------------------ ids and
    # status

    @property
    def ids(self) -> NDArray[np.str_]:
        """The ids in file order: shape (n,), or (n, 2) of user and item for interactions."""
        columns = [decode_ids(column) for column in self._columns]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    @property
    def raw_ids(self) -> Bytes:
        """The ids as UTF-8 bytes: shape (n,), or (n, 2) for interactions; numpy kind `S`, so 10 M ids stay small."""
        return self._columns[0] if len(self._columns) == 1 else np.stack(self._columns, axis=1)

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
        with translated(self.path):
            status = np.asarray(self._file()[STATUS][:])
        status.flags.writeable = False
        return status

    def counts(self) -> dict[Status, int]:
        """How many rows there are of each status."""
        counts = np.bincount(self.status, minlength=len(Status))
        return {status: int(counts[status]) for status in Status}

    def errors(self) -> list[tuple[int, str]]:
        """Why corrupt rows are corrupt, as (row, message)."""
        with translated(self.path):
            file = self._file()
            if ERRORS not in file:
                return []
            messages = hdf5.read_text(file[ERROR_MESSAGE])
            return [
                (int(row), bytes(message).decode("utf-8", "replace"))
                for row, message in zip(file[ERROR_ROW][:], messages, strict=True)
            ]

    # ------------------------------------------------------------------------------------ vectors

    def matrix(
        self, ids: Ids, *, dtype: DTypeLike = np.float32
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The vectors of `ids`, in that order, and which of them are present.

        Args:
            ids: Item ids (text, or an `S` array of UTF-8); for interactions (user, item) pairs.
                Repetitions are fine.
            dtype: Floating dtype of the answer.

        Returns:
            Features of shape (len(ids), dim), NaN throughout in absent rows, and a mask of shape
            (len(ids),). A row is absent where the set does not know the id, or has it as missing or
            corrupt.

        Raises:
            InvalidIds: An id is not text.
            InvalidInput: The set is ragged, `dtype` is no floating dtype, or a value does not fit
                in it.
            IncompleteFeatureSet: Rows are pending.
            DamagedFeatureSet: Ids repeat in the file, or the vector of a present row is not finite.
        """
        self._require(DENSE)
        wanted = np.dtype(dtype)
        if wanted.kind != "f":
            raise InvalidInput(f"dtype: got {wanted}, expected a floating dtype such as float32")
        rows = self._find(ids)
        present = self._present(rows)
        features = np.full((rows.size, self.dim), np.nan, wanted)
        self._fill(features, rows, np.flatnonzero(present))
        return features, present

    def ragged(self, ids: Ids) -> list[NDArray[Any] | None]:
        """The vectors of each of `ids`, in that order: an array (k, dim) in the stored dtype, or None where absent.

        Raises:
            StoreError: As for `matrix`; `InvalidInput` where the set is dense.
        """
        self._require(RAGGED)
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

    def iter_batches(
        self, batch_size: int = 1024
    ) -> Iterator[tuple[NDArray[np.str_], NDArray[Any] | list[NDArray[Any]], NDArray[np.uint8]]]:
        """All rows in file order, as (ids, features, status) of up to `batch_size` rows.

        Features are in the stored dtype: (b, dim) with NaN in absent rows, or for ragged sets a
        list of (k, dim) with k = 0 in absent rows. Ids are (b,), or (b, 2) for interactions.
        """
        if batch_size < 1:
            raise InvalidInput(f"batch_size: got {batch_size}, expected >= 1")
        self._require(self.layout)
        for start, stop in spans(len(self), batch_size):
            columns = [decode_ids(column[start:stop]) for column in self._columns]
            ids = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
            if self.layout == DENSE:
                with translated(self.path):
                    features: Any = np.asarray(self._file()[FEATURES][start:stop])
            else:
                features = self._ragged_rows(start, stop)
            yield ids, features, self.status[start:stop]

    def verify(self) -> list[str]:
        """Everything that is wrong with the file, one line each; empty when it is sound. Never raises `StoreError`."""
        from mmstore.validate import verify_file

        return verify_file(self.path)

    # ------------------------------------------------------------------------------------ opening

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        file, self._open_file = self._open_file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Only the path and what has to be the same again: handles and caches stay in this process."""
        return {"path": self.path, "_open_file": None, "_pid": -1, "_known": self._known}

    def _file(self) -> Any:
        """The file, open in this process."""
        if self._open_file is not None and self._pid == os.getpid():
            return self._open_file
        self._open_file = None
        file = hdf5.open_file(self.path)
        try:
            header, warning = hdf5.read_header(file, self.path)
            if self._known is not None and header != self._known:
                raise StoreError(f"{self.path}: was replaced while it was in use; start again")
        except BaseException:
            file.close()
            raise
        if warning and self._known is None:
            warnings.warn(warning, StoreWarning, stacklevel=3)
        self._known, self._open_file, self._pid = header, file, os.getpid()
        return file

    # ------------------------------------------------------------------------------------ helpers

    @cached_property
    def _columns(self) -> list[Bytes]:
        with translated(self.path):
            return [hdf5.read_text(self._file()[name]) for name in ID_DATASETS[self.source]]

    def _interaction_column(self, which: int) -> Bytes:
        if self.source != INTERACTION:
            raise InvalidInput(f"{self.path}: its rows are items, not interactions; use ids")
        return self._columns[which]

    @cached_property
    def _index(self) -> IdIndex:
        keys = self._columns[0] if self.source == ITEM else pair_keys(*self._columns)
        try:
            return IdIndex.build(keys, f"{self.path}:/ids")
        except InvalidIds as error:
            raise DamagedFeatureSet(f"{error}; {EXTRACT_AGAIN}") from error

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        with translated(self.path):
            file = self._file()
            offsets = np.asarray(file[OFFSETS][:])
            total = int(file[FEATURES].shape[0])
        if offsets[0] != 0 or offsets[-1] != total or bool((np.diff(offsets) < 0).any()):
            raise DamagedFeatureSet(
                f"{self.path}:/{OFFSETS}: not ascending from 0 to {total}; {EXTRACT_AGAIN}"
            )
        return offsets

    def _require(self, layout: str) -> None:
        if self.layout != layout:
            method = "matrix" if self.layout == DENSE else "ragged"
            raise InvalidInput(f"{self.path}: the set is {self.layout}; use {method}()")
        if not self.complete:
            raise IncompleteFeatureSet(
                f"{self.path}: rows are pending; run the extraction again, it goes on where it "
                "stopped"
            )

    def _find(self, ids: Ids) -> NDArray[np.int64]:
        """Row of each id, -1 where the set does not know it, shape (len(ids),)."""
        if self.source == ITEM:
            keys = encode_lookup(cast("Sequence[str]", ids))
        else:
            users, items = _split_pairs(ids)
            keys = pair_keys(encode_lookup(users, "user ids"), encode_lookup(items, "item ids"))
        return self._index.find(keys)

    def _present(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if len(self) == 0:
            return np.zeros(rows.size, bool)
        present: NDArray[np.bool_] = (rows >= 0) & (self.status[rows] == Status.OK)
        return present

    def _rows_per_read(self) -> int:
        return block_rows(self.header.vector_bytes, _READ_BYTES)

    def _fill(
        self, features: NDArray[Any], rows: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> None:
        """Copy row `rows[p]` of the file to `features[p]` for each position, in file order and in long reads."""
        wanted = rows[positions]
        if bool((wanted[1:] < wanted[:-1]).any()):
            order = np.argsort(wanted, kind="stable")
            positions, wanted = positions[order], wanted[order]
        gap = block_rows(self.header.vector_bytes, _GAP_BYTES)
        with translated(self.path):
            data = self._file()[FEATURES]
            for i, j in runs(wanted, max_gap=gap, max_span=self._rows_per_read()):
                low, high = int(wanted[i]), int(wanted[j - 1]) + 1
                block = np.asarray(data[low:high])
                if not bool(
                    (np.diff(wanted[i:j]) == 1).all()
                ):  # gaps or repetitions, perhaps as many of each
                    block = block[wanted[i:j] - low]
                if not np.isfinite(block).all():
                    bad = int(wanted[i:j][~np.isfinite(block).all(axis=1)][0])
                    raise DamagedFeatureSet(
                        f"{self.path}:/{FEATURES}: row {bad} is marked present and holds NaN or "
                        f"infinity; {EXTRACT_AGAIN}"
                    )
                features[positions[i:j]] = self._narrow(block, features.dtype)

    def _narrow(self, block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype.itemsize >= block.dtype.itemsize:
            return block
        try:
            with np.errstate(over="raise"):
                return block.astype(dtype)
        except FloatingPointError as error:
            raise InvalidInput(
                f"{self.path}: values do not fit in {dtype}; ask for float32"
            ) from error

    def _ragged_rows(self, start: int, stop: int) -> list[NDArray[Any]]:
        offsets = self._offsets[start : stop + 1]
        with translated(self.path):
            vectors = np.asarray(self._file()[FEATURES][int(offsets[0]) : int(offsets[-1])])
        if not np.isfinite(vectors).all():
            raise DamagedFeatureSet(
                f"{self.path}:/{FEATURES}: rows {start} … {stop - 1} hold NaN or infinity; "
                f"{EXTRACT_AGAIN}"
            )
        return [part.copy() for part in np.split(vectors, offsets[1:-1] - offsets[0])]


def _split_pairs(pairs: Any) -> tuple[Any, Any]:
    """The two columns of (user, item) pairs."""
    if isinstance(pairs, np.ndarray):
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InvalidIds(
                f"ids: got an array of shape {pairs.shape}, expected (user, item) pairs of shape "
                "(b, 2)"
            )
        return pairs[:, 0], pairs[:, 1]
    pairs = list(pairs)
    for row, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidIds(
                f"ids: element {row} is {pair!r}, expected a (user, item) pair; the set is of "
                "interactions"
            )
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
