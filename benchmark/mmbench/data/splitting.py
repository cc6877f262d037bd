"""Filter and split the interactions of a dataset folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import find_table
from mmbench import __version__
from mmbench.data.files import (
    available_splits,
    known_columns,
    new_folder,
    parts_of,
    read_known,
    read_parts,
)
from mmbench.data.filters import Filter, describe
from mmbench.data.splits import (
    LEAVE_OUT,
    TEST,
    TRAIN,
    VALID,
    Rows,
    SplitTables,
    split_rows,
    too_short,
    write_split,
)
from mmbench.data.tables import InteractionTable, write_interactions
from mmbench.data.times import FIRST, as_text
from mmbench.errors import DataError, ShapeError, UsageError, unknown_name

RECORD = "split.json"
_INSTANTS = ("test_from", "valid_from")


def _interactions(data: Path) -> Path:
    path = find_table(data, ("interactions",))
    if path is None:
        raise DataError(f"{data}: no interactions.tsv (.csv, .parquet, .jsonl) to split or filter")
    return path


def apply_filters(
    table: InteractionTable, filters: Sequence[Filter]
) -> tuple[InteractionTable, list[tuple[str, dict[str, float | int]]]]:
    """Return the rows that stay, and the counts before the first and after each filter.

    Raises:
        UsageError: A filter needs ratings that are not there.
        DataError: Nothing stays.
    """
    counts = [("before", describe(Rows.of(table)))]
    for one in filters:
        table = table.take(one.keep(Rows.of(table), table.ratings))
        counts.append((one.text, describe(Rows.of(table))))
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
        The content of `split.json`, among it `notes` on how the rows were read if there are any,
        and whether the same split was there already.

    Raises:
        DataError: No interactions, a part would be empty, or another split of that name is there.
        UsageError: An option does not fit.
    """
    path = _interactions(data)
    record = _description(method, options, [path], known_columns(data, columns))
    record["filters"] = [one.text for one in filters]
    target = data / "splits" / name
    if (there := _same(target, record)) is not None:
        return there, True
    table, counts = apply_filters(read_known(data, path, columns, ask=True), filters)
    part = _divide(path, table, method, options)
    tables = SplitTables.divided(name, table, part)
    if method in LEAVE_OUT and (short := too_short(Rows.of(table).users, part)):
        tables = replace(tables, notes=(*tables.notes, short))
    return _publish(target, tables, {**record, "statistics": dict(counts)}), False


def carve_split(
    data: Path,
    name: str,
    source: str,
    method: str,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[dict[str, Any], bool]:
    """Write a split whose validation part is taken out of the training part of `source`.

    The test part stays as it is. `leave-k-out` takes k rows of each user with at least 2 k + 1,
    `leave-one-out` one.
    Arguments, results and errors as for `make_split`.

    Raises:
        UsageError: There is no split `source`, it has a validation part, or the method divides rows
            into three parts alone.
    """
    available = available_splits(data)
    if source not in available:
        raise unknown_name("split", source, available)
    if method == "eighths" or "test_from" in options:
        raise UsageError("--carve: takes a validation part alone; choose another --method")
    paths = parts_of(available[source])
    if paths["valid"] is not None:
        raise UsageError(f"--carve {source}: has a validation part, {paths['valid'].name}")
    given = {part: path for part, path in paths.items() if part != "valid"}
    files = [path for path in given.values() if path is not None]
    record = {
        **_description(method, options, files, known_columns(data, columns)),
        "carved": source,
    }
    target = data / "splits" / name
    if (there := _same(target, record)) is not None:
        return there, True
    tables = read_parts(data, source, available[source], given, columns)
    train = tables.parts["train"]
    part = _divide(files[0], train, method, {**options, "test_ratio": 0.0})
    if method in LEAVE_OUT:
        part = np.where(part == TEST, VALID, TRAIN).astype(np.int8)
    carved = SplitTables.divided(name, train, part)
    carved = replace(carved, parts={**carved.parts, "test": tables.parts["test"]})
    return _publish(target, carved, record), False


def _description(
    method: str,
    options: Mapping[str, Any],
    files: Sequence[Path],
    columns: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return what identifies a split: method, options, and the SHA-256 of its files."""
    state = hashlib.sha256()
    for path in (part for one in files for part in _files_of(one)):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
    plain = {key: _number(one) if key in _INSTANTS else one for key, one in options.items()}
    record = {"method": method, "options": plain, "interactions": state.hexdigest()}
    return {**record, "columns": dict(columns)} if columns else record


def _files_of(path: Path) -> list[Path]:
    """Return the file, or those of a folder of Parquet files."""
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def _same(target: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of the split in `target` if it was made like this; None without one.

    Raises:
        DataError: It was made otherwise.
    """
    if not target.exists():
        return None
    record = _read_record(target)
    keys = {*wanted, "columns", "carved"}
    if record is not None and all(record.get(key) == wanted.get(key) for key in keys):
        return record
    raise DataError(
        f"{target}: exists already with other options; choose another --name or remove it"
    )


def _divide(
    path: Path, table: InteractionTable, method: str, options: Mapping[str, Any]
) -> NDArray[np.int8]:
    """Return the part of each row; a DataError of the file where the method does not fit it."""
    ticks = {key: ceil(options[key] * table.per_second) for key in _INSTANTS if key in options}
    times = table.timestamps
    if (
        times is not None
        and not table.by_position
        and any(options.get(key, 0) >= FIRST for key in _INSTANTS)
    ):
        texts = as_text(np.array([times.min(), times.max()]), table.per_second)
        if times.max() < FIRST * table.per_second:
            raise DataError(
                f"{path}: its times, {' to '.join(texts)}, are plain numbers, which no date can "
                "divide; give one of them instead of a date, or write dates"
            )
    try:
        return split_rows(method, Rows.of(table), **{**options, **ticks})
    except ShapeError as error:
        raise DataError(f"{path}: {error}") from error


def _publish(target: Path, tables: SplitTables, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write the parts and the record, all of them or nothing; return the record."""
    for key, own in tables.parts.items():
        if not len(own):
            raise DataError(
                f"{target.name}: the {key} part would be empty; choose other shares or another "
                "method"
            )
    whole = {
        **record,
        **({"notes": list(tables.notes)} if tables.notes else {}),
        "counts": {key: len(own) for key, own in tables.parts.items()},
        "tool": {"name": "mmbench", "version": __version__},
    }
    with new_folder(target) as partial:
        write_split(partial, tables)
        (partial / RECORD).write_text(
            json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return whole


def filter_dataset(
    data: Path, out: Path, filters: Sequence[Filter], columns: Mapping[str, str] | None = None
) -> tuple[list[tuple[str, dict[str, float | int]]], str]:
    """Write the interactions that stay into a new dataset folder.

    Returns:
        Counts per filter, and a note on how the rows were read, empty if that was plain.

    Raises:
        DataError: No interactions, nothing stays, or `out` exists.
        UsageError: A filter needs what is not there.
    """
    with new_folder(out) as partial:
        table, counts = apply_filters(
            read_known(data, _interactions(data), columns, ask=True), filters
        )
        write_interactions(partial / "interactions.tsv", table)
    return counts, table.note


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
