"""The rows of an unfinished set, written with plain file writes at the places that HDF5 reserved for them.

HDF5 itself is not used for rows: it buffers small writes, drops the buffer silently when writing it
fails, and crashes the process when it can't empty it at the end. A plain write either reaches the
operating system, and then survives the death of the process, or raises.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore.blocks import runs


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contiguous dataset lies in its file.

    Attributes:
        start: First byte.
        shape: Sizes of the axes; the first counts rows.
        dtype: Type of the elements.
    """

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + self.shape[0] * self.row_bytes


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


def write_all(stream: FileIO, data: memoryview | bytes) -> None:
    """Write all of `data` to an unbuffered stream, which may take it in pieces."""
    view = memoryview(data)
    while len(view):
        view = view[stream.write(view) :]
