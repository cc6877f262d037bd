"""Which column of a table of interactions has which role: by name, by place, or as told."""

from __future__ import annotations

from collections.abc import Mapping

from mmbase import dialects
from mmbase.dataset import NAMES, ROLES, columns_of, plausible_column
from mmbase.tables import Table
from mmbench.errors import DataError, UsageError, unknown_name

_LABELS = frozenset({
    "label", "labels", "label:float", "click", "clicked", "is_click", "is_clicked", "like", "liked",
    "is_like", "purchased", "is_purchased", "watch_ratio", "target", "feedback",
})  # fmt: skip
"""Columns, lower case, that may tell positives from negatives and are no rating."""


def roles_of(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the column of each role, and a note when that was guessed.

    Raises:
        DataError: No such column, or none of users or items.
        UsageError: A role that does not exist, or two roles for one column.
    """
    path, names = table.path, table.columns
    for role in given:
        if role not in ROLES:
            raise unknown_name("role in --columns", role, ROLES)
    if not table.header:
        return _places(table, given)
    for role, name in given.items():
        if name not in names:
            raise DataError(f"{path}: no column {name!r} for {role}; it has: {', '.join(names)}")
    roles, notes = dict(given), []
    taken = list(given.values())
    _refuse_shared(roles)
    for role in NAMES:
        found = [name for name in columns_of(role, names) if name not in taken]
        if found and role not in roles:
            roles[role] = found[0]
            if len(set(found)) > 1:
                notes.append(
                    f"{role}: read from {found[0]}, not from {', '.join(found[1:])}; --columns "
                    "decides otherwise"
                )
    labels = [name for name in names if name.strip().casefold() in _LABELS]
    if labels and "rating" not in roles:
        notes.append(
            f"{labels[0]} is not read and every row counts as a positive; --columns "
            f"rating={labels[0]} reads it as the rating"
        )
    missing = [role for role in ("user_id", "item_id") if role not in roles]
    if missing:
        free = [name for name in names if name not in roles.values()]
        examples = {}
        for role in missing:
            examples[role] = plausible_column(role, free)
            free = [name for name in free if name != examples[role]]
        example = ",".join(f"{role}={name}" for role, name in examples.items())
        raise DataError(
            f"{path}: no column is recognised as {' or '.join(missing)} among {', '.join(names)}; "
            f"say which (it is remembered with the dataset), e.g. --columns {example}"
        )
    return roles, "; ".join(notes)


def _places(table: Table, given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the column of each role of a table without a header: by its place, if given."""
    path, names = table.path, table.columns
    roles: dict[str, str] = {}
    for role, place in given.items():
        if not (place.isdigit() and 0 < int(place) <= len(names)):
            raise DataError(
                f"{path}: no column {place!r} for {role}: its first line is no header; add one, or "
                f"say the place, 1 to {len(names)}"
            )
        roles[role] = names[int(place) - 1]
    if not {"user_id", "item_id"} <= set(given) and not 2 <= len(names) <= 4:
        raise DataError(
            f"{path}: {len(names)} columns without a header (expected 2 to 4: user, item[, "
            f"rating[, timestamp]]){_cure(table)}"
        )
    _refuse_shared(roles)
    # What is not given is where it usually is, as far as these places are free.
    for role in ROLES[:2]:
        free = (name for name in names[:2] if name not in roles.values())
        roles.setdefault(role, next(free, names[0]))
    if len(names) <= 4 and {roles[role] for role in ROLES[:2]} == set(names[:2]):
        for role, name in list(zip(ROLES, names, strict=False))[2:]:
            if name not in roles.values():
                roles.setdefault(role, name)
    _refuse_shared(roles)
    told = ", ".join(f"{names.index(roles[role]) + 1} {role}" for role in ROLES if role in roles)
    return roles, f"no header; read as {told}"


def _cure(table: Table) -> str:
    """Return what to do about a table whose first line is one cell; empty for another."""
    if len(table.columns) > 1:
        return ""
    first = next(dialects.lines(table.path, table.encoding), b"")
    line = first.decode("utf-8", "replace").strip()
    if len(line.split()) > 1 and all(cell.isdigit() for cell in line.split()):
        what = "`mmbench data import FOLDER` reads a user and the user's items on each line"
        return f"; cells with blanks between them: {what}"
    return f"; delete its first line, {line[:40]!r}, if that is no row"


def _refuse_shared(roles: Mapping[str, str]) -> None:
    taken = list(roles.values())
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--columns: {twice} cannot be {' and '.join(r for r in roles if roles[r] == twice)} "
            "at once"
        )
