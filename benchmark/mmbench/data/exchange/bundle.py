"""A dataset in memory, in no layout in particular, and the steps that several layouts share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbase.dataset import FILE_SUFFIXES, TEXT_COLUMNS, checked_ids
from mmbase.layout import counted
from mmbase.tables import Table, open_table, strings
from mmbench.data.splits import VALID, random_per_user
from mmbench.data.tables import InteractionTable, sorted_ids
from mmbench.errors import DataError

SIDECAR = "mmbench-export.json"
"""Written beside the other framework's files, so that importing an export restores the dataset."""

WHOLE = "interactions"
"""The only part of a dataset without a split."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Content vectors of one modality.

    Attributes:
        ids: Item of each row, distinct, length n.
        matrix: Shape (n, dim), float32 or float16; absent rows hold anything.
        present: Which rows have a vector, shape (n,).
        provenance: How the vectors were made, JSON values.
    """

    modality: str
    name: str
    ids: Sequence[str]
    matrix: NDArray[Any]
    present: NDArray[np.bool_]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A dataset.

    Attributes:
        parts: `train`, `valid` and `test`; `interactions` alone without a split; or nothing.
        split: Name of the split; empty where there is none.
        items: Columns of the items as strings, `item_id` first; None where there are none.
        vectors: Feature sets, at most one of each modality and name.
        sequences: Columns of the items whose texts are tokens separated by single blanks.
        notes: What was guessed or left out, one line each.
    """

    name: str
    parts: Mapping[str, InteractionTable]
    split: str = ""
    items: pd.DataFrame | None = None
    vectors: tuple[Vectors, ...] = ()
    sequences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def ids(self, column: str) -> list[str]:
        """Return the distinct `user_ids` or `item_ids` of all parts in ascending order."""
        arrays = [getattr(table, column) for table in self.parts.values()]
        return sorted_ids(np.concatenate(arrays)) if arrays else []


SAMPLE = 1000  # cells of a column that are looked at
_SUFFIXES = tuple(suffix for suffixes in FILE_SUFFIXES.values() for suffix in suffixes)
_WORD = re.compile(r"[^\W\d_]{2,}")


def texts_of(items: pd.DataFrame) -> list[str]:
    """Return the columns that hold the texts of items, where none has a name that says so.

    These are the columns of several words in most cells, else those of single words. Numbers,
    dates, codes, paths and addresses are neither.
    """
    others = [str(name) for name in items.columns.drop("item_id")]
    if any(name.casefold() in TEXT_COLUMNS for name in others):
        return []
    cells = {name: list(filter(None, map(_joined, items[name][:SAMPLE]))) for name in others}
    for is_text in (_has_several_words, str.isalpha):
        found = [name for name, texts in cells.items() if 2 * sum(map(is_text, texts)) > len(texts)]
        if found:
            return found
    return []


def _joined(cell: str | list[str]) -> str:
    return (" ".join(cell) if isinstance(cell, list) else cell).strip()


def _has_several_words(text: str) -> bool:
    if text.lower().endswith(_SUFFIXES):
        return False
    return sum(_WORD.search(part) is not None for part in text.split()) > 1


def require_split(bundle: Bundle, layout: str) -> None:
    """Raise a DataError for a dataset without a split, which the layout has no place for."""
    if set(bundle.parts) != {"train", "valid", "test"}:
        fix = "make one with `mmbench data split`, or give --split random"
        raise DataError(f"{bundle.name}: no split, which {layout} files need; {fix}")


def carved(bundle: Bundle, share: float = 0.1, seed: int = 42) -> Bundle:
    """Return a bundle of train and test with a validation part: a share of each user's train rows.

    A user's only row stays in training.
    """
    train = bundle.parts["train"]
    users, counts = np.unique(train.user_ids, return_inverse=True, return_counts=True)[1:]
    part = random_per_user(users.astype(np.int64), test_ratio=0, valid_ratio=share, seed=seed)
    held_out = (part == VALID) & (counts[users] > 1)
    parts = {"train": train.take(~held_out), "valid": train.take(held_out)}
    note = f"no validation part: {share:.0%} of each user's training rows (seed {seed}) are it now"
    return replace(
        bundle, parts={**parts, "test": bundle.parts["test"]}, notes=(*bundle.notes, note)
    )


def numbering(ids: Sequence[str]) -> dict[str, int]:
    """Map each id to its place."""
    return {text: row for row, text in enumerate(ids)}


def numbered(
    bundle: Bundle, user_ids: Sequence[str], item_ids: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Return user and item number of each row of each part, with ratings and timestamps if any."""
    users, items = numbering(user_ids), numbering(item_ids)
    frames = {}
    for part, table in bundle.parts.items():
        user = [users[text] for text in table.user_ids.tolist()]
        item = [items[text] for text in table.item_ids.tolist()]
        frames[part] = pd.DataFrame({"user": user, "item": item, **table.numbers()})
    return frames


