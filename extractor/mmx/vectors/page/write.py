"""The page about a feature set; at most `MOST_BYTES`, for which pictures are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmbase.catalogue.showcase import Exhibit, Showcase, columns_of
from mmbase.catalogue.thumbnails import can_draw, data_uri, thumbnail
from mmbase.errors import INSTALL_EXTRA, ContentError
from mmbase.layout import counted
from mmbase.outputs import put
from mmbase.pages import chart_figure, environment, render, require_page_name
from mmx.vectors.overview import summary
from mmx.vectors.page import charts
from mmx.vectors.page.facts import Facts, facts, unit_rows
from mmx.vectors.page.projection import COMPONENTS, neighbour_map, principal
from mmx.vectors.page.tables import EXAMPLES, checks, provenance, statuses, warnings

if TYPE_CHECKING:
    from mmbase.progress import Progress
    from mmstore import FeatureSet

MOST_BYTES = 2_900_000
MOST_POINTS = 10_000
_LIBRARY = 1_000_000  # bytes of the charts' library
_SIDE = 64  # pixels of a thumbnail
_GROUPS = 5  # of duplicates, and of reasons, that are shown
_FEW = 5  # items of which there is no map
_HERE = Path(__file__).parent


@dataclass
class Pictures:
    """Thumbnails of items, made once, while there is room on the page.

    Attributes:
        room: Bytes that are left.
        made: Number of thumbnails on the page.
        wanted: Number of pictures that were asked for.
        broken: Why some can't be shown.
    """

    room: int
    made: int = 0
    wanted: int = 0
    broken: list[str] = field(default_factory=list)

    def of(self, exhibit: Exhibit) -> str:
        """Return the data URI of the item's picture; empty where there is none to show."""
        path = exhibit.files.get("visual")
        if path is None:
            return ""
        self.wanted += 1
        if self.room <= 0 or not can_draw():
            return ""
        try:
            uri = data_uri(thumbnail(path, _SIDE, quality=45))
        except ContentError as error:
            self.broken.append(str(error))
            return ""
        self.room -= len(uri)
        self.made += 1
        return uri


def write_page(features: FeatureSet, out: Path, command: str, progress: Progress) -> dict[str, Any]:
    """Write the page about a set, in one step, and say what is on it, with JSON types only.

    Args:
        features: The set, dense.
        out: The file.
        command: The command line that this is.
        progress: Told what is left out.

    Raises:
        DataError: The set is ragged, or `out` is there already and is no page.
        StoreError: It is damaged or incomplete.
    """
    require_page_name(out)
    found = facts(features)
    showcase = _showcase(features)
    ids = _names(features)
    pictures = Pictures(MOST_BYTES - _LIBRARY - 100_000)
    first = warnings(features, found)
    context: dict[str, Any] = {
        "title": f"{features.modality}/{features.name}",
        "description": "A feature set: its vectors, its items and how it was made.",
        "lead": _lead(features),
        "tiles": _tiles(features, found, showcase, ids),
        "checks": checks(found),
        "duplicates": _duplicates(found, ids, showcase, pictures),
        "statuses": statuses(features),
        "absent": _absent(features, ids, showcase, pictures),
        "provenance": provenance(features),
        "norms": "",
        "map": "",
        "map_text": "",
        "facts": [command, f"{features.path}, content digest {features.content_digest}"],
        "set_style": _style(),
    }
    if found.rows.size:
        histogram = charts.norm_chart(found.norms)
        if histogram is not None:
            context["norms"] = chart_figure(histogram, "Histogram of the lengths of the vectors")
    method = None
    n_points = 0
    if features.source == "item" and found.rows.size >= _FEW:
        chart, text, method, n_points = _map(features, found, ids, showcase, pictures)
        context["map"] = chart_figure(chart, "Map of the vectors, a point an item", tall=True)
        context["map_text"] = text
    notes = _of_pictures(pictures, showcase)
    page = render(environment(_HERE), "set.html", **context, warnings=[*first, *notes])
    put(out, page)
    for one in [*first, *notes]:
        progress.warn(one)
    return {
        "path": out.as_posix(),
        "bytes": len(page.encode()),
        "map": method,
        "points": n_points,
        "pictures": pictures.made,
        "warnings": [*first, *notes],
    }


