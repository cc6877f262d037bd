"""One feature set from several of the same items: concatenated, added, averaged or multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import mmx
from mmbase.progress import Progress, Silent
from mmstore import Status
from mmstore.ids import Pairs
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.errors import DataError, UsageError

How = Literal["concat", "sum", "mean", "mul"]
_BLOCK = 4096


@dataclass(frozen=True)
class Fused:
    """The result of a fusion: the set's file, content digest, rows by status.

    A row is corrupt if it is corrupt in one of the sets, else missing if one lacks it; `already`
    tells that the set was there before.
    """

    path: Path
    digest: str
    dim: int
    ok: int
    missing: int
    corrupt: int
    already: bool


def fuse_vectors(
    parts: Sequence[NDArray[np.float64]], how: How, *, unit: bool = False
) -> NDArray[np.float64]:
    """Fuse the vectors of the same items from several sets.

    Args:
        parts: One array per set, shape (n, dim of the set); for all but `concat` of one width.
        how: `concat`: one after the other; `sum`, `mean`, `mul`: elementwise.
        unit: Scale every vector to length 1 before; one of zeros stays.

    Returns:
        Shape (n, sum of widths) for `concat`, else (n, dim).
    """
    if unit:
        norms = (np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        parts = [part / np.where(n > 0, n, 1.0) for part, n in zip(parts, norms, strict=True)]
    if how == "concat":
        return np.concatenate(parts, axis=1)
    if how == "mul":
        return reduce(np.multiply, parts)
    total = reduce(np.add, parts)
    return total / len(parts) if how == "mean" else total


def fuse(
    paths: Sequence[Path],
    out: Path,
    *,
    how: How,
    name: str,
    modality: str,
    unit: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Fused:
    """Fuse sets into one, row by row of the first one's items, matched by id.

    Computed in double precision, stored as float32.

    The sets are dense and complete, two or more; `how` and `unit` are those of `fuse_vectors`. The
    new set has its own `name` and `modality` in the store `out`, where `restart` replaces one of
    that name that was made otherwise.

    Raises:
        UsageError: The new set would be one of those it is made of.
        DataError: Sets of several vectors per item, of different sources, or of different widths
            where that matters.
        mmstore.StoreError: A set cannot be read or written.
    """
    progress = progress or Silent()
    if len(paths) < 2:
        raise UsageError(f"a fusion needs two sets or more (got {len(paths)})")
    target = out / modality / f"{name}.h5"
    # --restart would replace what it is made of.
    if any(path.resolve() == target.resolve() for path in paths):
        raise UsageError(f"{target}: is one of the sets that are fused; choose another --name")
    with ExitStack() as stack:
        sets = [stack.enter_context(FeatureSet(path)) for path in paths]
        dim = _fused_dim(sets, how)
        writer = stack.enter_context(
            FeatureSetWriter(
                target,
                modality=modality,
                dim=dim,
                provenance=_provenance(sets, name, how, unit=unit),
                restart=restart,
                ids=_ids(sets[0]),
            )
        )
        already = writer.finished
        if not already:
            pending = np.zeros(len(sets[0]), dtype=np.bool_)
            pending[writer.pending] = True
            reasons = [_reasons(features) for features in sets]
            with progress.task(f"{modality}/{name}", len(sets[0])) as task:
                for start in range(0, len(sets[0]), _BLOCK):
                    rows = start + np.flatnonzero(pending[start : start + _BLOCK])
                    _fuse_block(sets, reasons, writer, rows, how, unit=unit)
                    task.advance(min(_BLOCK, len(sets[0]) - start))
            writer.finish()
    counts = writer.counts()
    if not counts[Status.OK]:
        lost = "every item that all sets have is corrupt, in them or when fused"
        empty = "no item has a vector in all of the sets"
        progress.warn(f"{writer.path}: {lost if counts[Status.CORRUPT] else empty}")
    ok, missing, corrupt = counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]
    return Fused(
        writer.path, writer.header.content_digest, dim, ok, missing, corrupt, already=already
    )


def _fuse_block(
    sets: Sequence[FeatureSet],
    reasons: Sequence[dict[Any, str]],
    writer: FeatureSetWriter,
    rows: NDArray[np.int64],
    how: How,
    *,
    unit: bool,
) -> None:
    ids = sets[0].raw_ids[rows]
    found = [features.matrix(ids, dtype=np.float64) for features in sets]
    present = np.logical_and.reduce([mask for _, mask in found])
    if present.any():
        fused = fuse_vectors([matrix[present] for matrix, _ in found], how, unit=unit)
        with np.errstate(over="ignore"):  # the writer records a row that is not finite as corrupt
            writer.write(rows[present], fused.astype(np.float32))
    corrupt: dict[int, str] = {}
    missing: list[int] = []
    for row, item in zip(rows[~present].tolist(), ids[~present].tolist(), strict=True):
        why = next((known[_key(item)] for known in reasons if _key(item) in known), None)
        if why is None:
            missing.append(row)
        else:
            corrupt[row] = why
    if corrupt:
        writer.mark_corrupt(list(corrupt), list(corrupt.values()))
    if missing:
        writer.mark_missing(missing)


def _reasons(features: FeatureSet) -> dict[Any, str]:
    """The reasons of a set's corrupt items, by their ids."""
    raw, label = features.raw_ids, f"{features.modality}/{features.name}"
    return {_key(raw[row].tolist()): f"{label}: {message}" for row, message in features.errors()}


def _key(raw: bytes | list[bytes]) -> Any:
    return tuple(raw) if isinstance(raw, list) else raw


def _fused_dim(sets: Sequence[FeatureSet], how: How) -> int:
    for features in sets:
        label = f"{features.modality}/{features.name}"
        if features.layout != "dense":
            raise DataError(
                f"{label}: has several vectors per item; a fusion takes one (extract it with a "
                "pooling)"
            )
        if features.source != sets[0].source:
            raise DataError(
                f"{label}: its rows are of source {features.source} (expected {sets[0].source}, as "
                "the first)"
            )
    dims = [features.dim for features in sets]
    if how != "concat" and len(set(dims)) > 1:
        raise DataError(
            f"--how {how} needs vectors of one length (got {', '.join(map(str, dims))}); use --how "
            "concat"
        )
    return sum(dims) if how == "concat" else dims[0]


def _ids(features: FeatureSet) -> NDArray[Any] | Pairs:
    raw = features.raw_ids
    return raw if raw.ndim == 1 else Pairs(raw[:, 0], raw[:, 1])


def _provenance(sets: Sequence[FeatureSet], name: str, how: How, *, unit: bool) -> dict[str, Any]:
    return {
        "extractor": name,
        "backend": "fusion",
        "fusion": how,
        "scaling": "l2" if unit else "none",
        "of": [
            {
                "modality": s.modality,
                "name": s.name,
                "content_digest": s.content_digest,
                "provenance": s.provenance,
            }
            for s in sets
        ],
        "tool": {"name": "mmx", "version": mmx.__version__},
    }
