"""Columns of a dataset's interactions: as given, else as given before, else by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmbase.choices import FILE, recall_columns, remember_columns
from mmbench.data.tables import InteractionTable, read_interactions
from mmbench.errors import ToolError

KIND = "interactions"


def known_columns(data: Path, given: Mapping[str, str] | None) -> dict[str, str]:
    """Return the given columns, and those of other roles that were given before."""
    return {**_before(data, given or {}), **(given or {})}


def read_known(
    data: Path, path: Path, given: Mapping[str, str] | None = None, *, ask: bool = False
) -> InteractionTable:
    """Read a table of a dataset, and remember the columns that are given; see `read_interactions`.

    A table that is otherwise made, such as the parts of a split with our names, is read without
    what was given before.

    Args:
        data: The dataset folder.
        path: The table.
        given: Which column has which role.
        ask: As in `read_interactions`.
    """
    given = given or {}
    before = _before(data, given)
    try:
        table = read_interactions(path, {**before, **given}, ask=ask)
    except ToolError as error:
        if not before:
            raise
        before = {}
        try:
            table = read_interactions(path, given, ask=ask)
        except ToolError:
            raise error from None
    if given:
        remember_columns(data, KIND, given)
    if before:
        told = ", ".join(f"{role}={name}" for role, name in before.items())
        note = f"columns as given before ({FILE}): {told}; --columns decides otherwise"
        table = replace(table, note="; ".join(filter(None, (table.note, note))))
    return table


def _before(data: Path, given: Mapping[str, str]) -> dict[str, str]:
    return {
        role: name
        for role, name in recall_columns(data, KIND).items()
        if role not in given and name not in given.values()
    }
