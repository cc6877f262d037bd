"""Tables of the page, and what its reader should know first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmbase.layout import counted
from mmbase.pages import Cell, Column, Table
from mmx.vectors.overview import leaves, one_line
from mmx.vectors.page.facts import Facts

if TYPE_CHECKING:
    from mmstore import FeatureSet

EXAMPLES = 6
"""Items and columns that are named, of many."""

_MEANINGS = {
    "ok": "has a vector",
    "missing": "has no content of this kind",
    "corrupt": "has content that can’t be decoded",
    "pending": "not done yet: run the extraction again",
}


def warnings(features: FeatureSet, found: Facts) -> list[str]:
    """Return what is wrong with the vectors, or looks like it, a sentence each."""
    told = []
    n = found.rows.size
    if not features.complete:
        told.append("The set is unfinished: run the command that makes it again, it goes on.")
    if n and len(found.zero):
        told.append(
            f"{counted(len(found.zero), 'vector consists', 'vectors consist')} of zeros: models "
            "take them for content. Items without content belong in the set without a vector."
        )
    elif n and len(found.constant):
        told.append(f"{counted(len(found.constant), 'vector is', 'vectors are')} constant.")
    n_twins = sum(map(len, found.duplicates))
    if n and n_twins > 0.05 * n:
        told.append(
            f"{n_twins:,} of {n:,} vectors equal another one: copies of an item, a stand-in "
            "picture, or an encoder that saw nothing."
        )
    if found.cosine is not None and found.cosine > 0.95:
        told.append(
            f"Two items have a cosine of {found.cosine:.3f} on average: their vectors hardly "
            "differ. Standardise them (mmbench train --scaling), or use another layer."
        )
    if n and len(found.dead) + len(found.nearly_dead) > 0.5 * found.columns:
        n_dead = len(found.dead) + len(found.nearly_dead)
        told.append(f"{n_dead:,} of {found.columns:,} columns hardly change from item to item.")
    return told


def checks(found: Facts) -> Table:
    """Return the table of what the numbers are like."""

    def examples(numbers: Sequence[int]) -> str:
        shown = ", ".join(f"{one:,}" for one in numbers[:EXAMPLES])
        return f"columns {shown}{', …' if len(numbers) > EXAMPLES else ''}" if numbers else ""

    def share(part: int, whole: int) -> Cell:
        return Cell(f"{part / whole:.1%}" if whole else "–", part / whole if whole else None)

    n, twins = found.rows.size, sum(map(len, found.duplicates))
    groups = counted(len(found.duplicates), "group") if found.duplicates else ""
    rows: list[list[Cell | str]] = [
        ["Vectors of zeros", *_count(len(found.zero)), share(len(found.zero), n), ""],
        [
            "Constant vectors",
            *_count(len(found.constant)),
            share(len(found.constant), n),
            "all numbers of a vector are equal",
        ],
        ["Duplicate vectors", *_count(twins), share(twins, n), groups],
        [
            "Constant columns",
            *_count(len(found.dead)),
            share(len(found.dead), found.columns),
            examples(found.dead),
        ],
        [
            "Nearly constant columns",
            *_count(len(found.nearly_dead)),
            share(len(found.nearly_dead), found.columns),
            examples(found.nearly_dead) or "below 1 % of the median column’s spread",
        ],
    ]
    if n:
        low, middle, high = np.quantile(found.norms, [0, 0.5, 1])
        length = f"{low:.4g} to {high:.4g}"
        rows.append(["Length, median", Cell(f"{middle:.4g}", float(middle)), "", length])
    heads = [Column("Check", numeric=False), Column("Number"), Column("Share")]
    return Table("What the numbers are like", [*heads, Column("Note", numeric=False)], rows, False)


def _count(number: int) -> list[Cell]:
    return [Cell(f"{number:,}", number)]


def statuses(features: FeatureSet) -> Table:
    """Return the table of statuses."""
    n = len(features)
    rows: list[list[Cell | str]] = []
    for status, count in features.counts().items():
        name = status.name.lower()
        if not count and name == "pending":
            continue
        share = Cell(f"{count / n:.1%}" if n else "–", count / n if n else None)
        rows.append([name, Cell(f"{count:,}", count), share, _MEANINGS.get(name, "")])
    heads = [Column("Status", numeric=False), Column("Items"), Column("Share")]
    return Table("Statuses", [*heads, Column("Meaning", numeric=False)], rows, False)


def provenance(features: FeatureSet) -> Table:
    """Return the table of how the vectors were made."""
    rows: list[list[Cell | str]] = [
        [key, Cell(one_line(value))]
        for key, value in leaves(features.provenance)
        if value not in (None, [], {})
    ]
    columns = [Column("Key", numeric=False), Column("Value", numeric=False)]
    return Table("Provenance", columns, rows, False, hidden_caption=True)
