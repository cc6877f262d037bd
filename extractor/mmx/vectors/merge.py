"""One feature set from several of different items: shards of a catalogue, made anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.progress import Progress, Silent
from mmstore import Status
from mmstore.copying import copy_rows, keys_of
from mmstore.ids import Bytes, Pairs, spans
from mmstore.partial import plan_differences
from mmstore.reader import FeatureSet
from mmstore.writer import FeatureSetWriter
from mmx.errors import DataError, UsageError

MAY_DIFFER = ("rows", "name", "provenance.input.digest", "provenance.input.table",
              "provenance.input.limit")  # fmt: skip
"""What shards of one catalogue differ in: their items, and the tables these were listed in."""
_BLOCK = 4096

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Merged:
    """The result: the set's file, content digest, rows by status, and rows in several sets.

    `already` tells that the set was there before.
    """

    path: Path
    digest: str
    ok: int
    missing: int
    corrupt: int
    repeated: int
    already: bool


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    name: str,
    restart: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Join sets of the same provenance: the rows of the first, then new ones of the second, ….

    Vectors are taken over bit for bit. An item of several sets has one vector in all of them that
    have one; that one is taken.

    The sets are complete, two or more. The new set has its own `name` in the store `out`, where
    `restart` replaces one of that name that was made otherwise.

    Raises:
        UsageError: The new set would be one of those it is made of.
        DataError: Sets were made in different ways, or have different vectors for an item.
        mmstore.StoreError: A set cannot be read or written.
    """
    progress = progress or Silent()
    if len(paths) < 2:
        raise UsageError(f"a merger needs two sets or more (got {len(paths)})")
    with ExitStack() as stack:
        sets = [stack.enter_context(FeatureSet(path)) for path in paths]
        first = sets[0]
        target = out / first.modality / f"{name}.h5"
        if any(path.resolve() == target.resolve() for path in paths):
            raise UsageError(f"{target}: is one of the sets that are merged; choose another --name")
        for features in sets:
            _refuse_other_making(first, features)
        joined = _joined(sets)
        ids, n = joined.ids, len(joined.ids)
        writer = stack.enter_context(
            FeatureSetWriter(
                target,
                modality=first.modality,
                dim=first.dim,
                ids=ids if ids.ndim == 1 else Pairs(ids[:, 0], ids[:, 1]),
                layout=first.layout,
                dtype=first.header.dtype,
                provenance=_provenance(sets),
                restart=restart,
            )
        )
        already = writer.finished
        if not already:
            pending = np.zeros(n, dtype=np.bool_)
            pending[writer.pending] = True
            with progress.task(f"{first.modality}/{name}", n) as task:
                for number, (features, there) in enumerate(zip(sets, joined.places, strict=True)):
                    rows = np.flatnonzero((joined.source[there] == number) & pending[there])
                    for start, stop in spans(rows.size, _BLOCK):
                        block = rows[start:stop]
                        copy_rows(features, block, writer, there[block])
                        task.advance(stop - start)
            writer.finish()
        counts = writer.counts()
    ok, missing, corrupt = counts[Status.OK], counts[Status.MISSING], counts[Status.CORRUPT]
    repeated = sum(len(features) for features in sets) - n
    digest = writer.header.content_digest
    return Merged(target, digest, ok, missing, corrupt, repeated, already=already)


def _refuse_other_making(first: FeatureSet, features: FeatureSet) -> None:
    differences = {
        key: values
        for key, values in plan_differences(features.header, first.header)
        if key not in MAY_DIFFER
    }
    if differences:
        shown = "; ".join(f"{key}: {values}" for key, values in list(differences.items())[:6])
        raise DataError(
            f"{features.path}: was made otherwise than {first.path} ({shown}), so their vectors "
            "can't stand in one set; extract the items again with the same command"
        )


class _Joined(NamedTuple):
    """Where the rows of several sets stand in one."""

    ids: Bytes  # every id once, in the order of the sets, (n,) or (n, 2)
    places: list[Rows]  # of each set: the row there of each of its rows
    source: Rows  # the number of the set that each row is taken from, (n,)


def _joined(sets: Sequence[FeatureSet]) -> _Joined:
    """Return the union of the sets' ids, and who gives each row.

    Raises:
        DataError: An item has different vectors in two sets.
    """
    raw = [features.raw_ids for features in sets]
    keys = [keys_of(one) for one in raw]
    _, first, group = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    # `np.unique` sorts by id; rows are to stand in the order in which ids come first.
    order = np.argsort(first)
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    ends = np.cumsum([one.size for one in keys])
    places = np.split(place[group.reshape(-1)], ends[:-1])
    source = np.full(order.size, -1, np.int64)
    has_vector = np.zeros(order.size, np.bool_)
    for number, (features, there) in enumerate(zip(sets, places, strict=True)):
        ok = features.status == Status.OK
        for other in np.unique(source[there[ok & has_vector[there]]]).tolist():
            both = ok & has_vector[there] & (source[there] == other)
            _refuse_other_vectors(features, sets[other], raw[number][both])
        # A vector wins over the lack of one, an earlier set over a later one.
        taken = there[(source[there] < 0) | (ok & ~has_vector[there])]
        source[taken] = number
        has_vector[there[ok]] = True
    return _Joined(np.concatenate(raw)[first[order]], places, source)


def _refuse_other_vectors(features: FeatureSet, other: FeatureSet, ids: Bytes) -> None:
    for start, stop in spans(len(ids), _BLOCK):
        block = ids[start:stop]
        here, there = (_vectors(one, block) for one in (features, other))
        for item, a, b in zip(block, here, there, strict=True):
            if not np.array_equal(a, b):
                shown = b" and ".join(np.atleast_1d(item).tolist()).decode("utf-8", "replace")
                raise DataError(
                    f"item {shown!r} has different vectors in {other.path} and {features.path}; "
                    "leave one of them out, or extract the item in one of them alone"
                )


def _vectors(features: FeatureSet, ids: Bytes) -> Any:
    if features.layout == "ragged":
        return features.ragged(ids)
    return features.matrix(ids, dtype=features.dtype)[0]


def _provenance(sets: Sequence[FeatureSet]) -> dict[str, Any]:
    """The common provenance, and beside the input what was merged."""
    common = {key: value for key, value in sets[0].provenance.items() if key != "created"}
    tables = {features.provenance.get("input", {}).get("table") for features in sets}
    return {
        **common,
        "input": {
            **{key: value for key, value in common.get("input", {}).items() if key != "limit"},
            "table": tables.pop() if len(tables) == 1 else None,
            "digest": None,
            "merged": [
                {
                    "content_digest": features.content_digest,
                    "rows": len(features),
                    "digest": features.provenance.get("input", {}).get("digest"),
                }
                for features in sets
            ],
        },
    }
