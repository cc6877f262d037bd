"""What the page shows of feature sets: the items' nearest neighbours, and whether they make sense.

Vectors are taken as they are stored, joined by id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmbench.analysis.gallery.alignment import Common, Fit, alignment, nearest, unit_rows
from mmbench.errors import DataError, unknown_name
from mmbench.runs.finished_runs import FinishedRun
from mmstore import FeatureSet, FeatureStore, Status, StoreError

MOST_SETS = 6
SAMPLE = 500  # items whose neighbours are compared, at most
_NEIGHBOURS = 5  # of each, for the comparison


@dataclass(frozen=True)
class SetView:
    """A feature set.

    Attributes:
        name: `MODALITY/NAME`.
        used_by: Labels of the runs that use it.
        n_present: Items of the dataset with a vector.
        n_items: Items of the dataset.
        n_compared: Items whose neighbours `fits` is about.
        fits: What neighbours have in common.
        neighbours: Nearest items with their cosines, for the items asked for that have a vector.
        reasons: Why others have none.
    """

    name: str
    used_by: Sequence[str]
    n_present: int
    n_items: int
    n_compared: int
    fits: Sequence[Fit]
    neighbours: Mapping[str, Sequence[tuple[str, float]]]
    reasons: Mapping[str, str]


def choose(
    root: Path, wanted: Sequence[str], runs: Sequence[FinishedRun], labels: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the sets to show, each with the labels of the runs that use it, and notes.

    Args:
        root: The store.
        wanted: `MODALITY/NAME` (or `MODALITY=NAME`); empty: those of the runs, then all others, up
            to `MOST_SETS`.
        runs: The runs.
        labels: Their labels.

    Raises:
        UsageError: A wanted set is not there.
    """
    store = FeatureStore(root)
    known = ["/".join(one) for one in store.sets()] if root.is_dir() else []
    users: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        for modality, name in run.recipe.features.items():
            users.setdefault(name if "/" in name else f"{modality}/{name}", []).append(label)
    if wanted:
        names = [one.replace("=", "/", 1) for one in wanted]
        for name in names:
            if name not in known:
                raise unknown_name(f"feature set of {root}", name, known)
        return {name: users.get(name, []) for name in names}, []
    names = [name for name in users if name in known]
    names += [name for name in known if name not in users]
    notes = []
    if over := names[MOST_SETS:]:
        notes.append(f"feature sets left out: {', '.join(over)} (--features MODALITY/NAME)")
    return {name: users.get(name, []) for name in names[:MOST_SETS]}, notes


def look(
    store: Path,
    chosen: Mapping[str, Sequence[str]],
    item_ids: Sequence[str],
    asked: Collection[str],
    k: int,
    commons: Mapping[str, Common],
    seed: int,
) -> tuple[list[SetView], list[str]]:
    """Read feature sets one after the other, and find neighbours.

    Args:
        store: The store.
        chosen: Sets, with the labels of the runs that use them.
        item_ids: The dataset's items.
        asked: Items whose neighbours are shown.
        k: How many of each.
        commons: What items may have in common; items are numbered as in `item_ids`.
        seed: Of the sample of items that are compared, and of the random deals.

    Returns:
        The sets, and notes on those that can't be shown.
    """
    views, notes = [], []
    for name, used_by in chosen.items():
        try:
            with FeatureSet(store / f"{name}.h5") as features:
                if (features.source, features.layout) != ("item", "dense"):
                    kind = f"{features.layout} vectors of {features.source}s"
                    notes.append(f"{name}: {kind}, which have no neighbours here")
                    continue
                views.append(_look(name, features, used_by, item_ids, asked, k, commons, seed))
        except (StoreError, DataError) as error:
            notes.append(f"{name}: left out: {error}")
    return views, notes


def _look(
    name: str,
    features: FeatureSet,
    used_by: Sequence[str],
    item_ids: Sequence[str],
    asked: Collection[str],
    k: int,
    commons: Mapping[str, Common],
    seed: int,
) -> SetView:
    stored = set(features.ids[features.status == Status.OK].tolist())
    items = np.flatnonzero([one in stored for one in item_ids])
    if items.size < 2:
        raise DataError(
            f"{items.size} of {len(item_ids):,} items have a vector; its ids look like "
            f"{', '.join(map(repr, features.ids[:3].tolist()))}, the dataset's like "
            f"{', '.join(map(repr, item_ids[:3]))}"
        )
    unit = unit_rows(features.matrix([item_ids[item] for item in items.tolist()])[0])
    row_of = {item_ids[item]: row for row, item in enumerate(items.tolist())}
    shown = [one for one in dict.fromkeys(asked) if one in row_of]
    # Neighbours of the items on the page, and of a sample that says something of all.
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(items.size)[:SAMPLE])
    queries = np.concatenate([np.array([row_of[one] for one in shown], np.int64), sample])
    n = min(max(k, _NEIGHBOURS), items.size - 1)
    rows, cosines = nearest(unit, queries, n)
    place = {one: number for number, one in enumerate(features.ids.tolist())}
    order = np.argsort([place[item_ids[item]] for item in items.tolist()], kind="stable")
    fits = alignment(rows[len(shown) :, :_NEIGHBOURS], sample, items, order, commons, seed)
    neighbours = {
        one: [(item_ids[items[row]], float(cosine)) for row, cosine in zip(*near, strict=True)]
        for one, *near in zip(shown, rows[:, :k].tolist(), cosines[:, :k].tolist(), strict=False)
    }
    absent = [one for one in dict.fromkeys(asked) if one not in row_of]
    return SetView(
        name,
        used_by,
        int(items.size),
        len(item_ids),
        int(sample.size),
        fits,
        neighbours,
        dict(_reasons(features, absent)) if absent else {},
    )


def _reasons(features: FeatureSet, absent: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Say why items have no vector: their status, and the message of a corrupt one."""
    place = {one: number for number, one in enumerate(features.ids.tolist())}
    messages = dict(features.errors())
    for one in absent:
        row = place.get(one)
        if row is None:
            yield one, "not in the set"
        else:
            status = Status(int(features.status[row])).name.lower()
            yield one, f"{status}: {messages[row]}" if row in messages else status
