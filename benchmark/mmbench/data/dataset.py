"""A split dataset as index arrays: every id gets a row."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.layout import counted
from mmbench.core.interactions import HeldOut, Histories, Index, TrainSet
from mmbench.data.files import known_columns, read_item_ids, read_split
from mmbench.data.splits import PARTS, SplitTables
from mmbench.data.tables import InteractionTable, sorted_ids
from mmbench.errors import DataError
from mmbench.metrics.item_data import ItemVectors, Topics


class Interactions(NamedTuple):
    """Rows of a part in file order, repetitions kept: user and item rows, and times if any.

    The times of all parts of a split have the same ticks.
    """

    users: Index
    items: Index
    times: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that training and selection may see of a dataset: no test data is reachable from here.

    Rows of users and items are whole: those that occur in training come first, ascending by id.

    Attributes:
        name: The dataset's name.
        split: The split's name, or the specification it was made by.
        user_ids: Id of each user row, shape (n_users,), strings. Rows from `train.n_users` on are
            users of held-out rows only, ascending.
        item_ids: Id of each item row, shape (n_items,), strings. Rows from `n_trained` on are items
            of held-out rows only, then, if the catalogue was asked for, those of the items table
            alone; ascending in both parts.
        train: The distinct training pairs.
        valid: The validation rows of all users.
        digest: BLAKE2b-128 (hex) of the ids of interactions, training and validation rows.
        interactions: The training rows as they were read.
        later: The validation rows of trained users as they were read.
        notes: What a user should know about how the data was read, one line each.
        topics: The items' categories, if asked for.
        content: The vectors that distances between items are measured with, if asked for.
        dropped: What left the data for want of content, see `mmbench.data.restriction`.
    """

    name: str
    split: str
    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    train: TrainSet
    valid: HeldOut
    digest: str
    interactions: Interactions
    later: Interactions
    notes: tuple[str, ...] = ()
    topics: Topics | None = None
    content: ItemVectors | None = None
    dropped: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_trained(self) -> int:
        """Number of items that occur in training: the boundary in `item_ids`."""
        return self.train.n_items

    @property
    def histories(self) -> Histories:
        """Each trained user's training interactions in order of time."""
        return self.train.histories

    @cached_property
    def longer_histories(self) -> Histories:
        """The same with the validation interactions: what precedes a row of test."""
        return self.histories.then(*self.later)

    @property
    def order_digest(self) -> str:
        """BLAKE2b-128 (hex) of the longer histories: the order, which `digest` leaves out."""
        return _digest(self.longer_histories.indptr, self.longer_histories.items)

    def of_trained_users(self, rows: HeldOut) -> HeldOut:
        """Return the held-out rows of users that occur in training."""
        return rows.take(slice(np.searchsorted(rows.users, self.train.n_users)))