def _showcase(features: FeatureSet) -> Showcase:
    """The items of the dataset folder around the store, if there is one."""
    root = Path(features.path).resolve().parent.parent
    if root.name != "features":
        told = "ids alone, without titles and pictures: the set is not in a dataset’s features"
        return Showcase(None, {}, (told,))
    return Showcase.open(root.parent, columns_of([(features.modality, features.provenance)]))


def _names(features: FeatureSet) -> list[str]:
    ids = features.ids.tolist()
    return ids if features.source == "item" else [" · ".join(one) for one in ids]


def _lead(features: FeatureSet) -> str:
    made = features.provenance
    model = next((made[key] for key in ("model_id", "encoder", "name") if made.get(key)), None)
    told = f"One vector of {features.dim:,} numbers for each {features.source}"
    return f"{told}, made by {model}." if isinstance(model, str) else f"{told}."


def _tiles(
    features: FeatureSet, found: Facts, showcase: Showcase, ids: Sequence[str]
) -> list[tuple[str, str, str]]:
    n, about = len(features), summary(features)
    share = f"{found.rows.size / n:.1%}" if n else "0 %"
    tiles = [
        ("With a vector", f"{found.rows.size:,} of {n:,}", share),
        ("Numbers", f"{features.dim:,}", str(features.dtype)),
        ("Size", f"{about['bytes'] / 1e6:,.1f} MB", f"format {features.format_version}"),
        ("Mean cosine", "–" if found.cosine is None else f"{found.cosine:.3f}", "of two items"),
    ]
    if showcase.items is not None and features.source == "item":
        n_items = len(showcase.items)
        strange = showcase.unknown(ids)
        covered = len(ids) - strange
        note = f"{counted(strange, 'row')} of no item in it" if strange else "of its items table"
        tiles.insert(1, ("Rows for the dataset", f"{covered:,} of {n_items:,}", note))
    return tiles


def _duplicates(
    found: Facts, ids: Sequence[str], showcase: Showcase, pictures: Pictures
) -> list[dict[str, Any]]:
    groups = []
    for group in found.duplicates[:_GROUPS]:
        head = f"{counted(len(group), 'equal vector')}"
        shown = group[:EXAMPLES]
        if len(group) > len(shown):
            head += f", {len(shown)} of them:"
        groups.append({"head": head, "members": _members(shown, ids, {}, showcase, pictures)})
    return groups


def _absent(
    features: FeatureSet, ids: Sequence[str], showcase: Showcase, pictures: Pictures
) -> list[dict[str, Any]]:
    """Examples of the items without a vector: missing ones, and corrupt ones by their reason."""
    from mmstore.spec import Status

    groups = []
    missing = np.flatnonzero(features.status == Status.MISSING).tolist()
    if missing:
        head = f"Missing: {_shown(len(missing))}"
        members = _members(missing[:EXAMPLES], ids, {}, showcase, pictures)
        groups.append({"head": head, "members": members})
    errors = features.errors()
    by_reason: dict[str, list[int]] = {}
    for row, message in errors:
        by_reason.setdefault(_kind(message), []).append(row)
    messages = dict(errors)
    ranked = sorted(by_reason.items(), key=lambda one: (-len(one[1]), one[0]))
    for reason, rows in ranked[:_GROUPS]:
        head = f"Corrupt, {reason}: {_shown(len(rows))}"
        members = _members(rows[:EXAMPLES], ids, messages, showcase, Pictures(0))
        groups.append({"head": head, "members": members})
    if len(ranked) > _GROUPS:
        n_more = sum(len(rows) for _, rows in ranked[_GROUPS:])
        head = f"{counted(n_more, 'item')} for other reasons (mmx store info --json lists all)"
        groups.append({"head": head, "members": []})
    return groups