def renamed(
    table: InteractionTable, users: Mapping[str, str], items: Mapping[str, str], where: Path
) -> InteractionTable:
    """Return the table with other ids; a DataError where an id has no other."""

    def translate(column: str, names: Mapping[str, str]) -> NDArray[np.object_]:
        ids: NDArray[np.object_] = getattr(table, column)
        if not names:
            return ids
        unknown = next((text for text in ids.tolist() if text not in names), None)
        if unknown is not None:
            told = f"{column.removesuffix('_ids')} {unknown} is not in the id mapping"
            raise DataError(f"{where}: {told}; remove the mapping file, or complete it")
        return np.array([names[text] for text in ids.tolist()], dtype=object)

    user_ids, item_ids = translate("user_ids", users), translate("item_ids", items)
    return replace(table, user_ids=user_ids, item_ids=item_ids)


def read_mapping(path: Path, original: Sequence[str], number: str) -> dict[str, str]:
    """Read a table from numbers (as text) to ids; empty where there is no such file.

    Args:
        path: The file.
        original: Accepted names, lower case, of the column of ids.
        number: Name, lower case, of the column of numbers.

    Raises:
        DataError: A column is absent, or a number or an id occurs twice.
    """
    if not path.is_file():
        return {}
    table = open_table(path, literal=True)
    names = {name.casefold(): name for name in table.columns}
    ids = next((names[one] for one in original if one in names), None)
    numbers = names.get(number)
    if ids is None or numbers is None:
        found = ", ".join(table.columns)
        raise DataError(f"{path}: expected columns {original[0]} and {number}; it has: {found}")
    cells = table.read([numbers, ids])
    columns = [strings(checked_ids(table, name, cells[name])) for name in (numbers, ids)]
    for name, column in zip((numbers, ids), columns, strict=True):
        repeated = column[pd.Series(column).duplicated()]
        if repeated.size:
            raise DataError(f"{path}: {name} {repeated[0]} occurs twice")
    return dict(zip(*columns, strict=True))


def all_texts(table: Table) -> pd.DataFrame:
    """Return every column of a table as strings."""
    return pd.DataFrame({name: strings(c) for name, c in table.read(table.columns).items()})


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """Read an array from a .npy file, never a pickle; a DataError where that cannot be done."""
    try:
        return np.asanyarray(np.load(path, mmap_mode=mmap_mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable .npy file of numbers: {reason}") from error


def load_matrix(path: Path, n_rows: int | None) -> NDArray[Any]:
    """Map a matrix of float16, float32 or float64 from a .npy file; None allows any n_rows.

    Raises:
        DataError: It is no such matrix, or has another number of rows.
    """
    matrix = load_array(path, "r")
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32, np.float64):
        found, kinds = f"{matrix.shape} of {matrix.dtype}", "float16, float32 or float64"
        raise DataError(f"{path}: {found} (expected a matrix of {kinds})")
    if n_rows is not None and len(matrix) != n_rows:
        raise DataError(
            f"{path}: {counted(len(matrix), 'row')} for {n_rows} items (expected one each)"
        )
    return np.asarray(matrix, np.float32) if matrix.dtype == np.float64 else matrix


def filled(one: Vectors, ids: Sequence[str], policy: str) -> tuple[NDArray[np.float32], list[int]]:
    """Return the vectors in the order of `ids`, absent ones filled, and which rows were absent.

    `policy` is `mean` (of the present vectors of these items), `zero`, or `error`.

    Raises:
        DataError: Vectors are absent and the policy is `error`, or none is present.
    """
    rows = numbering(one.ids)
    at = np.array([rows.get(item, -1) for item in ids], np.int64)
    present = at >= 0
    present[present] = one.present[at[present]]
    where = f"{one.modality}/{one.name}"
    if not present.any():
        raise DataError(f"{where}: none of the {len(ids)} items has a vector")
    absent = np.flatnonzero(~present).tolist()
    if absent and policy == "error":
        told = f"{counted(len(absent), 'item has', 'items have')} no vector, e.g. {ids[absent[0]]}"
        raise DataError(f"{where}: {told}; fill them: --missing mean or --missing zero")
    out = np.zeros((len(ids), one.matrix.shape[1]), np.float32)
    out[present] = one.matrix[at[present]]
    if policy == "mean":
        out[~present] = out[present].mean(0, dtype=np.float64)
    return out, absent


def sidecar(bundle: Bundle, **more: Any) -> dict[str, Any]:
    """Return the names of the dataset, its split and its feature sets, with `more` before these."""
    sets = {}
    for one in bundle.vectors:
        sets[one.modality] = {"name": one.name, "provenance": dict(one.provenance)}
    return {"name": bundle.name, "split": bundle.split, **more, "features": sets}


def restored(
    given: Mapping[str, Any], modality: str, layout: str, **source: str
) -> tuple[str, Mapping[str, Any]]:
    """Return name and provenance of a feature set by the sidecar; else the layout and `source`."""
    told = given.get("features", {}).get(modality, {})
    provenance = told.get("provenance") or {"extractor": f"import-{layout}", **source}
    return told.get("name", layout), provenance


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as JSON."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def first_line(path: Path) -> str:
    """Return the first line of a text file, whatever it holds."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline(1 << 16)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no such file; a DataError for anything else."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object")
    return values
