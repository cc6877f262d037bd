"""Choices kept in a dataset's `dataset.json`: default split and feature sets, roles of columns.

A feature set or a split that another command leaves behind must not become a default, so the first
choice stays. Columns that were named once are known from then on, until others are named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "dataset.json"
KEY = "taken"
COLUMNS = "columns"
TEXTS = "texts"


def recall(data: Path) -> dict[str, Any]:
    """Return the defaults kept so far, by kind (`split`, `features`); empty without any."""
    taken = _read(data).get(KEY)
    return dict(taken) if isinstance(taken, Mapping) else {}


def remember(data: Path, kind: str, value: object) -> None:
    """Keep a value as the default of its kind, unless there is one already.

    A folder that cannot be written, or whose `dataset.json` is no JSON object, is left as it is.
    """
    path, document = data / FILE, _read(data)
    taken = recall(data)
    if kind in taken or (path.exists() and not document):
        return
    _write(path, {**document, KEY: {**taken, kind: value}})


def recall_columns(data: Path, kind: str) -> dict[str, str]:
    """Return the column of each role that was named before; empty without any.

    Args:
        data: The dataset folder.
        kind: `items` or `interactions`.
    """
    given = _of_kind(_read(data), kind)
    return {role: name for role, name in given.items() if isinstance(name, str) and name}


def recall_texts(data: Path, kind: str) -> list[str]:
    """Return the columns of texts that were named, or found by an import; kinds as above."""
    names = _of_kind(_read(data), kind).get(TEXTS)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _of_kind(document: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    known = document.get(COLUMNS)
    of_kind = known.get(kind) if isinstance(known, Mapping) else None
    return of_kind if isinstance(of_kind, Mapping) else {}


def recall_column(
    data: Path, kinds: Sequence[str], role: str, columns: Collection[str], notes: list[str]
) -> str | None:
    """Return the column of a table that was named for a role before; None if it has none.

    Args:
        data: The dataset folder.
        kinds: Kinds of tables to look under, in order; see `recall_columns`.
        role: `item_id` or another role.
        columns: Those of the table.
        notes: Gets one line about a column that is found.
    """
    for name in (recall_columns(data, kind).get(role) for kind in kinds):
        if name is not None and name in columns:
            notes.append(f"{role}: column {name!r}, as given before ({FILE})")
            return name
    return None


def remember_columns(data: Path, kind: str, columns: Mapping[str, str]) -> None:
    """Keep the columns named for some roles; those of other roles stay. As `remember`."""
    before = recall_columns(data, kind)
    after = {role: name for role, name in before.items() if name not in columns.values()}
    after |= columns
    if after != before:
        texts = {TEXTS: names} if (names := recall_texts(data, kind)) else {}
        _keep(data, kind, {**after, **texts})


def remember_texts(data: Path, kind: str, columns: Sequence[str]) -> None:
    """Keep the names of columns of texts, in the place of others. As `remember`."""
    if recall_texts(data, kind) != list(columns):
        _keep(data, kind, {**_of_kind(_read(data), kind), TEXTS: list(columns)})


def _keep(data: Path, kind: str, roles: Mapping[str, Any]) -> None:
    path, document = data / FILE, _read(data)
    if path.exists() and not document:
        return
    known = document.get(COLUMNS)
    kinds = dict(known) if isinstance(known, Mapping) else {}
    _write(path, {**document, COLUMNS: {**kinds, kind: roles}})


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Write `dataset.json` in one step, or not at all if the folder cannot be written."""
    partial = path.with_name(f".{FILE}.{os.getpid()}.partial")
    try:
        partial.write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        partial.replace(path)
        for left in path.parent.glob(f".{FILE}.*.partial"):  # by a kill; a choice can be lost
            left.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _read(data: Path) -> dict[str, Any]:
    try:
        document = json.loads((data / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
