"""Checks of feature sets: their vectors, and whether their ids are those of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from mmbase.checks.kit import NOTE, Found
from mmbase.checks.subject import Dataset
from mmbase.layout import counted

_MANY = 0.2
"""Share of a set that one vector may take before it is told."""
_HEALED = 0.5
"""Share of unknown ids that another spelling must make known, to be what happened."""


def unimported(dataset: Dataset) -> Iterator[Found]:
    """Yield files of vectors beside the tables where there is no feature set at all."""
    if not dataset.sets and not dataset.troubles.get("damaged-set"):
        for name in dataset.vectors:
            yield Found(name, "vectors without ids, which no command reads")


def damaged(dataset: Dataset) -> Iterator[Found]:
    """Yield sets that the store refuses."""
    yield from dataset.troubles.get("damaged-set", ())


def not_finite(dataset: Dataset) -> Iterator[Found]:
    """Yield vectors with NaN or infinity, which the store keeps as corrupt rows."""
    for one in dataset.sets:
        rows = [row for row, message in one.errors if "NaN" in message]
        if rows:
            what = f"{counted(len(rows), 'vector')} with NaN or infinity"
            yield Found(one.where, what, tuple(one.ids[rows[:3]].tolist()))


def zeros(dataset: Dataset) -> Iterator[Found]:
    """Yield vectors of zeros alone, which stand for absent content in many files."""
    for one in dataset.sets:
        if one.zeros.size:
            what = f"{counted(one.zeros.size, 'vector')} of {int(one.ok.sum()):,} of zeros alone"
            yield Found(one.where, what, tuple(one.ids[one.zeros[:3]].tolist()))


def constant(dataset: Dataset) -> Iterator[Found]:
    """Yield sets in which all items have the same vector."""
    for one in dataset.sets:
        n = int(one.ok.sum())
        if n > 1 and one.distinct == 1:
            yield Found(one.where, f"all {n:,} vectors are equal")


def repeated(dataset: Dataset) -> Iterator[Found]:
    """Yield sets in which one vector that is not zero belongs to many items."""
    for one in dataset.sets:
        n, (times, row) = int(one.ok.sum()), one.repeated
        if n > 1 and one.distinct > 1 and times >= max(3, _MANY * n) and row not in one.zeros:
            what = f"{times:,} of {n:,} items have the same vector"
            yield Found(one.where, what, (str(one.ids[row]),))


# --- ids

SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "lost their leading zeros": lambda name: name.lstrip("0") or "0",
    "have blanks around them": str.strip,
    "became decimal numbers": lambda name: re.sub(r"\.0+$", "", name),
    "differ in capitals": str.casefold,
}
"""Ways in which programs alter ids, and what undoes each in both."""


def altered(ours: set[str], theirs: set[str]) -> tuple[str, list[tuple[str, str]]] | None:
    """Return how ids of ours that theirs lack were altered, and (ours, theirs); None if not so."""
    unknown, free = ours - theirs, theirs - ours
    if not unknown or not free:
        return None
    for words, undo in SPELLINGS.items():
        plain = {undo(name): name for name in free}
        pairs = [(name, plain[undo(name)]) for name in unknown if undo(name) in plain]
        if len(pairs) >= _HEALED * len(unknown):
            return words, sorted(pairs)
    return None


def altered_ids(dataset: Dataset) -> Iterator[Found]:
    """Yield sets with the catalogue's ids in another spelling."""
    for one in dataset.sets:
        if dataset.known and (how := altered(set(one.ids.tolist()), dataset.known)):
            words, pairs = how
            what = f"{counted(len(pairs), 'id')} {words}, so that their items have no vector"
            yield Found(one.where, what, tuple(f"{a!r} for {b!r}" for a, b in pairs[:3]))


def _numbers(ids: set[str]) -> tuple[int, int] | None:
    """Return the smallest and largest number of ids that are 0 or 1 to n without a gap."""
    if not ids or not all(name.isascii() and name.isdigit() for name in ids):
        return None
    numbers = sorted(map(int, ids))
    return (numbers[0], numbers[-1]) if numbers[-1] - numbers[0] + 1 == len(numbers) else None


def renumbered(dataset: Dataset) -> Iterator[Found]:
    """Yield sets numbered from 0 where the catalogue counts from 1, or the other way round."""
    theirs = _numbers(dataset.known)
    for one in dataset.sets:
        ours = _numbers(set(one.ids.tolist()))
        if theirs is None or ours is None or {ours[0], theirs[0]} != {0, 1}:
            continue
        if ours[1] - ours[0] == theirs[1] - theirs[0]:
            what = f"ids run from {ours[0]} to {ours[1]:,}, the catalogue's from {theirs[0]} to "
            yield Found(one.where, f"{what}{theirs[1]:,}: each vector is another item's")


def other_catalogue(dataset: Dataset) -> Iterator[Found]:
    """Yield sets that share few ids with the catalogue."""
    for one in dataset.sets:
        own = set(one.ids.tolist())
        if not dataset.known or not own:
            continue
        shared = len(own & dataset.known)
        if shared < 0.1 * min(len(own), len(dataset.known)):
            what = (
                f"{shared:,} of its {counted(len(own), 'id')} are among the "
                f"{counted(len(dataset.known), 'item')} of the catalogue"
            )
            yield Found(one.where, what, tuple(sorted(own - dataset.known)[:2]))


def older_catalogue(dataset: Dataset) -> Iterator[Found]:
    """Yield sets without rows for items of the catalogue, although they have the others'."""
    for one in dataset.sets:
        own = set(one.ids.tolist())
        lacking = dataset.known - own
        shared = len(dataset.known) - len(lacking)
        if not lacking or shared < 0.1 * min(len(own), len(dataset.known)):
            continue
        what = f"no row for {len(lacking):,} of {counted(len(dataset.known), 'item')}"
        few = len(lacking) <= 0.01 * len(dataset.known)
        yield Found(one.where, what, tuple(sorted(lacking)[:3]), severity=NOTE if few else None)
