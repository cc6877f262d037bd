"""The content digest: BLAKE2b-256 over the canonical byte stream that `FORMAT.md` defines.

Streamed in blocks, so that memory stays flat, and vectorised over ids, so that ten million of them
take no Python loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmstore.ids import block_rows, byte_lengths, byte_table, spans
from mmstore.schema import Header
from mmstore.spec import FEATURES, ID_DATASETS

_CANONICAL_NAN = {2: 0x7E00, 4: 0x7FC00000}


class Rows(Protocol):
    """A numpy array or an HDF5 dataset: something whose rows can be read slice by slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Some rows, as an array."""


def content_digest(
    *,
    source: str,
    layout: str,
    ids: Sequence[Rows],
    status: Rows,
    features: Rows,
    offsets: Rows | None = None,
) -> str:
    """The digest of a set's content, 64 hexadecimal digits.

    It depends on the ids, the status of each row and the vectors, and on nothing else: not on the
    modality, the name, the provenance, the error messages, the width of the id columns or the
    machine's byte order.

    Args:
        source: `item` or `interaction`.
        layout: `dense` or `ragged`.
        ids: One column of padded UTF-8 for items, two (users, items) for interactions, each (n,).
        status: (n,) uint8.
        features: (m, d) float16 or float32.
        offsets: (n + 1,) int64 for ragged sets, else None.
    """
    vectors, dim = features.shape
    item_bytes = features.dtype.itemsize
    digest = hashlib.blake2b(digest_size=32)
    digest.update(
        f"mmstore.content/1\nsource={source}\nlayout={layout}\ndtype=float{8 * item_bytes}\n"
        f"rows={status.shape[0]}\nvectors={vectors}\ndim={dim}\n".encode("ascii")
    )
    for column in ids:
        step = block_rows(column.dtype.itemsize)
        for start, stop in spans(column.shape[0], step):
            digest.update(byte_lengths(np.asarray(column[start:stop])).astype("<u4").tobytes())
        for start, stop in spans(column.shape[0], step):
            block = np.asarray(column[start:stop])
            table = byte_table(block)
            used = np.arange(table.shape[1]) < byte_lengths(block)[:, None]  # (rows, width)
            digest.update(table[used].tobytes())
    _update_plain(digest, status, "|u1")
    if offsets is not None:
        _update_plain(digest, offsets, "<i8")
    for start, stop in spans(vectors, block_rows(dim * item_bytes)):
        digest.update(canonical_bytes(np.asarray(features[start:stop])))
    return digest.hexdigest()


def file_digest(
    file: Any, header: Header, status: NDArray[np.uint8], offsets: NDArray[np.int64] | None
) -> str:
    """The content digest of an open file's ids and vectors with the given status and offsets."""
    return content_digest(
        source=header.source,
        layout=header.layout,
        ids=[file[name] for name in ID_DATASETS[header.source]],
        status=status,
        features=file[FEATURES],
        offsets=offsets,
    )


def canonical_bytes(vectors: NDArray[Any]) -> memoryview:
    """Little-endian row-major bytes of float16 or float32 `vectors`, with every NaN as the one canonical quiet NaN."""
    size = vectors.dtype.itemsize
    bits = np.ascontiguousarray(vectors, dtype=f"<f{size}").view(f"<u{size}")
    absent = np.isnan(vectors)
    if absent.any():
        bits = np.where(absent, np.array(_CANONICAL_NAN[size], bits.dtype), bits)
    return bits.reshape(-1).view(np.uint8).data


def _update_plain(digest: hashlib.blake2b, rows: Rows, dtype: str) -> None:
    for start, stop in spans(rows.shape[0], block_rows(np.dtype(dtype).itemsize)):
        digest.update(np.asarray(rows[start:stop]).astype(dtype, copy=False).tobytes())
