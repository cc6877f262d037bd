"""From a dataset folder to index arrays: find the split or make it, give every id a row, say what was left out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import find_table
from mmbase.tables import SUFFIXES, TAB_SUFFIXES
from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.data.splits import eighths_per_user, random_per_user
from mmbench.data.tables import (
    InteractionTable,
    read_interactions,
    read_item_ids,
    write_interactions,
)
from mmbench.errors import DataError, UsageError
from mmbench.metrics.item_data import Content, Topics

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

NO_ROWS = HeldOut(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that training and selection may see of a dataset: no test data is reachable from here.

    Attributes:
        name: The dataset's name.
        split: The split's name, or the specification it was made by.
        user_ids: Id of each user row, shape (n_users,), str; users that occur in training,
            ascending.
        item_ids: Id of each candidate item row, shape (n_items,), str; items that occur in
            training, ascending.
        train: The distinct training pairs.
        valid: The validation rows of known users.
        digest: BLAKE2b-128 (hex) of ids, training and validation rows.
        notes: What a user should know about how the data was read, one line each.
        other_item_ids: Items that do not occur in training, in the order of the item rows behind
            the candidates: those of held-out rows, then, if the catalogue was asked for, those of
            the items table. Ascending in both parts.
        other_user_ids: Users of held-out rows that do not occur in training, ascending: the user
            rows behind the others.
        valid_of_others: The validation rows of these users.
        topics: The items' categories, if asked for.
        content: The vectors that distances between items are measured with, if asked for.
    """

    name: str
    split: str
    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    train: TrainSet
    valid: HeldOut
    digest: str
    notes: tuple[str, ...] = ()
    other_item_ids: tuple[str, ...] = ()
    other_user_ids: tuple[str, ...] = ()
    valid_of_others: HeldOut = NO_ROWS
    topics: Topics | None = None
    content: Content | None = None

    @property
    def n_item_rows(self) -> int:
        """Number of item rows, those outside training included."""
        return int(self.item_ids.size) + len(self.other_item_ids)

    @property
    def n_user_rows(self) -> int:
        """Number of user rows, those outside training included."""
        return int(self.user_ids.size) + len(self.other_user_ids)

    @property
    def all_item_ids(self) -> list[str]:
        """Id of every item row, those of the candidates first."""
        return [*self.item_ids.tolist(), *self.other_item_ids]


@dataclass(frozen=True, eq=False)
class TestData:
    """The test rows. Only the final scoring takes this type; training and selection cannot be given one.

    Attributes:
        rows: The test rows of known users; item rows index `TrainingData.item_ids`, larger ones
            occur outside training.
        digest: BLAKE2b-128 (hex) of the rows.
        of_others: The test rows of users outside training.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    rows: HeldOut
    digest: str
    of_others: HeldOut = NO_ROWS


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
        """The rows of one table by their part, TRAIN, VALID or TEST of `mmbench.data.splits`, shape (n,)."""
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
            per-user random split made here; None: the only split that the folder has, else
            `random:0.2,0.2,42`.
        columns: Column roles, see `read_interactions`.
        catalogue: Whether items that only the items table names get rows too.

    Raises:
        DataError: The folder lacks what is needed, or a part is empty.
        UsageError: There is no split of that name.
    """
    return index_split(
        data,
        read_split(data, split, columns),
        catalogue=catalogue,
        id_column=(columns or {}).get("item_id"),
    )


