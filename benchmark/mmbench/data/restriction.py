"""The policy `drop`: a split without the items that lack content, as the field does it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmbench.data.dataset import Split, load_split
from mmbench.data.features import ItemFeatures
from mmbench.errors import DataError


def with_content(
    data: Path,
    whole: Split,
    features: Mapping[str, ItemFeatures],
    columns: Mapping[str, str],
    *,
    catalogue: bool,
) -> Split:
    """Return the split without the items that lack a vector in any of the modalities.

    They leave training, validation, test and the candidates. Users may lose all of their training
    rows by it; they are then what users without training rows always are.

    Args:
        data: The dataset folder.
        whole: The split as it is.
        features: The content of its items, after masks.
        columns: As in `load_split`.
        catalogue: As in `load_split`.

    Raises:
        DataError: Nothing is left of a part.
    """
    training = whole.training
    kept = np.logical_and.reduce([one.present for one in features.values()])
    if kept.all():
        return whole
    what = _in_words(features)
    parts = {
        "train": training.train.items,
        "valid": training.valid.items,
        "test": whole.test.rows.items,
    }
    left = {name: int(kept[items].sum()) for name, items in parts.items()}
    for name, n_left in left.items():
        if not n_left:
            raise DataError(
                f"missing: drop leaves no interaction of the {name} part: {int(kept.sum()):,} of "
                f"{kept.size:,} items have {what}; choose another policy, other features or "
                "smaller masks"
            )
    dropped = {name: items.size - left[name] for name, items in parts.items()}
    found = load_split(
        data,
        training.split,
        columns,
        catalogue=catalogue,
        only=frozenset(training.item_ids[kept].tolist()),
    )
    told = ", ".join(f"{n:,} of {parts[name].size:,} {name}" for name, n in dropped.items())
    n_items = int((~kept).sum())
    note = f"drop: {n_items:,} of {kept.size:,} items lack {what} and left, with {told} rows"
    record = {"items": n_items, "without": what, **dropped}
    new = found.training
    return replace(found, training=replace(new, notes=(note, *new.notes), dropped=record))


def _in_words(modalities: Collection[str]) -> str:
    *first, last = modalities
    return f"{', '.join(first)} and {last} content" if first else f"{last} content"
