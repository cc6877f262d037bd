"""What the vectors of a set look like: lengths, constants, duplicates, dead columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmstore.spec import Status
from mmx.errors import DataError

if TYPE_CHECKING:
    from mmstore import FeatureSet

_BATCH = 4096
_DEAD = 0.01  # of the median spread of the columns
_PAIRS = 2_000


@dataclass(frozen=True, eq=False)
class Facts:
    """What the vectors of a set look like; rows are those of the file.

    Attributes:
        rows: Rows with a vector, (n,).
        norms: Their lengths, (n,).
        constant: Rows whose numbers are all equal; zeros among them.
        zero: Rows of zeros.
        duplicates: Groups of rows with equal vectors, the largest first.
        columns: Number of columns.
        dead: Columns with one value throughout.
        nearly_dead: Columns with less than a hundredth of the median column's spread.
        cosine: Mean cosine of vectors of different items; None with fewer than two.
    """

    rows: NDArray[np.int64]
    norms: NDArray[np.float64]
    constant: Sequence[int]
    zero: Sequence[int]
    duplicates: Sequence[Sequence[int]]
    columns: int
    dead: Sequence[int]
    nearly_dead: Sequence[int]
    cosine: float | None


def facts(features: FeatureSet) -> Facts:
    """Read all vectors once, in blocks.

    Raises:
        DataError: The set is ragged.
        StoreError: It is damaged or incomplete.
    """
    if features.layout != "dense":
        raise DataError(f"{features.path}: a {features.layout} set (expected one vector per row)")
    rows: list[NDArray[np.int64]] = []
    norms: list[NDArray[np.float64]] = []
    constant: list[int] = []
    zero: list[int] = []
    by_content: dict[bytes, list[int]] = {}
    low = np.full(features.dim, np.inf)
    high = np.full(features.dim, -np.inf)
    first: NDArray[np.float64] | None = None
    sums, squares = np.zeros(features.dim), np.zeros(features.dim)
    start = 0
    for _, block, status in features.iter_batches(_BATCH):
        own = np.flatnonzero(status == Status.OK)
        x = np.asarray(block[own], np.float64) + 0.0  # -0.0 and 0.0 are the same number
        own = own + start
        start += len(status)
        if not own.size:
            continue
        rows.append(own)
        norms.append(np.sqrt(np.square(x).sum(axis=1)))
        flat = x.max(axis=1) == x.min(axis=1)
        constant += own[flat].tolist()
        zero += own[flat & (x[:, 0] == 0)].tolist()
        for row, vector in zip(own.tolist(), x, strict=True):
            key = hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
            by_content.setdefault(key, []).append(row)
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        # Moments about the first vector: those about zero cancel where the mean is far from it.
        first = x[0] if first is None else first
        sums += (x - first).sum(axis=0)
        squares += np.square(x - first).sum(axis=0)
    found = np.concatenate(rows) if rows else np.empty(0, np.int64)
    n = max(found.size, 1)
    spread = np.sqrt(np.maximum(squares / n - np.square(sums / n), 0))
    dead = low >= high
    alive = spread[~dead]
    bound = _DEAD * float(np.median(alive)) if alive.size else 0.0
    groups = [group for group in by_content.values() if len(group) > 1]
    return Facts(
        found,
        np.concatenate(norms) if norms else np.empty(0),
        constant,
        zero,
        sorted(groups, key=lambda group: (-len(group), group[0])),
        features.dim,
        np.flatnonzero(dead).tolist() if found.size > 1 else [],
        np.flatnonzero(~dead & (spread < bound)).tolist(),
        _mean_cosine(features, found),
    )


def _mean_cosine(features: FeatureSet, rows: NDArray[np.int64]) -> float | None:
    """The mean cosine of random pairs of vectors."""
    if rows.size < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = rows[rng.permutation(rows.size)[:_PAIRS]]
    ids = features.ids[drawn]
    vectors, _ = features.matrix(ids if ids.ndim == 1 else [tuple(one) for one in ids.tolist()])
    unit = unit_rows(vectors)
    # The mean over all pairs i != j from the sum of the vectors: |sum|² = n + sum of the cosines.
    n_units = int((np.abs(unit).max(axis=1) > 0).sum())
    total = float(np.square(unit.sum(axis=0, dtype=np.float64)).sum()) - n_units
    return total / (drawn.size * (drawn.size - 1))


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1; a row of zeros stays."""
    # Divided by the largest number first: squares of large ones overflow.
    peak = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scaled = vectors / np.where(peak > 0, peak, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(length > 0, length, 1), np.float32)