def read_split(
    data: Path, split: str | None = None, columns: Mapping[str, str] | None = None
) -> SplitTables:
    """The three parts of a dataset's split as tables; arguments and errors as in `load_split`."""
    if not data.is_dir():
        raise DataError(
            f"{data}: no such dataset folder; `mmx demo --out {data}` makes one to try things on"
        )
    available = available_splits(data)
    if split is None:
        if len(available) > 1:
            raise UsageError(
                f"{data}: has several splits; choose one with --split: "
                f"{', '.join(sorted(available))}"
            )
        split = next(iter(available), DEFAULT_RANDOM)
    random = RANDOM.fullmatch(split)
    if random and split not in available:
        test, valid = float(random["test"] or 0.2), float(random["valid"] or 0.2)
        return make_random_split(data, test, valid, int(random["seed"] or 42), columns)
    if split not in available:
        choices = ", ".join(sorted(available)) or "none"
        raise UsageError(
            f"{data}: no split {split!r} (it has: {choices}); or let one be made: --split "
            f"{DEFAULT_RANDOM}"
        )
    folder, parts, notes = available[split], {}, []
    if (folder / "split.json").is_file():
        # `mmbench data split` wrote it: its columns have our names, whatever those of the source
        # are
        columns = None
    for part, stems in PARTS.items():
        path = find_table(folder, stems)
        if path is None:
            raise DataError(
                f"{folder}: no file {' or '.join(stems)} (.tsv, .csv, .parquet, .jsonl); a split "
                "needs all three parts"
            )
        parts[part] = read_interactions(path, columns)
        notes.append(parts[part].note)
    return SplitTables(split, parts, tuple(dict.fromkeys(note for note in notes if note)))


def available_splits(data: Path) -> dict[str, Path]:
    """Name and folder of each given split: those under `splits/`, and `given` for files at the dataset's root.

    Hidden folders and `*.partial`, what a killed split leaves, are none.
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
    """Split `interactions.*` of a dataset per user at random; see `core.splits.random_per_user`."""
    if not (0 < test_ratio < 1 and 0 < valid_ratio < 1):
        raise UsageError(
            f"--split random:{test_ratio:g},{valid_ratio:g}: both shares must lie between 0 and 1"
        )
    table, users = _interactions(data, columns)
    part = random_per_user(users, test_ratio=test_ratio, valid_ratio=valid_ratio, seed=seed)
    return SplitTables.divided(f"random:{test_ratio:g},{valid_ratio:g},{seed}", table, part)


def make_eighths_split(data: Path, seed: int) -> SplitTables:
    """Split `interactions.*` of a dataset 8:1:1 per user; see `core.splits.eighths_per_user`.

    Raises:
        DataError: There is no such file.
    """
    table, users = _interactions(data, None)
    return SplitTables.divided(f"eighths:{seed}", table, eighths_per_user(users, seed=seed))


def _interactions(
    data: Path, columns: Mapping[str, str] | None
) -> tuple[InteractionTable, NDArray[np.int64]]:
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
            ".csv, .parquet, .jsonl); "
            f"put one of them there{rename}"
        )
    table = read_interactions(path, columns)
    rows = {user: row for row, user in enumerate(sorted_ids(table.user_ids))}
    return table, np.array([rows[user] for user in table.user_ids.tolist()], np.int64)


def write_split(folder: Path, tables: SplitTables) -> None:
    """Write train.tsv, valid.tsv and test.tsv into a folder that is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, table in tables.parts.items():
        write_interactions(folder / f"{part}.tsv", table)


