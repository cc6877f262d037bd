"""The content digest: BLAKE2b-256 over the canonical byte stream that `FORMAT.md` defines.

Streamed in blocks, so that memory stays flat, and vectorised over ids, so that ten million of them
take no Python loop.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmstore.ids import block_rows, byte_lengths, byte_table, spans
from mmstore.schema import Header
from mmstore.spec import FEATURES, ID_DATASETS

_CANONICAL_NAN = {2: 0x7E00, 4: 0x7FC00000}


def content_digest(
    file: Any, header: Header, status: NDArray[np.uint8], offsets: NDArray[np.int64] | None
) -> str:
    """Return the digest of a set's content, 64 hexadecimal digits.

    It depends on the ids, the status of each row, shape (n,), and the vectors alone, not on names,
    provenance, messages, the width of id columns or byte order. `offsets` of ragged sets, shape
    (n + 1,), are the first vector of each row and the end.
    """
    features = file[FEATURES]
    vectors, dim = features.shape
    digest = hashlib.blake2b(digest_size=32)
    digest.update(
        f"mmstore.content/1\nsource={header.source}\nlayout={header.layout}\n"
        f"dtype={header.dtype}\nrows={status.size}\nvectors={vectors}\ndim={dim}\n".encode("ascii")
    )
    for name in ID_DATASETS[header.source]:
        column = file[name]
        step = block_rows(column.dtype.itemsize)
        # All lengths come before all texts, so that no choice of ids can imitate another one.
        for start, stop in spans(column.shape[0], step):
            digest.update(byte_lengths(np.asarray(column[start:stop])).astype("<u4").tobytes())
        for start, stop in spans(column.shape[0], step):
            block = np.asarray(column[start:stop])
            table = byte_table(block)
            used = np.arange(table.shape[1]) < byte_lengths(block)[:, None]  # (rows, width)
            digest.update(table[used].tobytes())
    digest.update(np.ascontiguousarray(status, "|u1").data)
    if offsets is not None:
        digest.update(np.ascontiguousarray(offsets, "<i8").data)
    # The next block is read while the last one is hashed, which takes four fifths of the time.
    with ThreadPoolExecutor(1) as other:
        hashed = None
        for start, stop in spans(vectors, block_rows(header.vector_bytes)):
            canonical = canonical_bytes(np.asarray(features[start:stop]))
            if hashed is not None:
                hashed.result()
            hashed = other.submit(digest.update, canonical)
    return digest.hexdigest()


def canonical_bytes(vectors: NDArray[Any]) -> memoryview:
    """Return little-endian row-major bytes of `vectors`, every NaN as the one quiet NaN."""
    size = vectors.dtype.itemsize
    bits = np.ascontiguousarray(vectors, dtype=f"<f{size}").view(f"<u{size}")
    absent = np.isnan(vectors)
    if absent.any():
        bits = np.where(absent, np.array(_CANONICAL_NAN[size], bits.dtype), bits)
    return bits.reshape(-1).view(np.uint8).data
