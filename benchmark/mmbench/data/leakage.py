"""Leaks of a split: pairs in two parts, training from the future, content made of test rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmbench.core.interactions import Index
from mmbench.data.features import trained_on
from mmbench.data.splits import PARTS, SplitTables
from mmbench.data.tables import InteractionTable
from mmstore.reader import FeatureSet
from mmstore.spec import Status
from mmstore.store import FeatureStore


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        what: In words.
        count: How often it was found.
        example: One occurrence; empty where there is none.
        leak: Whether it lets training see what is tested; else it is worth knowing only.
    """

    what: str
    count: int
    example: str = ""
    leak: bool = False


def find_leaks(tables: SplitTables, store: Path | None = None) -> list[Finding]:
    """Look for leaks in a split, and in the store in the dataset's folder where there is one.

    Returns:
        All that was looked for, found or not.
    """
    users, items = (_numbered(tables, column) for column in ("user_ids", "item_ids"))
    pairs = {  # one number each, in the order of the ids
        part: users.rows[part] * len(items.names) + items.rows[part] for part in tables.parts
    }
    sets = {part: np.unique(own) for part, own in pairs.items()}

    def pair(number: np.int64) -> str:
        user, item = divmod(int(number), len(items.names))
        return f"{users.names[user]} {items.names[item]}"

    findings = []
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        both = np.intersect1d(sets[a], sets[b], assume_unique=True)
        example = pair(both[0]) if both.size else ""
        findings.append(Finding(f"pairs both in {a} and in {b}", both.size, example, leak=True))
    findings += [
        Finding(f"repeated pairs in {part}", pairs[part].size - sets[part].size) for part in PARTS
    ]
    train, test = tables.parts["train"], tables.parts["test"]
    if train.timestamps is not None and test.timestamps is not None:
        findings += _from_the_future(train, test, users)
    for what, ids in (("users", users), ("items", items)):
        for part in ("valid", "test"):
            unseen = np.setdiff1d(ids.rows[part], ids.rows["train"])
            example = str(ids.names[unseen[0]]) if unseen.size else ""
            findings.append(
                Finding(f"{what} of {part} without training rows", unseen.size, example)
            )
    if store is not None and store.is_dir():
        findings += _in_the_store(tables, items, FeatureStore(store), store.parent)
    return findings


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Ids of all parts as numbers: `names` ascending, `rows` by part of shape (n,)."""

    names: NDArray[np.object_]
    rows: Mapping[str, Index]


def _numbered(tables: SplitTables, column: str) -> _Numbered:
    parts = {part: getattr(table, column) for part, table in tables.parts.items()}
    codes, distinct = pd.factorize(np.concatenate(list(parts.values())))
    order = np.argsort(distinct)
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    ends = np.cumsum([own.size for own in parts.values()])[:-1]
    return _Numbered(distinct[order], dict(zip(parts, np.split(rank[codes], ends), strict=True)))


def _finding(what: str, found: list[str] | list[tuple[str, str]], *, leak: bool = False) -> Finding:
    example = found[0] if found else ""
    return Finding(
        what, len(found), " ".join(example) if isinstance(example, tuple) else example, leak
    )


def _from_the_future(
    train: InteractionTable, test: InteractionTable, users: _Numbered
) -> list[Finding]:
    per_second = max(train.per_second, test.per_second)
    ours, theirs = (table.ticks(per_second) for table in (train, test))
    earliest = np.full(users.names.size, np.iinfo(np.int64).max)
    np.minimum.at(earliest, users.rows["test"], theirs)
    later = np.flatnonzero(ours > earliest[users.rows["train"]])
    anywhere = np.flatnonzero(ours > theirs.min())

    def finding(what: str, rows: Index, *, leak: bool = False) -> Finding:
        one = f"{train.user_ids[rows[0]]} {train.item_ids[rows[0]]}" if rows.size else ""
        return Finding(f"training rows later than {what}", rows.size, one, leak)

    of_user = finding("a test row of the same user", later, leak=True)
    if test.by_position:  # users' sequences have no common clock
        return [of_user]
    return [of_user, finding("the earliest test row of anybody", anywhere)]


def _in_the_store(
    tables: SplitTables, items: _Numbered, store: FeatureStore, data: Path
) -> list[Finding]:
    findings = []
    for modality, name in store.sets():
        with store.open(modality, name) as features:
            found = f"{modality}/{name}:"
            foreign = trained_on(features.provenance, data, tables.name)
            if foreign:
                what = f"{found} other splits its encoder was trained on"
                findings.append(_finding(what, foreign, leak=True))
            if features.source == "interaction":
                covered = set(
                    zip(features.user_ids.tolist(), features.item_ids.tolist(), strict=True)
                )
                held_out = sorted(covered & _pairs(tables, ("valid", "test")))
                what = f"{found} content of held-out pairs, e.g. their reviews"
                findings.append(_finding(what, held_out, leak=True))
            elif features.layout == "dense":
                absent = _without_vector(features, items.names)
                findings.append(_finding(f"{found} items of the split without a vector", absent))
    return findings


def _pairs(tables: SplitTables, parts: Iterable[str]) -> set[tuple[str, str]]:
    found = (tables.parts[part] for part in parts)
    return {
        pair
        for one in found
        for pair in zip(one.user_ids.tolist(), one.item_ids.tolist(), strict=True)
    }


def _without_vector(features: FeatureSet, items: NDArray[np.object_]) -> list[str]:
    """Return the items without a vector of their own."""
    there = set(features.ids[features.status == Status.OK].tolist())
    return [item for item in items.tolist() if item not in there]
