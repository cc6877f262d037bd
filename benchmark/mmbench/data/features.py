"""Feature matrices of a dataset's items, joined by id from the feature store, with a table of what is covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import DataError, UsageError
from mmstore import FeatureSet, FeatureStore, Status

MissingPolicy = Literal["mean", "zero"]
"""What stands in for an absent vector: the mean of the present ones of that modality, or zeros."""

Scaling = Literal["none", "l2", "standard"]
"""What is done to a modality's vectors before a model sees them: nothing, each to unit length, or each dimension to mean 0
and variance 1 over the present items and all of them divided by the square root of their number (so that a vector's expected
squared length is 1, whatever its width)."""


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """One modality's vectors for the items of a dataset.

    Attributes:
        modality: e.g. `visual`.
        name: The feature set's name in the store.
        vectors: Shape (n_items, dim), float32, finite: absent rows are filled by the policy.
        present: Which items have a vector of their own, shape (n_items,).
        digest: The set's content digest.
        provenance: How the vectors were made, as stored.
        unused: Vectors of the set that belong to no item of the dataset.
        corrupt: Items of the dataset whose content could not be decoded.
        note: What a user should know, e.g. how the set was chosen; else empty.
    """

    modality: str
    name: str
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    digest: str
    provenance: Mapping[str, object]
    unused: int
    corrupt: int
    note: str = ""


def load_features(
    root: Path,
    item_ids: Sequence[str],
    wanted: Mapping[str, str] | None = None,
    *,
    missing: MissingPolicy = "mean",
    scaling: Scaling = "none",
) -> dict[str, ItemFeatures]:
    """The vectors of the given items, modality by modality.

    Args:
        root: The store, `<dataset>/features`.
        item_ids: Items in the order in which rows are wanted.
        wanted: Modality to set name; empty or None: every modality of the store, and where a modality has several
            sets the one that was made last, which the note says.
        missing: See `MissingPolicy`.
        scaling: See `Scaling`.

    Returns:
        Features by modality, modalities in the order of `wanted`, else alphabetical.

    Raises:
        UsageError: No such modality or set.
        DataError: The store is empty, a set doesn't fit, or no item has a vector.
    """
    store = FeatureStore(root)
    chosen, notes = dict(wanted or {}), dict[str, str]()
    if not chosen:
        chosen, notes = _newest(store)
    if not chosen:
        raise DataError(
            f"{root}: no feature sets; make one, e.g. `mmx extract --modality textual --model tfidf-lsa "
            f"--data {root.parent}`, or import one: `mmx store import --help`"
        )
    return {
        modality: _align(store.open(modality, name), item_ids, missing, scaling, notes.get(modality, ""))
        for modality, name in chosen.items()
    }


def parse_wanted(options: Sequence[str]) -> dict[str, str]:
    """`visual=resnet50` and the like as a mapping.

    Raises:
        UsageError: An option has no `=`, or names a modality twice.
    """
    wanted: dict[str, str] = {}
    for option in options:
        modality, equals, name = option.partition("=")
        if not (equals and modality and name):
            raise UsageError(f"--features {option}: expected MODALITY=NAME, e.g. visual=resnet50")
        if modality in wanted:
            raise UsageError(f"--features: {modality} is given twice; a model takes one set per modality")
        wanted[modality] = name
    return wanted


def _newest(store: FeatureStore) -> tuple[dict[str, str], dict[str, str]]:
    """For each modality the set that was created last, and a note where there was a choice."""
    by_modality: dict[str, list[tuple[str, str]]] = {}
    for modality, name in store.sets():
        with store.open(modality, name) as features:
            if features.source == "item" and features.layout == "dense":
                created = str(features.provenance.get("created", ""))
                by_modality.setdefault(modality, []).append((created, name))
    chosen = {modality: max(sets)[1] for modality, sets in sorted(by_modality.items())}
    notes = {
        modality: f"{len(sets)} {modality} sets ({', '.join(sorted(name for _, name in sets))}); took {chosen[modality]}, "
        f"the newest; choose with --features {modality}=NAME"
        for modality, sets in by_modality.items()
        if len(sets) > 1
    }
    return chosen, notes


def _align(
    features: FeatureSet, item_ids: Sequence[str], missing: MissingPolicy, scaling: Scaling, note: str
) -> ItemFeatures:
    with features:
        if features.source != "item" or features.layout != "dense":
            raise DataError(
                f"{features.path}: {features.source} / {features.layout} features; a model needs one dense vector per item"
            )
        vectors, present = features.matrix(item_ids, dtype=np.float32)
        if not present.any():
            theirs, ours = ", ".join(map(repr, features.ids[:3])), ", ".join(map(repr, item_ids[:3]))
            raise DataError(
                f"{features.path}: none of the {len(item_ids)} items has a vector; its ids look like {theirs}, "
                f"the dataset's like {ours}"
            )
        corrupt = np.isin(features.ids[features.status == Status.CORRUPT], item_ids).sum()
        unused = int((features.status == Status.OK).sum() - present.sum())
        vectors[present] = _scaled(vectors[present], scaling)
        fill = vectors[present].mean(0, dtype=np.float64).astype(np.float32) if missing == "mean" else np.float32(0)
        vectors[~present] = fill
        return ItemFeatures(
            features.modality,
            features.name,
            np.ascontiguousarray(vectors),
            present,
            features.content_digest,
            features.provenance,
            unused,
            int(corrupt),
            note,
        )


def _scaled(vectors: NDArray[np.float32], scaling: Scaling) -> NDArray[np.float32]:
    """Vectors of the present items, shape (n, dim), scaled; zero vectors and constant dimensions stay finite."""
    if scaling == "none":
        return vectors
    if scaling == "l2":
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
    mean, spread = vectors.mean(0, dtype=np.float64), vectors.std(0, dtype=np.float64)
    unit = np.where(spread > 0, spread, 1.0) * np.sqrt(vectors.shape[1])
    return np.asarray((vectors - mean) / unit, np.float32)
