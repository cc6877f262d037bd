"""Reads interactions and splits for the checks: ids as numbers, cells as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.checks import reading as shared
from mmbase.checks.kit import Found, attempted, told
from mmbase.checks.subject import Coded, Dataset
from mmbase.dataset import (
    checked_ids,
    find_table,
    is_position,
    open_interactions,
    refuse_repeated_header,
    require_one_reading,
)
from mmbase.tables import Table, strings
from mmbench.data.files import available_splits, known_columns
from mmbench.data.splits import PARTS
from mmbench.data.tables import read_ratings, roles_of
from mmbench.data.times import Times, read_times
from mmbench.errors import ToolError, UsageError

EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Log:
    """One table of interactions: `interactions.*` or a part of a split.

    Attributes:
        where: Its path in the dataset folder.
        split: The split's name; empty for `interactions.*`.
        part: `train`, `valid` or `test`; empty for `interactions.*`.
        table: How it is written.
        columns: The column of each role.
        users: The users.
        items: The items.
        ratings: Numbers, NaN where a cell is none; None without such a column.
        odd_ratings: Examples of cells that are none.
        times: As read; None without a column of times, or where they cannot be read.
        refused: The sentence with which the reader refuses the table, by what it is about:
            `header`, `ids`, `rating`, `timestamp`.
    """

    where: str
    split: str
    part: str
    table: Table
    columns: Mapping[str, str]
    users: Coded
    items: Coded
    ratings: NDArray[np.float64] | None
    odd_ratings: tuple[str, ...]
    times: Times | None
    refused: Mapping[str, str]

    def __len__(self) -> int:
        return self.users.codes.size

    @property
    def by_position(self) -> bool:
        """Whether the times are places in a sequence."""
        return is_position(self.columns.get("timestamp", ""))


@dataclass(eq=False)
class Interactions(Dataset):
    """A dataset with its interactions.

    Attributes:
        logs: The tables of interactions that could be read in part at least.
        leaks: What `mmbench.data.leakage` finds in the split.
    """

    logs: list[Log] = field(default_factory=list)
    leaks: list[Any] = field(default_factory=list)


def read_interactions_of(
    folder: Path, split: str | None = None, columns: Mapping[str, str] | None = None
) -> Interactions:
    """Read all that the checks look at, but for the leaks.

    Args:
        folder: The dataset folder.
        split: The split whose parts are read; None or one to be made: all that are there.
        columns: The column of each role, as far as it is named.
    """
    stems = ["items", "interactions", *(stem for stems in PARTS.values() for stem in stems)]
    own = Interactions(**vars(shared.read_dataset(folder, tables=stems)))
    if own.troubles.get("wrong-folder"):
        return own
    for path, name, part in _paths(own, split):
        where = path.relative_to(folder).as_posix()
        if all(one.where != where for one in own.trouble("empty-file")):
            log = read_log(path, where, name, part, known_columns(folder, columns), own)
            own.logs += [log] if log else []
    if not own.known:
        own.known = {str(name) for log in own.logs for name in log.items.names}
    first = next(iter(own.logs), None)
    if first is not None and own.sets:
        pairs = shared.pairs_of_users(first.users.codes, first.items.codes, first.items.names)
        own.related["users"] = pairs
    return own


def _paths(own: Interactions, split: str | None) -> list[tuple[Path, str, str]]:
    """Return the path of each table of interactions, its split and its part."""
    found = []
    troubles = own.trouble("unreadable")
    whole = attempted(lambda: find_table(own.folder, ("interactions",)), "interactions.*", troubles)
    if whole is not None:
        found.append((whole, "", ""))
    splits = attempted(lambda: available_splits(own.folder), "splits", troubles) or {}
    for name, place in splits.items():
        if split is not None and split in splits and name != split:
            continue
        for part, stems in PARTS.items():
            path = attempted(partial(find_table, place, stems), f"splits/{name}", troubles)
            if path is not None:
                found.append((path, name, part))
    return found


def read_log(
    path: Path, where: str, split: str, part: str, columns: Mapping[str, str], own: Interactions
) -> Log | None:
    """Read one table; None, and a trouble told, where its columns cannot be found."""
    troubles = own.trouble("unreadable")
    try:
        table = open_interactions(path, columns.values())
    except ToolError as error:  # of usage: header or row?
        kind = "missing-header" if isinstance(error, UsageError) else "unreadable"
        own.trouble(kind).append(told(where, error))
        return None
    try:
        roles, _ = roles_of(table, columns)
    except ToolError as error:
        try:  # a part that mmbench wrote has names of its own
            roles, _ = roles_of(table, {})
        except ToolError:
            own.trouble("unreadable" if table.header else "missing-header").append(
                told(where, error)
            )
            return None
    rating, time = roles.get("rating"), roles.get("timestamp")
    ids = [roles[role] for role in ("user_id", "item_id")]
    cells = attempted(
        lambda: table.read(
            roles.values(), numbers=[rating] if rating else (), ids=ids, raw=[time] if time else ()
        ),
        where,
        troubles,
    )
    if cells is None:
        return None
    if len(cells[ids[0]]) == 0:
        own.trouble("empty-file").append(Found(where, "a header and no rows"))
        return None
    refused = _refusals(table, cells, ids, whole=not part)
    ratings: NDArray[np.float64] | None = None
    odd: tuple[str, ...] = ()
    if rating:
        ratings, odd = _ratings(table, rating, cells[rating], refused)
    times = None
    if time:
        try:
            times = read_times(table, time, cells[time])
        except ToolError as error:
            refused["timestamp"] = str(error)
    users, items = (Coded.of(_as_bytes(cells[name])) for name in ids)
    return Log(where, split, part, table, roles, users, items, ratings, odd, times, refused)


def _refusals(
    table: Table, cells: Mapping[str, Any], ids: list[str], *, whole: bool
) -> dict[str, str]:
    """Return the sentences with which the reader refuses header and ids, by what it is about."""
    own = {name: cells[name] for name in ids}
    refused = {}
    for about, action in (
        ("header", lambda: refuse_repeated_header(table, own)),
        ("ids", lambda: [checked_ids(table, *one) for one in own.items()]),
        ("order", lambda: require_one_reading(table, *own.values()) if whole else None),
    ):
        try:
            action()
        except ToolError as error:
            refused[about] = str(error)
    return refused


def _ratings(
    table: Table, name: str, values: NDArray[np.float64], refused: dict[str, str]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    try:
        return read_ratings(table, name, values), ()
    except ToolError as error:
        refused["rating"] = str(error)
    rows = np.flatnonzero(~np.isfinite(values))[:EXAMPLES]
    cells = strings(table.read([name])[name].take(rows)).tolist()
    return values, tuple(cells)


def _as_bytes(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(pa.binary()) if column.type != pa.binary() else column
