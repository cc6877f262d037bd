"""Leaks of a split: pairs in two parts, training from the future, content made of test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.core.interactions import Index
from mmbench.data.features import trained_on
from mmbench.data.splits import PARTS, SplitTables
from mmbench.data.tables import InteractionTable
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
    pairs = {
        part: list(zip(t.user_ids.tolist(), t.item_ids.tolist(), strict=True))
        for part, t in tables.parts.items()
    }
    sets = {part: set(own) for part, own in pairs.items()}
    findings = [
        _finding(f"pairs both in {a} and in {b}", sorted(sets[a] & sets[b]), leak=True)
        for a, b in (("train", "valid"), ("train", "test"), ("valid", "test"))
    ]
    findings += [
        Finding(f"repeated pairs in {part}", len(pairs[part]) - len(sets[part])) for part in PARTS
    ]
    train, test = tables.parts["train"], tables.parts["test"]
    if train.timestamps is not None and test.timestamps is not None:
        findings += _from_the_future(train, test)
    for what, column in (("users", "user_ids"), ("items", "item_ids")):
        seen = set(getattr(train, column).tolist())
        for part in ("valid", "test"):
            unseen = sorted(set(getattr(tables.parts[part], column).tolist()) - seen)
            findings.append(_finding(f"{what} of {part} without training rows", unseen))
    if store is not None and store.is_dir():
        findings += _in_the_store(tables, sets, FeatureStore(store), store.parent)
    return findings


def _finding(
    what: str, found: list[object] | list[str] | list[tuple[str, str]], *, leak: bool = False
) -> Finding:
    example = found[0] if found else ""
    words = " ".join(example) if isinstance(example, tuple) else str(example)
    return Finding(what, len(found), words, leak)


def _from_the_future(train: InteractionTable, test: InteractionTable) -> list[Finding]:
    per_second = max(train.per_second, test.per_second)
    ours, theirs = (table.ticks(per_second) for table in (train, test))
    never = np.iinfo(np.int64).max
    earliest: dict[str, int] = {}
    for user, time in zip(test.user_ids.tolist(), theirs.tolist(), strict=True):
        earliest[user] = min(time, earliest.get(user, never))
    own = np.array([earliest.get(user, never) for user in train.user_ids.tolist()], np.int64)
    later = np.flatnonzero(ours > own)
    anywhere = np.flatnonzero(ours > theirs.min())

    def finding(what: str, rows: Index, *, leak: bool = False) -> Finding:
        one = f"{train.user_ids[rows[0]]} {train.item_ids[rows[0]]}" if rows.size else ""
        return Finding(f"training rows later than {what}", rows.size, one, leak)

    of_user = finding("a test row of the same user", later, leak=True)
    if test.by_position:  # users' sequences have no common clock
        return [of_user]
    return [of_user, finding("the earliest test row of anybody", anywhere)]


def _in_the_store(
    tables: SplitTables, sets: Mapping[str, set[tuple[str, str]]], store: FeatureStore, data: Path
) -> list[Finding]:
    items = sorted({item for table in tables.parts.values() for item in table.item_ids.tolist()})
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
                held_out = sorted(covered & (sets["valid"] | sets["test"]))
                what = f"{found} content of held-out pairs, e.g. their reviews"
                findings.append(_finding(what, held_out, leak=True))
            elif features.layout == "dense":
                present = features.matrix(items)[1].tolist()
                absent = [item for item, there in zip(items, present, strict=True) if not there]
                findings.append(_finding(f"{found} items of the split without a vector", absent))
    return findings
