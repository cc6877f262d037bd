"""Checks of tables of interactions: how they are written, and what their rows say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mmbase.checks.catalogue import blank_ids, numeric_ids
from mmbase.checks.kit import ERROR, NOTE, Found
from mmbase.checks.sets import altered
from mmbase.layout import counted
from mmbench.data.checks.reading import Interactions, Log

_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_SCALES = ((0, 1), (1, 5), (0, 5), (1, 10), (0, 10), (0, 100))
"""Ranges of ratings in use."""
_WITHIN = 0.95
"""Share of the rows that must keep to a scale, for the others to be none of it."""
_DOMINANT = 0.25
"""Share of all rows from which one user or item decides every number."""
_SEVERAL = 20
"""Users, or items, from which such a share is no matter of course."""


def _refused(about: str) -> Callable[[Interactions], Iterator[Found]]:
    """Return a check that tells of the reader's refusals of one kind."""

    def look(data: Interactions) -> Iterator[Found]:
        for log in data.logs:
            if about in log.refused:
                yield _sentence(log, about)

    return look


def _sentence(log: Log, about: str) -> Found:
    """Return the reader's sentence without the path in front, and its cure."""
    what, _, fix = log.refused[about].removeprefix(str(log.table.path)).partition("; ")
    return Found(log.where, what.lstrip(":, "), fix=fix)


repeated_header = _refused("header")
unusable_ids = _refused("ids")


def unnamed_columns(data: Interactions) -> Iterator[Found]:
    """Yield tables without a header; parts of a split have Elliot's order, and are noted once."""
    noted: set[str] = set()
    for log in data.logs:
        if log.table.header:
            continue
        if "order" in log.refused:
            what = f"no header, and {log.refused['order'].partition('no header, and ')[2]}"
            yield Found(log.where, what.partition(":")[0])
        elif not log.part or log.split not in noted:
            noted.add(log.split)
            what = f"no header: columns are taken for {', '.join(log.columns)}, in this order"
            yield Found(log.where, what, severity=NOTE if log.part else None)


def decimal_commas(data: Interactions) -> Iterator[Found]:
    """Yield ratings with a decimal comma where the reader cannot take it for one."""
    for log in data.logs:
        found = [cell for cell in log.odd_ratings if _COMMA.fullmatch(cell)]
        if found:
            yield Found(log.where, "ratings are written with a decimal comma", tuple(found))


def bad_ratings(data: Interactions) -> Iterator[Found]:
    """Yield ratings that are no numbers for another reason."""
    for log in data.logs:
        comma = any(_COMMA.fullmatch(cell) for cell in log.odd_ratings)
        if log.ratings is not None and "rating" in log.refused and not comma:
            n = int((~np.isfinite(log.ratings)).sum())
            what = f"{counted(n, 'rating is', 'ratings are')} no finite number"
            yield Found(log.where, what, tuple(map(repr, log.odd_ratings)))


def rating_scale(data: Interactions) -> Iterator[Found]:
    """Yield ratings far outside the scale that nearly all keep to, and times for ratings.

    Counts (of plays, say) have no scale: beyond the most frequent ones come others without a gap.
    """
    for log in data.logs:
        if log.ratings is None or "rating" in log.refused:
            continue
        values = log.ratings
        if values.min() > 1e8:
            what = f"{log.columns['rating']}: all values are above 10^8: times, not ratings"
            fix = "name the columns, e.g. --columns user_id=1,item_id=2,timestamp=3"
            yield Found(log.where, what, (f"{values[0]:g}",), fix)
            continue
        for low, high in _SCALES:
            outside = (values < low) | (values > high)
            n = int(outside.sum())
            if n <= (1 - _WITHIN) * values.size:
                far = (values < low) | (values > 1.5 * high)
                if n and (far == outside).all():
                    what = f"{counted(n, 'rating')} outside {low} to {high}, where all others are"
                    some = np.unique(values[outside])[:3]
                    yield Found(log.where, what, tuple(f"{one:g}" for one in some))
                break


def milliseconds(data: Interactions) -> Iterator[Found]:
    """Yield times in another unit than seconds, which are read as what they are."""
    for log in data.logs:
        unit = log.times.note.partition(",")[0] if log.times else ""
        if unit.endswith("seconds"):
            yield Found(log.where, f"times are {log.times.note if log.times else ''}")


def mixed_units(data: Interactions) -> Iterator[Found]:
    """Yield columns with times of two units."""
    for log in data.logs:
        if "other rows in" in log.refused.get("timestamp", ""):
            yield Found(log.where, _sentence(log, "timestamp").what)


def bad_times(data: Interactions) -> Iterator[Found]:
    """Yield times that cannot be read for another reason."""
    for log in data.logs:
        sentence = log.refused.get("timestamp", "")
        if sentence and "other rows in" not in sentence:
            yield _sentence(log, "timestamp")


# --- ids


def id_blanks(data: Interactions) -> Iterator[Found]:
    """Yield ids with blanks around them."""
    for log in data.logs:
        for role, ids in (("user_id", log.users), ("item_id", log.items)):
            yield from blank_ids(log.where, log.columns[role], ids)


def number_ids(data: Interactions) -> Iterator[Found]:
    """Yield ids that a program has taken for numbers."""
    for log in data.logs:
        for role, ids in (("user_id", log.users), ("item_id", log.items)):
            yield from numeric_ids(log.where, log.columns[role], ids)


