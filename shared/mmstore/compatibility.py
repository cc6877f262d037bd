"""Whether two extractions would write the same set: a plan is everything in a set but its creation time and progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmstore import hdf5
from mmstore.blocks import block_rows, spans
from mmstore.errors import ProvenanceMismatch
from mmstore.ids import Bytes
from mmstore.schema import Header, canonical_json
from mmstore.spec import CREATED, ID_DATASETS, VERSIONS


def refuse_other_plan(
    found: Header,
    wanted: Header,
    file: Any,
    columns: list[Bytes],
    where: str,
    *,
    any_versions: bool = False,
) -> list[str]:
    """Check that an existing file has the wanted plan.

    Args:
        found: Header of the existing file.
        wanted: Header that the writer would give it.
        file: The existing file, open.
        columns: The id columns that the writer would give it.
        where: The path and what it is, the beginning of the message.
        any_versions: Let the versions of programs differ.

    Returns:
        The keys of the versions that differ.

    Raises:
        ProvenanceMismatch: It has another one; says what differs.
    """
    differences = plan_differences(found, wanted)
    versions = [key for key, _ in differences if any_versions and f"{key}.".startswith(VERSIONS)]
    differences = [difference for difference in differences if difference[0] not in versions]
    if found.source == wanted.source and found.rows == wanted.rows:
        for name, column in zip(ID_DATASETS[found.source], columns, strict=True):
            differences += _column_difference(file[name], column, name)
    if not differences:
        return versions
    shown = "; ".join(f"{key}: {values}" for key, values in differences[:6])
    more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
    raise ProvenanceMismatch(
        f"{where} of another plan is in the way ({shown}{more}); run with --restart to replace it, "
        "or choose another --name",
        [key for key, _ in differences],
    )


def plan_differences(found: Header, wanted: Header) -> list[tuple[str, str]]:
    """What makes two plans differ, as `(key, "found, expected")`; creation time, progress and ids aside.

    Provenance is compared key by key, so the answer names `provenance.pooling` and not just
    `provenance`.
    """
    differences = []
    for key in ("modality", "name", "source", "layout", "dim", "dtype", "rows"):
        old, new = getattr(found, key), getattr(wanted, key)
        if old != new:
            differences.append((key, f"{old!r}, expected {new!r}"))
    old_leaves, new_leaves = dict(_leaves(found.provenance)), dict(_leaves(wanted.provenance))
    for key in sorted({*old_leaves, *new_leaves} - {f"provenance.{CREATED}"}):
        if old_leaves.get(key) != new_leaves.get(key):
            old, new = old_leaves.get(key, "absent"), new_leaves.get(key, "absent")
            differences.append((key, f"{old}, expected {new}"))
    return differences


def _leaves(value: object, prefix: str = "provenance") -> Iterator[tuple[str, str]]:
    """Dotted keys of a JSON tree, and the JSON text of each leaf."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}")
    else:
        yield prefix, canonical_json(value)


def _column_difference(found: Any, wanted: Bytes, name: str) -> list[tuple[str, str]]:
    """Where a stored id column differs from the wanted one of the same length."""
    differing, first = 0, -1
    for start, stop in spans(wanted.size, block_rows(wanted.dtype.itemsize)):
        rows = np.flatnonzero(hdf5.read_text(found, start, stop) != wanted[start:stop])
        if rows.size and first < 0:
            first = start + int(rows[0])
        differing += rows.size
    if not differing:
        return []
    old, new = (bytes(column[first]).decode("utf-8", "replace") for column in (found, wanted))
    return [
        (
            name,
            f"{differing} of {wanted.size} differ, first in row {first} ({old!r}, expected "
            f"{new!r})",
        )
    ]
