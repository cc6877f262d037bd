"""The page: cards of items by user and run, and each item beside its nearest neighbours.

A page has at most `MOST_BYTES`: users and items come first, then pictures, those of items with
their neighbours before those of users, then sounds; what there is no room for is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbase.catalogue.showcase import Exhibit, Showcase
from mmbase.catalogue.thumbnails import can_draw
from mmbase.layout import counted
from mmbase.outputs import put
from mmbase.pages import Cell, Column, Table, environment, render
from mmbench.analysis.gallery.alignment import DEALS, Fit
from mmbench.analysis.gallery.media import (
    FOR_SOUNDS,
    PER_ABSENT,
    PER_FILE,
    in_words,
    sound_addresses,
    thumbnails,
)
from mmbench.analysis.gallery.sets import SetView
from mmbench.analysis.gallery.views import Listed, User, Views

MOST_BYTES = 3_000_000
_FOR_USERS = 1_500_000  # of the HTML of users
_FOR_ITEMS = 500_000  # of that of items with their neighbours
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Left:
    """What a page has and what it has not.

    Attributes:
        n_bytes: Size of the page.
        users: Number of users on it.
        pictures: Number of thumbnails.
        embedded: Number of sounds in the page.
        linked: Number of sounds that are linked.
        notes: What was left out, one line each.
    """

    n_bytes: int
    users: int
    pictures: int
    embedded: int
    linked: int
    notes: Sequence[str]


@dataclass(frozen=True)
class Card:
    """An item where it stands on the page.

    Attributes:
        number: Of the item, the same wherever it stands.
        id: Its id.
        name: Its title, or else its id.
        picture: Whether it has a file that can be a thumbnail.
        no_picture: What stands in its place, if the catalogue has pictures.
        sound: Whether it has a sound.
        badge: A rank or a cosine.
        hit: Whether the user has it in test.
        linked: Whether its neighbours are on the page.
        with_id: Whether the id stands below the title.
    """

    number: int
    id: str
    name: str
    picture: bool
    no_picture: str
    sound: bool
    badge: str = ""
    hit: bool = False
    linked: bool = False
    with_id: bool = False


@dataclass
class Stock:
    """The items of a page, numbered as they appear, with what they are shown by."""

    exhibits: Mapping[str, Exhibit]
    linked: frozenset[str]
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pictures = can_draw() and any("visual" in one.files for one in self.exhibits.values())

    def card(self, item: str, **shown: Any) -> Card:
        """Return a card of an item."""
        one = self.exhibits[item]
        number = self.numbers.setdefault(item, len(self.numbers))
        picture = self._pictures and "visual" in one.files
        absent = "no picture" if self._pictures and not picture else ""
        absent = "picture is missing" if absent and "visual" in one.problems else absent
        return Card(number, item, one.name, picture, absent, "audio" in one.files, **shown)

    def files(self, modality: str) -> Iterable[tuple[int, Path]]:
        """Yield the files of the items that appear, in their order."""
        for item, number in self.numbers.items():
            if (path := self.exhibits[item].files.get(modality)) is not None:
                yield number, path


def items_of(views: Views) -> list[str]:
    """Return the items of the users in the order of interest: all first places, then second."""
    lists = [one.items for user in views.users for one in user.lists]
    longest = max(map(len, lists), default=0)
    ranked = [own[rank] for rank in range(longest) for own in lists if rank < len(own)]
    others = [
        item for user in views.users for part in (user.test, user.history, user.valid)
        for item in part
    ]  # fmt: skip
    return list(dict.fromkeys([*ranked, *others]))


def write_page(
    out: Path,
    views: Views,
    sets: Sequence[SetView],
    asked: Sequence[str],
    showcase: Showcase,
    notes: Sequence[str],
    command: str,
) -> Left:
    """Write the page, in one step.

    Args:
        out: The file.
        views: Users and lists.
        sets: Feature sets.
        asked: Items whose neighbours are shown.
        showcase: The items' titles, pictures and sounds.
        notes: What the reader should know first.
        command: The command line that made the page.

    Returns:
        What is on the page, and what is not.
    """
    near = [item for one in sets for own in one.neighbours.values() for item, _ in own]
    every = list(dict.fromkeys([*items_of(views), *asked, *near]))
    exhibits = dict(zip(every, showcase.of(every), strict=True))
    stock = Stock(exhibits, frozenset(asked) if sets else frozenset())
    env = environment(_HERE)
    macros: Any = env.get_template("cards.html").module

    left: list[str] = list(notes)
    # Items first: their pictures come before those of users where there is little room.
    items = _fitting(macros.article, (_item(one, sets, stock) for one in asked if sets), _FOR_ITEMS)
    if sets and len(items) < len(asked):
        told = f"the neighbours of the first {len(items)} of {len(asked):,} items are shown"
        left.append(f"{told}: more do not fit in a page of 3 MB")
    sections = _fitting(
        macros.user,
        (_user(number, user, views.labels, stock) for number, user in enumerate(views.users)),
        _FOR_USERS,
    )
    if len(sections) < len(views.users):
        told = f"the first {len(sections)} of {len(views.users):,} users are shown"
        left.append(f"{told}: more do not fit in a page of 3 MB (fewer runs, or a smaller -k)")

    context: dict[str, Any] = {
        "title": f"Gallery of {views.training.name}",
        "description": "Recommended items of users, and the items' nearest neighbours.",
        "lead": _lead(views, len(sections)),
        "legend": _legend(views),
        "warnings": [told for one in sets for told in _warnings(one)],
        "sets": _table(sets),
        "deals": DEALS,
        "sampled": _sampled(sets),
        "users": sections,
        "items": items,
        "gallery_style": _part("gallery.css"),
        "gallery_script": _part("gallery.js"),
        "facts": [command, *(f"{label}: {run.path}" for label, run in _pairs(views))],
    }
    # The page without pictures and sounds says how much room there is for them.
    empty: dict[str, Any] = {"pictures": [], "absent": [], "sounds": "{}", "sound_fact": ""}
    bare = render(env, "gallery.html", **context, **empty, notes=left)
    room = MOST_BYTES - len(bare.encode()) - 2_000
    pictured = list(stock.files("visual"))
    room -= PER_ABSENT * len(pictured)
    heard = list(stock.files("audio"))
    for_sounds = min(FOR_SOUNDS, room // 4) if heard else 0
    pictures, absent, more = thumbnails(pictured, room - for_sounds)
    left += more
    used = sum(len(uri) + PER_FILE for _, uri in pictures)
    sounds, n_embedded = sound_addresses(heard, room - used, out)
    n_linked = len(sounds) - n_embedded
    if showcase.items is not None and not showcase.has_files:
        left.append("the dataset folder has no pictures and no sounds")
    page = render(
        env,
        "gallery.html",
        **context,
        notes=left,
        pictures=[(number, _safe(uri)) for number, uri in pictures],
        absent=[(why, _safe(which)) for why, which in absent.items()],
        sound_fact=in_words(n_embedded, n_linked) if sounds else "",
        sounds=_safe(json.dumps(sounds).replace("<", "\\u003c")),
    )
    put(out, page)
    size = len(page.encode())
    return Left(size, len(sections), len(pictures), n_embedded, n_linked, left)


def _fitting(draw: Any, parts: Iterable[dict[str, Any]], room: int) -> list[Any]:
    """Return as many drawn parts as there is room for, at least one."""
    drawn: list[Any] = []
    for part in parts:
        one = draw(part)
        room -= len(one.encode())
        if room < 0 and drawn:
            break
        drawn.append(one)
    return drawn


def _pairs(views: Views) -> Iterable[tuple[str, Any]]:
    return zip(views.labels, views.runs, strict=True)


def _user(number: int, user: User, labels: Sequence[str], stock: Stock) -> dict[str, Any]:
    def cards(items: Iterable[str], badge: str = "") -> list[Card]:
        return [stock.card(one, badge=badge, linked=one in stock.linked) for one in items]

    of_history = counted(user.n_history, "training item")
    if len(user.history) < user.n_history:
        of_history = f"{len(user.history)} of {of_history}"
    of_test = counted(len(user.test), "test item")
    if user.valid:
        of_test += f", {len(user.valid)} in validation"
    return {
        "number": number,
        "id": user.id,
        "history": cards(user.history),
        "of_history": of_history,
        "test": [*cards(user.test, "test"), *cards(user.valid, "validation")],
        "of_test": of_test,
        "lists": [
            {"label": label, "note": _hits(one, len(user.test)), "cards": _listed(one, stock)}
            for label, one in zip(labels, user.lists, strict=True)
        ],
    }


def _listed(one: Listed, stock: Stock) -> list[Card]:
    return [
        stock.card(item, badge=str(rank), hit=hit, linked=item in stock.linked)
        for rank, (item, hit) in enumerate(zip(one.items, one.hits, strict=True), 1)
    ]


def _hits(one: Listed, n_test: int) -> str:
    return f"{sum(one.hits)} of {n_test} in the first {len(one.items)}"


def _item(item: str, sets: Sequence[SetView], stock: Stock) -> dict[str, Any]:
    rows = []
    for one in sets:
        near = one.neighbours.get(item, ())
        cards = [
            stock.card(other, badge=f"{cosine:.3f}", linked=other in stock.linked)
            for other, cosine in near
        ]
        reason = one.reasons.get(item, "")
        rows.append({"name": one.name, "cards": cards, "reason": reason})
    return {"card": stock.card(item, with_id=True), "rows": rows}


def _lead(views: Views, n_shown: int) -> str:
    training = views.training
    who = f"{counted(n_shown, 'user')} {views.chosen}"
    told = counted(len(views.runs), "run")
    return f"{who}; lists of {told} on {training.name}, split {training.split}."


def _legend(views: Views) -> str:
    k = max((len(one.items) for user in views.users for one in user.lists), default=0)
    order = "latest first" if views.training.histories.times is not None else "last rows first"
    return (
        f"Each user has a row with the history ({order}), one with what was held out, and one with "
        f"the first {k} items of each run, best first. A hit is an item of the user’s test part: "
        "✓, and a green frame."
    )


def _fit(one: Fit) -> str:
    if one.verdict == "unknown":
        return "nothing in common anywhere"
    return f"{one.times:.1f} ×" if one.times is not None else "more than by chance"


_VERDICTS = {
    "fits": Cell("fits", mark="good"),
    "chance": Cell("no better than chance", mark="warn"),
    "shifted": Cell("off by one row", mark="warn"),
    "unknown": Cell("can’t be told", mark="quiet"),
}


def verdict(one: SetView) -> str:
    """Return what all comparisons say together: one that fits is enough, unless rows are off."""
    found = {fit.verdict for fit in one.fits}
    return next((word for word in ("shifted", "fits", "chance") if word in found), "unknown")


def _table(sets: Sequence[SetView]) -> Table:
    kinds = [fit.kind for fit in sets[0].fits] if sets else []
    columns = [
        Column("Feature set", numeric=False),
        Column("Verdict", numeric=False),
        Column("Items with a vector"),
        *(Column(f"Shared {kind}", title="times as much as by chance") for kind in kinds),
        Column("Used by", numeric=False),
    ]
    rows: list[list[Cell | str]] = [
        [
            one.name,
            _VERDICTS[verdict(one)],
            Cell(f"{one.n_present:,} of {one.n_items:,}", one.n_present),
            *(Cell(_fit(fit), fit.times) for fit in one.fits),
            ", ".join(one.used_by) or "no run here",
        ]
        for one in sets
    ]
    return Table("Nearest neighbours against chance", columns, rows, sortable=False)


def _warnings(one: SetView) -> list[str]:
    shifts = [fit.better_shift for fit in one.fits if fit.better_shift is not None]
    if shifts:
        where = "next" if shifts[0] > 0 else "previous"
        return [
            f"{one.name}: the vectors fit the {where} item of the file better than their own, so "
            "they are one row off their ids. Import or extract the set again, with the ids that "
            "its rows belong to."
        ]
    if verdict(one) == "chance":
        return [
            f"{one.name}: near items have no more in common than items that chance puts together. "
            "Either the vectors belong to other items, or they say nothing about taste and texts; "
            "the neighbours below show which."
        ]
    return []


def _sampled(sets: Sequence[SetView]) -> str:
    sampled = [one for one in sets if one.n_compared < one.n_present]
    return f", over {sampled[0].n_compared} items drawn at random" if sampled else ""


def _part(name: str) -> Any:
    return _safe((_HERE / name).read_text(encoding="utf-8"))


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # files of this package, base64, JSON without `<`
