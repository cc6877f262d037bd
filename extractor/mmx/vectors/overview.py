"""Summary of a feature set, and the difference of two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbase.layout import Column, fits, tables
from mmx.errors import DataError

if TYPE_CHECKING:
    from mmstore import FeatureSet

EXAMPLES = 5
_BATCH = 4096
_COUNTS = ("rows", "ok", "missing", "corrupt")


def summary(features: FeatureSet) -> dict[str, Any]:
    """Return names, counts, sizes and digest of a set, with JSON types only."""
    path = Path(features.path)
    return {
        "path": path.as_posix(),
        "modality": features.modality,
        "name": features.name,
        "source": features.source,
        "layout": features.layout,
        "complete": features.complete,
        "rows": len(features),
        **{status.name.lower(): count for status, count in features.counts().items()},
        "dim": features.dim,
        "dtype": str(features.dtype),
        "bytes": path.stat().st_size,
        "format_version": features.format_version,
        "content_digest": features.content_digest,
    }


def failures(features: FeatureSet) -> list[dict[str, Any]]:
    """List the corrupt rows: row, id (user and item for interactions) and message."""
    found = features.errors()
    ids = features.ids if found else np.empty(0, "U1")
    return [{"row": row, "id": ids[row].tolist(), "message": message} for row, message in found]


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a JSON tree with their values; lists are leaves."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format summaries as a table as wide as the terminal, a row per set.

    Where there is no room for all columns, type, digest and the number of rows go, in this order.
    """
    names = [f"{row['modality']}/{row['name']}" for row in rows]
    labels = [Column("set", names, left=True)]
    columns = {
        name: Column(name, [_cell(name, row) for row in rows], left=name in ("dtype", "digest"))
        for name in (*_COUNTS, "dim", "dtype", "size", "digest")
    }
    for name in ("dtype", "digest", "rows"):
        if not fits(labels, list(columns.values())):
            del columns[name]
    return "\n\n".join(tables(labels, list(columns.values())))


def _cell(name: str, row: Mapping[str, Any]) -> str:
    if name == "size":
        return _size(row["bytes"])
    if name == "digest":
        return str(row["content_digest"])[:12]
    value = row[name]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(n_bytes: int) -> str:
    size, units = float(n_bytes), ["kB", "MB", "GB", "TB"]
    if size < 1000:
        return f"{n_bytes} B"
    size /= 1000
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.1f} {units[0]}"


def one_line(value: object) -> str:
    """Return a JSON value on one line; text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compare(a: FeatureSet, b: FeatureSet) -> dict[str, Any]:
    """Compare two sets, joined by id, with JSON types only.

    Returns:
        `equal` (same content digest); numbers of rows in one only and in both, each with examples;
        among the rows of both how many have a vector in one only and in both; `max_abs_difference`
        of the latter (None where there are none, or where the dimensions differ); and the keys of
        the provenance that differ, the creation time aside.

    Raises:
        DataError: a set is ragged, or one is of items and the other of interactions.
    """
    for each in (a, b):
        if each.layout != "dense":
            raise DataError(f"{each.path}: a {each.layout} set (expected one vector per row)")
    if a.source != b.source:
        raise DataError(f"{b.path}: a set of {b.source}s (expected {a.source}s, as in {a.path})")
    ids_a, ids_b = _keys(a), _keys(b)
    known_a, known_b = set(ids_a), set(ids_b)
    only_a = [key for key in ids_a if key not in known_b]
    only_b = [key for key in ids_b if key not in known_a]
    common = [key for key in ids_a if key in known_b]
    counts = {"vector_only_in_a": 0, "vector_only_in_b": 0, "vector_in_both": 0}
    largest: float | None = None
    for start in range(0, len(common), _BATCH):
        batch = common[start : start + _BATCH]
        of_a, in_a = a.matrix(batch)
        of_b, in_b = b.matrix(batch)
        both = in_a & in_b
        counts["vector_only_in_a"] += int((in_a & ~in_b).sum())
        counts["vector_only_in_b"] += int((in_b & ~in_a).sum())
        counts["vector_in_both"] += int(both.sum())
        if a.dim == b.dim and both.any():
            difference = np.abs(of_a[both].astype(np.float64) - of_b[both]).max()
            largest = max(largest or 0.0, float(difference))
    made_a, made_b = dict(leaves(a.provenance)), dict(leaves(b.provenance))
    differing = sorted(
        key for key in {*made_a, *made_b} - {"created"} if made_a.get(key) != made_b.get(key)
    )
    return {
        "a": str(a.path),
        "b": str(b.path),
        "equal": a.content_digest == b.content_digest,
        "dim": [a.dim, b.dim],
        "dtype": [str(a.dtype), str(b.dtype)],
        "only_in_a": len(only_a),
        "only_in_a_examples": only_a[:EXAMPLES],
        "only_in_b": len(only_b),
        "only_in_b_examples": only_b[:EXAMPLES],
        "in_both": len(common),
        "same_order": ids_a == ids_b,
        **counts,
        "max_abs_difference": largest,
        "provenance": {key: [made_a.get(key), made_b.get(key)] for key in differing},
    }


def _keys(features: FeatureSet) -> list[Any]:
    """The ids, or (user, item) pairs."""
    keys = features.ids.tolist()
    return keys if features.source == "item" else [tuple(pair) for pair in keys]
