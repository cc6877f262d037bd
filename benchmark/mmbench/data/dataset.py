"""From a dataset folder to index arrays: find or make the split, give every id a row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import find_table
from mmbase.tables import SUFFIXES, TAB_SUFFIXES
from mmbench.core.interactions import HeldOut, Histories, Index, TrainSet
from mmbench.data.columns import known_columns, read_known
from mmbench.data.defaults import default_split
from mmbench.data.splits import eighths_per_user, random_per_user
from mmbench.data.tables import (
    InteractionTable,
    read_interactions,
    read_item_ids,
    write_interactions,
)
from mmbench.errors import DataError, UsageError
from mmbench.metrics.item_data import ItemVectors, Topics

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "val", "validation"),
    "test": ("test",),
}
"""File stems under which each part of a split is found."""

RANDOM = re.compile(
    r"random(?::(?P<test>\d*\.?\d+),(?P<valid>\d*\.?\d+)(?:,(?P<seed>\d+))?)?", re.ASCII
)
DEFAULT_RANDOM = "random:0.2,0.2,42"


class Interactions(NamedTuple):
    """The training rows in file order, repetitions kept: user and item rows, and times if any."""

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
        notes: What a user should know about how the data was read, one line each.
        topics: The items' categories, if asked for.
        content: The vectors that distances between items are measured with, if asked for.
    """

    name: str
    split: str
    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    train: TrainSet
    valid: HeldOut
    digest: str
    interactions: Interactions
    notes: tuple[str, ...] = ()
    topics: Topics | None = None
    content: ItemVectors | None = None

    @property
    def n_trained(self) -> int:
        """Number of items that occur in training: the boundary in `item_ids`."""
        return self.train.n_items

    @cached_property
    def histories(self) -> Histories:
        """Each trained user's interactions in order of time."""
        users, items, times = self.interactions
        return Histories.from_rows(users, items, self.train.n_users, times)

    def of_trained_users(self, rows: HeldOut) -> HeldOut:
        """Return the held-out rows of users that occur in training."""
        return rows.take(slice(np.searchsorted(rows.users, self.train.n_users)))


@dataclass(frozen=True, eq=False)
class TestData:
    """The test rows. Final scoring alone takes this type; training and selection never see one.

    Attributes:
        rows: The test rows of all users; rows index `TrainingData.user_ids` and `item_ids`.
        digest: BLAKE2b-128 (hex) of the rows of trained users.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    rows: HeldOut
    digest: str


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


@dataclass(frozen=True, eq=False)
class SplitTables:
    """The three parts as tables of ids, before anything is indexed."""

    name: str
    parts: Mapping[str, InteractionTable]
    notes: tuple[str, ...] = ()

    @classmethod
    def divided(cls, name: str, table: InteractionTable, part: NDArray[np.int8]) -> SplitTables:
        """Divide a table's rows by part: TRAIN, VALID or TEST of `data.splits`, shape (n,)."""
        parts = {key: table.take(part == number) for number, key in enumerate(PARTS)}
        return cls(name, parts, (table.note,) if table.note else ())


def load_split(
    data: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    catalogue: bool = False,
) -> Split:
    """Read a dataset folder and index it.

    Args:
        data: The dataset folder (see the README, `Your own data`).
        split: Name of a folder under `splits/`; or `random`, or `random:TEST,VALID[,SEED]` for a
            per-user random split made here; None: the one taken before, else the only split that
            the folder has, else `random:0.2,0.2,42`.
        columns: Column roles, see `read_known`.
        catalogue: Whether items that only the items table names get rows too.

    Raises:
        DataError: The folder lacks what is needed, or a part is empty.
        UsageError: There is no split of that name.
    """
    return index_split(
        data,
        read_split(data, split, columns),
        catalogue=catalogue,
        id_column=known_columns(data, columns).get("item_id"),
    )


