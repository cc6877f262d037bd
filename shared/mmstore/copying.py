"""Rows of finished sets in a set that is being written: what extending and merging have in common.

Rows are found by id and never by position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmstore import spec
from mmstore.ids import Bytes, IdIndex, block_rows, pair_keys, spans
from mmstore.reader import FeatureSet
from mmstore.spec import Status
from mmstore.writer import FeatureSetWriter

Rows = NDArray[np.int64]

_BLOCK_ROWS = 4096


def keys_of(raw_ids: Bytes) -> Bytes:
    """Return one key per row of `FeatureSet.raw_ids`, shape (n,), by which rows are compared."""
    return raw_ids if raw_ids.ndim == 1 else pair_keys(raw_ids[:, 0], raw_ids[:, 1])


def rows_of(features: FeatureSet, keys: Bytes) -> Rows:
    """Return the row of each key, see `keys_of`, in a complete set; -1 where it has none.

    Raises:
        InvalidIds: An id occurs twice in the set.
    """
    return IdIndex.build(keys_of(features.raw_ids), f"{features.path}:/ids").find(keys)


def copy_rows(features: FeatureSet, at: Rows, writer: FeatureSetWriter, rows: Rows) -> None:
    """Copy rows `at` of a complete set to the pending `rows` of a writer, shape (n,) each.

    Vectors, and what is missing or corrupt with the message, are taken as they are, bit for bit;
    both sets have the same layout, width and dtype.

    Raises:
        StoreError: The set can't be read, or the other one not written.
    """
    raw, status, messages = features.raw_ids, features.status, dict(features.errors())
    dense = features.layout == spec.DENSE
    step = min(_BLOCK_ROWS, block_rows(features.header.vector_bytes))
    for start, stop in spans(at.size, step):
        here, there = at[start:stop], rows[start:stop]
        found = status[here]
        ok = found == Status.OK
        if ok.any() and dense:
            vectors, _ = features.matrix(raw[here[ok]], dtype=features.dtype)
            writer.write(there[ok], vectors)
        elif ok.any():
            matrices = features.ragged(raw[here[ok]])
            writer.write_ragged(there[ok], [one for one in matrices if one is not None])
        corrupt = found == Status.CORRUPT
        if corrupt.any():
            writer.mark_corrupt(there[corrupt], [messages[row] for row in here[corrupt].tolist()])
        if (missing := found == Status.MISSING).any():
            writer.mark_missing(there[missing])
        writer.flush()