def _shown(n: int) -> str:
    return counted(n, "item") if n <= EXAMPLES else f"{EXAMPLES} of {n:,} items"


def _kind(message: str) -> str:
    """The reason without what is of one item alone: what stands before its details."""
    for separator in (" (", ": ", "; "):
        message = message.partition(separator)[0]
    return message[:80]


def _members(
    rows: Sequence[int],
    ids: Sequence[str],
    notes: Mapping[int, str],
    showcase: Showcase,
    pictures: Pictures,
) -> list[dict[str, str]]:
    members = []
    for row, one in zip(rows, showcase.of([ids[row] for row in rows]), strict=True):
        note = notes.get(row) or one.problems.get("visual", "")
        about = " · ".join(filter(None, (one.id if one.title else "", note)))
        members.append({"name": one.name, "note": about, "uri": pictures.of(one)})
    return members


def _map(
    features: FeatureSet,
    found: Facts,
    ids: Sequence[str],
    showcase: Showcase,
    pictures: Pictures,
) -> tuple[Any, str, str, int]:
    """The chart of the map, what stands above it, its method, and the number of points."""
    rng = np.random.default_rng(0)
    rows: NDArray[np.int64] = found.rows
    if rows.size > MOST_POINTS:
        rows = np.sort(rows[rng.permutation(rows.size)[:MOST_POINTS]])
    own = [ids[row] for row in rows.tolist()]
    unit = unit_rows(features.matrix(own)[0])
    components, share = principal(unit, COMPONENTS)
    if components.shape[1] < 2:
        components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    places = neighbour_map(components)
    shown = showcase.of(own)
    column = showcase.group_column
    groups: list[str] = []
    names: list[str] = []
    if column is not None:
        groups, names = charts.coloured_groups(showcase.texts(own, [column]))
    points = charts.map_points([one.name[:60] for one in shown], groups, components, places)
    pictures.room -= charts.size_of(points)
    # Pictures for points all over the map, in an order of their own, while there is room.
    before, own_pictures = pictures.made, sum("visual" in one.files for one in shown)
    for place in rng.permutation(len(points)).tolist():
        points[place]["i"] = pictures.of(shown[place])
    n_pictures = pictures.made - before
    who = f"{counted(len(points), 'item')}"
    if len(points) < found.rows.size:
        who += f", drawn from {found.rows.size:,}"
    text = (
        f"{who}, by the directions of their vectors. Placed by neighbours (UMAP’s graph of the 15 "
        f"nearest in {components.shape[1]} principal components, laid out from the first two), "
        "items that are near each other are near in the vectors, while distances between groups "
        f"say little. The first two principal components hold {share:.0%} of the variance. "
        "Hovering shows an item; dragging moves the map, shift and the wheel enlarge it."
    )
    if 0 < n_pictures < own_pictures:
        text += f" {n_pictures:,} of {own_pictures:,} pictures fit in a page of 3 MB."
    if names:
        text += f" Colours: {column}."
    chart = charts.map_chart(points, names)
    return chart, text, "neighbours", len(points)


def _of_pictures(pictures: Pictures, showcase: Showcase) -> list[str]:
    told = list(showcase.notes)
    if pictures.wanted and not can_draw():
        told.append(f"Pictures are left out: Pillow is not installed: {INSTALL_EXTRA}")
    if pictures.broken:
        count = counted(len(pictures.broken), "picture can’t", "pictures can’t")
        told.append(f"{count} be shown, e.g. {pictures.broken[0]}")
    return told


def _style() -> Any:
    from markupsafe import Markup

    return Markup((_HERE / "set.css").read_text(encoding="utf-8"))  # a file of this package