@dataclass(frozen=True, eq=False)
class TestData:
    """The test rows. Final scoring alone takes this type; training and selection never see one.

    Attributes:
        rows: The test rows of all users; rows index `TrainingData.user_ids` and `item_ids`.
        digest: BLAKE2b-128 (hex) of the rows of trained users.
        interactions: The rows of trained users as they were read.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    rows: HeldOut
    digest: str
    interactions: Interactions


@dataclass(frozen=True, eq=False)
class Split:
    """A dataset, split and indexed.

    Attributes:
        training: What training and selection see.
        test: What only the final scoring sees.
        catalogue_digest: BLAKE2b-128 (hex) of the items outside training, and of the rows of users
            outside it.
    """

    training: TrainingData
    test: TestData
    catalogue_digest: str = ""


def load_split(
    data: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    catalogue: bool = False,
    only: Collection[str] | None = None,
) -> Split:
    """Read a dataset folder and index it.

    Args:
        data: The dataset folder (see the README, `Your own data`).
        split: Name of a folder under `splits/`; or `random`, or `random:TEST,VALID[,SEED]` for a
            per-user random split made here; None: the one taken before, else the only split that
            the folder has, else `random:0.2,0.2,42`.
        columns: Column roles, see `read_known`.
        catalogue: Whether items that only the items table names get rows too.
        only: The items to read, by id; None: all.

    Raises:
        DataError: The folder lacks what is needed, or a part is empty.
        UsageError: There is no split of that name.
    """
    tables = read_split(data, split, columns)
    if only is not None:
        parts = {name: table.take(_among(table, only)) for name, table in tables.parts.items()}
        tables = replace(tables, parts=parts)
    return index_split(
        data,
        tables,
        catalogue=catalogue,
        id_column=known_columns(data, columns).get("item_id"),
        only=only,
    )


def index_split(
    data: Path,
    tables: SplitTables,
    *,
    catalogue: bool = False,
    id_column: str | None = None,
    only: Collection[str] | None = None,
) -> Split:
    """Give users and items their rows and translate all three parts.

    Held-out users and items without training rows, and, if asked for, items that only the items
    table names, get rows behind those of training: whether they count is up to the protocol.
    `id_column` is as in `read_item_ids`, `only` as in `load_split`; the tables have no other items.

    Raises:
        DataError: A part is empty, or the items table has nothing to do with the interactions.
    """
    train, valid, test = (tables.parts[part] for part in PARTS)
    for part, table in tables.parts.items():
        if not len(table):
            raise DataError(f"{data}: split {tables.name}: the {part} part is empty")
    users, strangers = _trained_first(train.user_ids, valid.user_ids, test.user_ids)
    items, unseen = _trained_first(train.item_ids, valid.item_ids, test.item_ids)
    user_rows = _rows([*users, *strangers])
    item_rows = _rows([*items, *unseen])
    notes = [*tables.notes, *_negatives(train)]
    unused = _unused(data, id_column, item_rows, items[0], notes) if catalogue else []
    unused = [item for item in unused if only is None or item in only]

    per_second = max(table.per_second for table in tables.parts.values())
    whole = {part: (_lookup(table.user_ids, user_rows), _lookup(table.item_ids, item_rows))
             for part, table in tables.parts.items()}  # fmt: skip

    def events_of(part: str) -> Interactions:
        (user, item), table = whole[part], tables.parts[part]
        times = None if table.timestamps is None else table.ticks(per_second)
        own = user < len(users)
        return Interactions(user[own], item[own], None if times is None else times[own])

    events = events_of("train")
    pairs = TrainSet.from_pairs(events.users, events.items, len(users), len(items))
    in_order = Histories.from_rows(events.users, events.items, len(users), events.times)
    pairs = replace(pairs, in_order=in_order)
    if n_repeated := len(train) - pairs.n_edges:
        were = counted(n_repeated, "repeated pair was", "repeated pairs were")
        notes.append(f"train: {were} counted once; histories keep them")

    def held_out(part: str, table: InteractionTable) -> HeldOut:
        user, item = whole[part]
        ratings = np.ones(len(table)) if table.ratings is None else table.ratings
        n_strange = int(np.sum(user >= len(users)))
        if n_strange == len(table):
            raise DataError(
                f"{data}: split {tables.name}: no user of the {part} part occurs in the training "
                "part"
            )
        if n_strange:
            notes.append(
                f"{part}: {counted(np.unique(user[user >= len(users)]).size, 'user')} without "
                f"training rows ({counted(n_strange, 'row')}); --protocol paper leaves them out"
            )
        rows = HeldOut.from_pairs(user, item, ratings)
        if n_repeated := len(table) - rows.users.size:
            were = counted(n_repeated, "repeated pair was", "repeated pairs were")
            notes.append(f"{part}: {were} counted once, by the last row")
        masked = int(pairs.contains(rows.users, rows.items).sum())
        if masked:
            notes.append(
                f"{part}: {counted(masked, 'pair is', 'pairs are')} also in train: relevant, but "
                "never listed, unless by --protocol next-item; `mmbench data split --filter "
                "dedup:last` makes a split without such"
            )
        return rows

    valid_rows, test_rows = held_out("valid", valid), held_out("test", test)
    if unseen:
        notes.append(
            f"{counted(len(unseen), 'item occurs', 'items occur')} outside training only: relevant "
            "where they occur; --protocol paper never lists them"
        )
    # The digests name run folders: rows of strangers count only where they can be scored.
    (valid_known, valid_strange), (test_known, test_strange) = (
        (rows.take(slice(cut)), rows.take(slice(cut, None)))
        for rows in (valid_rows, test_rows)
        for cut in [np.searchsorted(rows.users, len(users))]
    )
    training = TrainingData(
        data.resolve().name,
        tables.name,
        np.array([*users, *strangers], dtype=object),
        np.array([*items, *unseen, *unused], dtype=object),
        pairs,
        valid_rows,
        _digest(users, items, unseen, pairs.keys, valid_known),
        events,
        events_of("valid"),
        tuple(notes),
    )
    strange = [valid_strange, test_strange] if strangers else []
    return Split(
        training,
        TestData(test_rows, _digest(test_known), events_of("test")),
        _digest([*unseen, *unused], strangers, *strange),
    )


def _negatives(train: InteractionTable) -> list[str]:
    """Return a note if training rows rated 0 or less count as positives beside higher ratings."""
    if train.ratings is None or not train.ratings.max() > 0:
        return []
    n = int((train.ratings <= 0).sum())
    if n == 0:
        return []
    least = float(train.ratings[train.ratings > 0].min())
    return [
        f"train: {n:,} of {len(train):,} rows are rated 0 or less; they are trained on and masked "
        f"as positives; `mmbench data split --filter min-rating:{least:g}` leaves such rows out"
    ]


def _among(table: InteractionTable, items: Collection[str]) -> NDArray[np.bool_]:
    """Which rows are of one of the items, shape (n,)."""
    return np.array([item in items for item in table.item_ids.tolist()], bool)


def _rows(ids: list[str]) -> dict[str, int]:
    return {one: row for row, one in enumerate(ids)}


def _lookup(ids: NDArray[np.object_], rows: Mapping[str, int]) -> Index:
    return np.array([rows[one] for one in ids.tolist()], np.int64)


def _trained_first(
    trained: NDArray[np.object_], *held_out: NDArray[np.object_]
) -> tuple[list[str], list[str]]:
    """Distinct ids of training and those of held-out rows only, each ascending."""
    first = sorted_ids(trained)
    known = set(first)
    return first, [one for one in sorted_ids(np.concatenate(held_out)) if one not in known]


def _unused(
    data: Path,
    id_column: str | None,
    item_rows: Mapping[str, int],
    example: str,
    notes: list[str],
) -> list[str]:
    """Items that only the items table names, ascending."""
    items = read_item_ids(data, id_column, notes)
    unused = sorted_ids(np.array([item for item in items if item not in item_rows], object))
    if items and len(unused) == len(set(items)):
        raise DataError(
            f"{data}: none of the {len(unused):,} items of the items table occurs in the "
            f"interactions ({unused[0]!r} there, {example!r} here); use the same ids, as the "
            "column item_id of both"
        )
    return unused


def _digest(*parts: object) -> str:
    state = hashlib.blake2b(digest_size=16)

    def add(data: bytes) -> None:
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)

    for part in parts:
        if isinstance(part, HeldOut):
            for array in (part.users, part.items, part.ratings):
                add(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        elif isinstance(part, np.ndarray):
            add(np.ascontiguousarray(part, "<i8").tobytes())
        elif isinstance(part, list):
            add("\0".join(part).encode())
    return state.hexdigest()