def read_split(
    data: Path, split: str | None = None, columns: Mapping[str, str] | None = None
) -> SplitTables:
    """Read the three parts of a dataset's split; arguments and errors as in `load_split`."""
    if not data.is_dir():
        raise DataError(
            f"{data}: no such dataset folder; `mmx demo --out {data}` makes one to try things on"
        )
    available = available_splits(data)
    notes: list[str] = []
    if split is None:
        # What has no validation part is there to be carved, and no choice.
        whole = {name: one for name, one in available.items() if any(one.glob("val*"))}
        split, note = default_split(data, whole or available, DEFAULT_RANDOM)
        notes += [note] if note else []
    random = RANDOM.fullmatch(split)
    if random and split not in available:
        test, valid = float(random["test"] or 0.2), float(random["valid"] or 0.2)
        made = make_random_split(data, test, valid, int(random["seed"] or 42), columns)
        return replace(made, notes=(*notes, *made.notes))
    if split not in available:
        choices = ", ".join(sorted(available)) or "none"
        raise UsageError(
            f"{data}: no split {split!r} (it has: {choices}); or let one be made: --split "
            f"{DEFAULT_RANDOM}"
        )
    paths = parts_of(available[split])
    if paths["valid"] is None and None not in (paths["train"], paths["test"]):
        raise DataError(
            f"{available[split]}: no file {' or '.join(PARTS['valid'])}; take a validation part "
            f"out of train: mmbench data split {data} --carve {split} --valid 0.1 --name carved"
        )
    read = read_parts(data, split, available[split], paths, columns)
    return replace(read, notes=tuple(dict.fromkeys((*notes, *read.notes))))


def parts_of(folder: Path) -> dict[str, Path | None]:
    """Return the file of each part of a split; None where there is none."""
    return {part: find_table(folder, stems) for part, stems in PARTS.items()}


def read_parts(
    data: Path,
    split: str,
    folder: Path,
    paths: Mapping[str, Path | None],
    columns: Mapping[str, str] | None = None,
) -> SplitTables:
    """Read these parts of the split in `folder`; arguments and errors as in `load_split`."""
    ours = (folder / "split.json").is_file()  # written with our names of columns
    parts = {}
    for part, path in paths.items():
        if path is None:
            raise DataError(
                f"{folder}: no file {' or '.join(PARTS[part])} (.tsv, .csv, .parquet, .jsonl); a "
                "split needs all three parts"
            )
        parts[part] = read_interactions(path) if ours else read_known(data, path, columns)
    notes = dict.fromkeys(table.note for table in parts.values() if table.note)
    return SplitTables(split, parts, tuple(notes))


def available_splits(data: Path) -> dict[str, Path]:
    """Return name and folder of each split: those under `splits/`, and `given` for the root's.

    Hidden folders and `*.partial`, left by a killed split, do not count.
    """
    found = {
        folder.name: folder
        for folder in sorted((data / "splits").glob("*"))
        if folder.suffix != ".partial"
        and not folder.name.startswith(".")
        and find_table(folder, PARTS["train"])
    }
    if find_table(data, PARTS["train"]) and find_table(data, PARTS["test"]):
        found.setdefault("given", data)
    return found


def make_random_split(
    data: Path,
    test_ratio: float,
    valid_ratio: float,
    seed: int,
    columns: Mapping[str, str] | None = None,
) -> SplitTables:
    """Split `interactions.*` of a dataset per user at random; see `splits.random_per_user`."""
    if not (0 < test_ratio < 1 and 0 < valid_ratio < 1):
        raise UsageError(
            f"--split random:{test_ratio:g},{valid_ratio:g}: both shares must lie between 0 and 1"
        )
    table, users = _interactions(data, columns)
    part = random_per_user(users, test_ratio=test_ratio, valid_ratio=valid_ratio, seed=seed)
    return SplitTables.divided(f"random:{test_ratio:g},{valid_ratio:g},{seed}", table, part)


def make_eighths_split(data: Path, seed: int) -> SplitTables:
    """Split `interactions.*` of a dataset 8:1:1 per user; see `splits.eighths_per_user`."""
    table, users = _interactions(data, None)
    return SplitTables.divided(f"eighths:{seed}", table, eighths_per_user(users, seed=seed))