def _names(log: Log) -> tuple[set[str], set[str]]:
    return set(log.users.names.tolist()), set(log.items.names.tolist())


def _share(some: set[str], of: set[str]) -> float:
    return len(some & of) / len(some) if some else 0.0


def swapped(data: Interactions) -> Iterator[Found]:
    """Yield tables whose users are the catalogue's items, or another part's."""
    catalogue = set(data.catalogue.ids.names.tolist()) if data.catalogue else set()
    if not catalogue and data.sets:
        catalogue = set(data.sets[0].ids.tolist())
    for log in data.logs:
        users, items = _names(log)
        if catalogue:
            if _share(users, catalogue) > 0.5 and _share(items, catalogue) < 0.1:
                what = f"the users of {log.columns['user_id']} are items of the catalogue, and the "
                what += f"items of {log.columns['item_id']} are not"
                yield Found(log.where, what, tuple(sorted(users & catalogue)[:2]))
            continue
        first = next((one for one in data.logs if one.split == log.split), log)
        if first is not log:
            before = _names(first)
            if _share(users, before[1]) > 0.5 and _share(users, before[0]) < 0.1:
                yield Found(log.where, f"its users are the items of {first.where}")


def altered_items(data: Interactions) -> Iterator[Found]:
    """Yield tables whose item ids are the catalogue's in another spelling."""
    if data.catalogue is None:
        return
    catalogue = set(data.catalogue.ids.names.tolist())
    for log in data.logs:
        yield from _altered(log.where, _names(log)[1], catalogue, data.catalogue.where)


def altered_parts(data: Interactions) -> Iterator[Found]:
    """Yield parts of a split whose ids are those of train in another spelling."""
    for parts in splits_of(data).values():
        train = parts.get("train")
        for part, log in parts.items():
            if train is not None and part != "train":
                for ours, theirs in zip(_names(log), _names(train), strict=True):
                    yield from _altered(log.where, ours, theirs, train.where)


def _altered(where: str, ours: set[str], theirs: set[str], other: str) -> Iterator[Found]:
    if how := altered(ours, theirs):
        words, pairs = how
        what = f"{counted(len(pairs), 'id')} {words} here or in {other}"
        yield Found(where, what, tuple(f"{a!r} for {b!r}" for a, b in pairs[:3]))


def unknown_items(data: Interactions) -> Iterator[Found]:
    """Yield tables with items that the catalogue does not have; an error where it has none."""
    if data.catalogue is None:
        return
    catalogue = set(data.catalogue.ids.names.tolist())
    known = np.array(sorted(catalogue), object)
    for log in data.logs:
        items = _names(log)[1]
        lost = items - catalogue
        if not lost:
            continue
        rows = int(log.items.counts()[~np.isin(log.items.names, known)].sum())
        what = f"{counted(len(lost), 'item')} that {data.catalogue.where} does not have, in "
        what += f"{rows:,} of {counted(len(log), 'row')}"
        severity = ERROR if len(lost) == len(items) else None
        yield Found(log.where, what, tuple(sorted(lost)[:3]), severity=severity)


# --- rows


def keys(log: Log) -> NDArray[np.int64]:
    """Return one number for each row's pair of user and item, shape (n,)."""
    return log.users.codes.astype(np.int64) * log.items.names.size + log.items.codes


def duplicates(data: Interactions) -> Iterator[Found]:
    """Yield tables with rows that say the same twice: user, item and, where there is one, time."""
    for log in data.logs:
        pairs = keys(log)
        ordered = np.sort(pairs)
        again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        rows = np.flatnonzero(np.isin(pairs, again)) if again.size else again
        ticks = log.times.ticks[rows] if log.times is not None else np.zeros(rows.size, np.int64)
        order = np.lexsort((ticks, pairs[rows]))
        same = (np.diff(pairs[rows][order]) == 0) & (np.diff(ticks[order]) == 0)
        twice = rows[order][1:][same]
        if twice.size:
            timed = " at the same time" if log.times is not None else ""
            what = f"{counted(twice.size, 'row repeats', 'rows repeat')} a user and item{timed}"
            yield Found(log.where, what, tuple(_pair(log, int(row)) for row in twice[:3]))


def _pair(log: Log, row: int) -> str:
    return f"{log.users.names[log.users.codes[row]]} {log.items.names[log.items.codes[row]]}"


def dominant(data: Interactions) -> Iterator[Found]:
    """Yield tables in which one user or item has a large share of all rows."""
    for log in data.logs:
        for role, ids in (("user", log.users), ("item", log.items)):
            counts = ids.counts()
            most = int(counts.argmax())
            if ids.names.size >= _SEVERAL and counts[most] > _DOMINANT * len(log):
                share = counts[most] / len(log)
                what = f"one {role} has {counts[most]:,} of {len(log):,} rows ({share:.0%})"
                yield Found(log.where, what, (str(ids.names[most]),))


def splits_of(data: Interactions) -> dict[str, dict[str, Log]]:
    """Return the parts of each split."""
    found: dict[str, dict[str, Log]] = {}
    for log in data.logs:
        if log.part:
            found.setdefault(log.split, {})[log.part] = log
    return found