def index_split(
    data: Path, tables: SplitTables, *, catalogue: bool = False, id_column: str | None = None
) -> Split:
    """Give users and items of the training part their rows and translate all three parts.

    Held-out rows of users without training rows are kept apart; held-out items without training
    rows, and, if asked for, the items that only the items table names, get rows behind the
    candidates: whether they can be recommended is up to the protocol. `id_column` is as in
    `read_item_ids`.

    Raises:
        DataError: A part is empty, or the items table has nothing to do with the interactions.
    """
    train, valid, test = (tables.parts[part] for part in PARTS)
    for part, table in tables.parts.items():
        if not len(table):
            raise DataError(f"{data}: split {tables.name}: the {part} part is empty")
    user_ids = sorted_ids(train.user_ids)
    candidates = sorted_ids(train.item_ids)
    known = set(candidates)
    others = [
        item
        for item in sorted_ids(np.concatenate([valid.item_ids, test.item_ids]))
        if item not in known
    ]
    users_of_training = set(user_ids)
    strangers = [
        user
        for user in sorted_ids(np.concatenate([valid.user_ids, test.user_ids]))
        if user not in users_of_training
    ]
    user_rows = {user: row for row, user in enumerate([*user_ids, *strangers])}
    item_rows = {item: row for row, item in enumerate([*candidates, *others])}
    unused: list[str] = []
    if catalogue:
        items = read_item_ids(data, id_column)
        unused = sorted_ids(np.array([item for item in items if item not in item_rows], object))
        if items and len(unused) == len(set(items)):
            raise DataError(
                f"{data}: none of the {len(unused):,} items of the items table occurs in the "
                "interactions "
                f"({unused[0]!r} there, {candidates[0]!r} here); use the same ids, as the column "
                "item_id of both"
            )
    notes = list(tables.notes)

    def held_out(part: str, table: InteractionTable) -> tuple[HeldOut, HeldOut]:
        users = np.array([user_rows[user] for user in table.user_ids.tolist()], np.int64)
        items = np.array([item_rows[item] for item in table.item_ids.tolist()], np.int64)
        ratings = np.ones(len(table)) if table.ratings is None else table.ratings
        kept = users < len(user_ids)
        if not kept.all():
            gone = len(set(table.user_ids[~kept].tolist()))
            notes.append(
                f"{part}: {gone} users without training rows ({np.sum(~kept)} rows); --protocol "
                "paper leaves them out"
            )
        if not kept.any():
            raise DataError(
                f"{data}: split {tables.name}: no user of the {part} part occurs in the training "
                "part"
            )
        known, unknown = (
            HeldOut.from_pairs(users[rows], items[rows], ratings[rows]) for rows in (kept, ~kept)
        )
        repeated = len(table) - known.users.size - unknown.users.size
        if repeated:
            notes.append(f"{part}: {repeated} repeated pairs were counted once, by their last row")
        masked = int(pairs.contains(known.users, known.items).sum())
        if masked:
            notes.append(
                f"{part}: {masked} pairs are in train, too: relevant, but never listed; "
                "`mmbench data split --filter dedup:last` makes a split without such"
            )
        return known, unknown

    pairs = TrainSet.from_pairs(
        np.array([user_rows[user] for user in train.user_ids.tolist()], np.int64),
        np.array([item_rows[item] for item in train.item_ids.tolist()], np.int64),
        len(user_ids),
        len(candidates),
    )
    if pairs.n_edges < len(train):
        notes.append(f"train: {len(train) - pairs.n_edges} repeated pairs were counted once")
    (valid_rows, valid_of_others), (test_rows, test_of_others) = (
        held_out("valid", valid),
        held_out("test", test),
    )
    if others:
        notes.append(
            f"{len(others)} items occur outside training only: relevant where they occur; "
            "--protocol paper never lists them"
        )
    digest = _digest(user_ids, candidates, others, pairs.keys, valid_rows)
    training = TrainingData(
        data.resolve().name,
        tables.name,
        np.array(user_ids, dtype=str),
        np.array(candidates, dtype=str),
        pairs,
        valid_rows,
        digest,
        tuple(notes),
        other_item_ids=(*others, *unused),
        other_user_ids=tuple(strangers),
        valid_of_others=valid_of_others,
    )
    of_others = [valid_of_others, test_of_others] if strangers else []
    return Split(
        training,
        TestData(test_rows, _digest(test_rows), test_of_others),
        _digest([*others, *unused], strangers, *of_others),
    )


def sorted_ids(ids: NDArray[np.object_]) -> list[str]:
    """The distinct ids in ascending order: numerically if all are canonical non-negative integers, else as strings."""
    distinct = set(ids.tolist())
    if all(
        text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") for text in distinct
    ):
        return sorted(distinct, key=int)
    return sorted(distinct)


def _digest(*parts: object) -> str:
    """BLAKE2b-128 of lists of strings, integer arrays and held-out rows, each with its length."""
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