def _interactions(data: Path, columns: Mapping[str, str] | None) -> tuple[InteractionTable, Index]:
    """A dataset's interactions, and the user row of each."""
    path = find_table(data, ("interactions",))
    if path is None:
        here = sorted(
            one.name
            for one in data.iterdir()
            if one.name.endswith((*SUFFIXES, *TAB_SUFFIXES)) and one.is_file()
        )
        rename = f", or give it its name: here are {', '.join(here[:5])}" if here else ""
        raise DataError(
            f"{data}: neither a split (train, valid and test files) nor an interactions.tsv (or "
            f".csv, .parquet, .jsonl); put one of them there{rename}; `mmbench data import` makes "
            "such a folder of other tables and layouts"
        )
    table = read_known(data, path, columns, ask=True)
    return table, _lookup(table.user_ids, _rows(sorted_ids(table.user_ids)))


def write_split(folder: Path, tables: SplitTables) -> None:
    """Write train.tsv, valid.tsv and test.tsv into a folder that is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, table in tables.parts.items():
        write_interactions(folder / f"{part}.tsv", table)


def index_split(
    data: Path, tables: SplitTables, *, catalogue: bool = False, id_column: str | None = None
) -> Split:
    """Give users and items their rows and translate all three parts.

    Held-out users and items without training rows, and, if asked for, items that only the items
    table names, get rows behind those of training: whether they count is up to the protocol.
    `id_column` is as in `read_item_ids`.

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

    def rows_of(table: InteractionTable) -> tuple[Index, Index]:
        return _lookup(table.user_ids, user_rows), _lookup(table.item_ids, item_rows)

    events = Interactions(*rows_of(train), train.timestamps)
    pairs = TrainSet.from_pairs(events.users, events.items, len(users), len(items))
    if pairs.n_edges < len(train):
        notes.append(f"train: {len(train) - pairs.n_edges} repeated pairs were counted once")

    def held_out(part: str, table: InteractionTable) -> HeldOut:
        user, item = rows_of(table)
        ratings = np.ones(len(table)) if table.ratings is None else table.ratings
        n_strange = int(np.sum(user >= len(users)))
        if n_strange == len(table):
            raise DataError(
                f"{data}: split {tables.name}: no user of the {part} part occurs in the training "
                "part"
            )
        if n_strange:
            notes.append(
                f"{part}: {np.unique(user[user >= len(users)]).size} users without training rows "
                f"({n_strange} rows); --protocol paper leaves them out"
            )
        rows = HeldOut.from_pairs(user, item, ratings)
        if rows.users.size < len(table):
            notes.append(
                f"{part}: {len(table) - rows.users.size} repeated pairs were counted once, by "
                "their last row"
            )
        masked = int(pairs.contains(rows.users, rows.items).sum())
        if masked:
            notes.append(
                f"{part}: {masked} pairs are in train, too: relevant, but never listed; "
                "`mmbench data split --filter dedup:last` makes a split without such"
            )
        return rows

    valid_rows, test_rows = held_out("valid", valid), held_out("test", test)
    if unseen:
        notes.append(
            f"{len(unseen)} items occur outside training only: relevant where they occur; "
            "--protocol paper never lists them"
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
        tuple(notes),
    )
    strange = [valid_strange, test_strange] if strangers else []
    return Split(
        training,
        TestData(test_rows, _digest(test_known)),
        _digest([*unseen, *unused], strangers, *strange),
    )


def _negatives(train: InteractionTable) -> list[str]:
    """Say that training rows rated 0 or less count as positives where others are rated more."""
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


def sorted_ids(ids: NDArray[np.object_]) -> list[str]:
    """Return the distinct ids, ascending: as numbers if all are canonical integers >= 0."""
    distinct = set(ids.tolist())
    if all(
        text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") for text in distinct
    ):
        return sorted(distinct, key=int)
    return sorted(distinct)


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
