"""Filter and split the interactions of a dataset folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from mmbase.dataset import find_table
from mmbench import __version__
from mmbench.data.columns import known_columns, read_known
from mmbench.data.dataset import SplitTables, sorted_ids, write_split
from mmbench.data.filters import Filter, describe
from mmbench.data.folders import new_folder
from mmbench.data.splits import Rows, split_rows
from mmbench.data.tables import InteractionTable, write_interactions
from mmbench.errors import DataError, ShapeError

RECORD = "split.json"
_INSTANTS = ("test_from", "valid_from")


def _interactions(data: Path) -> Path:
    path = find_table(data, ("interactions",))
    if path is None:
        raise DataError(f"{data}: no interactions.tsv (.csv, .parquet, .jsonl) to split or filter")
    return path


def as_rows(table: InteractionTable) -> Rows:
    """Number users and items in the order of their ids."""
    codes = []
    for ids in (table.user_ids, table.item_ids):
        place = {text: row for row, text in enumerate(sorted_ids(ids))}
        codes.append(np.array([place[text] for text in ids.tolist()], np.int64))
    return Rows(codes[0], codes[1], table.timestamps, table.per_second)


def apply_filters(
    table: InteractionTable, filters: Sequence[Filter]
) -> tuple[InteractionTable, list[tuple[str, dict[str, float | int]]]]:
    """Return the rows that stay, and the counts before the first and after each filter.

    Raises:
        UsageError: A filter needs ratings that are not there.
        DataError: Nothing stays.
    """
    counts = [("before", describe(as_rows(table)))]
    for one in filters:
        table = table.take(one.keep(as_rows(table), table.ratings))
        counts.append((one.text, describe(as_rows(table))))
        if not len(table):
            raise DataError(f"--filter {one.text}: no interactions are left; use a weaker filter")
    return table, counts


def make_split(
    data: Path,
    name: str,
    method: str,
    filters: Sequence[Filter] = (),
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], bool]:
    """Write `splits/<name>/` with the three parts and `split.json`, unless it is there.

    Args:
        data: The dataset folder.
        name: Name of the split, a plain folder name.
        method: A name of `METHODS`.
        filters: Applied before, in this order.
        columns: Column roles of the interactions.
        options: Of `split_rows`; instants are exact seconds since 1970.

    Returns:
        The content of `split.json`, and whether the same split was there already.

    Raises:
        DataError: No interactions, a part would be empty, or another split of that name is there.
        UsageError: An option does not fit.
    """
    path = _interactions(data)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = known_columns(data, columns)
    instants = {name: options.pop(name) for name in _INSTANTS if name in options}
    wanted = {
        "method": method,
        "options": {**options, **{name: _number(one) for name, one in instants.items()}},
        "filters": [one.text for one in filters],
        "interactions": digest,
        **({"columns": known} if known else {}),
    }
    target = data / "splits" / name
    if target.exists():
        record = _read_record(target)
        keys = (*wanted, "columns")
        if record is not None and all(record.get(key) == wanted.get(key) for key in keys):
            return record, True
        raise DataError(
            f"{target}: exists already, made otherwise; choose another --name or remove it"
        )
    table, counts = apply_filters(read_known(data, path, columns, ask=True), filters)
    ticks = {name: ceil(one * table.per_second) for name, one in instants.items()}
    try:
        part = split_rows(method, as_rows(table), **options, **ticks)
    except ShapeError as error:
        raise DataError(f"{path}: {error}") from error
    tables = SplitTables.divided(name, table, part)
    for key, own in tables.parts.items():
        if not len(own):
            raise DataError(
                f"{data}: the {key} part would be empty; choose other shares or another method"
            )
    record = {
        **wanted,
        "counts": {key: len(own) for key, own in tables.parts.items()},
        "statistics": dict(counts),
        "tool": {"name": "mmbench", "version": __version__},
    }
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_split(partial, tables)
    (partial / RECORD).write_text(
        json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    partial.rename(target)
    return record, False


def filter_dataset(
    data: Path, out: Path, filters: Sequence[Filter], columns: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, float | int]]]:
    """Write the interactions that stay into a new dataset folder; return counts per filter.

    Raises:
        DataError: No interactions, nothing stays, or `out` exists.
        UsageError: A filter needs what is not there.
    """
    with new_folder(out) as partial:
        table, counts = apply_filters(
            read_known(data, _interactions(data), columns, ask=True), filters
        )
        write_interactions(partial / "interactions.tsv", table)
    return counts


def _number(seconds: Fraction) -> float | str:
    """Return an instant as the record has it: a number, or text where a number would round it."""
    if seconds.denominator == 1:
        return int(seconds)
    near = float(seconds)
    return near if Fraction(repr(near)) == seconds else str(seconds)


def _read_record(target: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
