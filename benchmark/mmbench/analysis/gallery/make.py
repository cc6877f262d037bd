"""From run folders to the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbase.catalogue.showcase import Showcase, columns_of
from mmbase.layout import counted
from mmbase.pages import require_page_name
from mmbase.progress import Progress
from mmbench.analysis.gallery import sets as feature_sets
from mmbench.analysis.gallery.alignment import Common, shared_users, shared_words
from mmbench.analysis.gallery.page import items_of, verdict, write_page
from mmbench.analysis.gallery.views import Views, gather, require_one_dataset
from mmbench.errors import unknown_name
from mmbench.runs import kinds
from mmbench.runs.finished_runs import find_runs


@dataclass(frozen=True)
class Wish:
    """What the page is to show.

    Attributes:
        k: Items of a list.
        users: Ids of users; None draws `n_users`.
        n_users: Users that are drawn.
        seed: Of the draw, and of the comparison with chance.
        history: Training items of a user, at most.
        items: Items whose neighbours are shown; None takes the first `n_items` that lists have.
        n_items: How many that are.
        neighbours: Neighbours of an item.
        features: `MODALITY/NAME` of feature sets; empty: those of the runs, then others.
        title: Column of titles; None: the first of the usual ones.
    """

    k: int = 10
    users: Sequence[str] | None = None
    n_users: int = 12
    seed: int = 0
    history: int = 10
    items: Sequence[str] | None = None
    n_items: int = 24
    neighbours: int = 5
    features: Sequence[str] = ()
    title: str | None = None


def make(
    paths: Sequence[Path],
    only: Sequence[str],
    wish: Wish,
    out: Path,
    data: Path | None,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write the page of some runs, and return what it shows, with JSON types only.

    Args:
        paths: Run folders, and folders of run folders.
        only: `NAME=VALUE`, see `kinds.only`.
        wish: What to show.
        out: The file.
        data: The dataset folder, if it has moved.
        command: The command line that this is.
        progress: Told what is loaded and what is left out.

    Raises:
        DataError: The runs are of several datasets or splits, the data has changed, or `out` is
            there already and is no page.
        UsageError: A user, item or feature set is named that is not there.
    """
    require_page_name(out)
    runs = kinds.only(find_runs(paths), only)
    require_one_dataset(runs)
    views = gather(runs, data, wish.users, wish.n_users, wish.k, wish.history, wish.seed, progress)
    notes: list[str] = []
    if views.unknown:
        told = counted(len(views.unknown), "named user has", "named users have")
        notes.append(f"{told} no training rows, e.g. {views.unknown[0]!r}, and no list")
    ids = views.training.item_ids.tolist()
    asked = _asked(wish, views, ids)
    store = views.data / "features"
    chosen, more = feature_sets.choose(store, wish.features, runs, views.labels)
    notes += more
    showcase = Showcase.open(views.data, columns_of(_provenances(runs)), wish.title)
    if len(ids) == (strange := showcase.unknown(ids)) and showcase.items is not None:
        notes.append(f"none of the dataset's {strange:,} items is in its items table")
    notes += showcase.notes
    progress.note(f"looking for neighbours in {counted(len(chosen), 'feature set')}")
    commons: dict[str, Common] = {"training users": shared_users(views.training.train)}
    words = shared_words(showcase.texts(ids, showcase.text_columns))
    if words is not None:
        commons["words"] = words
    found, more = feature_sets.look(store, chosen, ids, asked, wish.neighbours, commons, wish.seed)
    notes += more
    page = write_page(out, views, found, asked, showcase, notes, command)
    for note in page.notes:
        progress.warn(note)
    return {
        "path": out.as_posix(),
        "bytes": page.n_bytes,
        "runs": [str(run.path) for run in runs],
        "users": page.users,
        "pictures": page.pictures,
        "sounds": {"embedded": page.embedded, "linked": page.linked},
        "items": len(asked),
        "sets": [
            {"name": one.name, "verdict": verdict(one), "items": one.n_present} for one in found
        ],
        "notes": list(page.notes),
    }


def _asked(wish: Wish, views: Views, ids: Sequence[str]) -> list[str]:
    """The items whose neighbours are shown."""
    if wish.items is None:
        return items_of(views)[: wish.n_items]
    known = set(ids)
    for item in wish.items:
        if item not in known:
            raise unknown_name(f"item of {views.training.name}", item, known)
    return list(dict.fromkeys(wish.items))


def _provenances(runs: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (modality, one.get("provenance", {}))
        for run in runs
        for modality, one in run.record.get("features", {}).items()
    ]
