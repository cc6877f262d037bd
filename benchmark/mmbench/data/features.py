"""Feature matrices of a dataset's items, joined by id from the feature store, with a table of what is covered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics.item_data import Content
from mmstore import Status
from mmstore.reader import FeatureSet
from mmstore.store import FeatureStore

MissingPolicy = Literal["mean", "zero"]
"""What stands in for an absent vector: the mean of the present ones of that modality, or zeros."""

Scaling = Literal["none", "l2", "standard"]
"""What is done to a modality's vectors before a model sees them: nothing, each to unit length, or each dimension to mean 0
and variance 1 over the present items and all of them divided by the square root of their number (so
that a vector's expected squared length is 1, whatever its width)."""

MODALITIES = ("visual", "textual", "audio")
"""The modalities that come first, as in the papers."""


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
        other_vectors: Vectors of further items, shape (n_others, dim), scaled and filled as those
            of the items are.
        other_present: Which of them have a vector of their own, shape (n_others,).
    """

    modality: str
    name: str
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    digest: str
    provenance: Mapping[str, object]
    unused: int
    corrupt: int
    note: str
    other_vectors: NDArray[np.float32]
    other_present: NDArray[np.bool_]


def load_features(
    root: Path,
    item_ids: Sequence[str],
    wanted: Mapping[str, str] | None = None,
    *,
    missing: MissingPolicy = "mean",
    scaling: Scaling = "none",
    others: Sequence[str] = (),
) -> dict[str, ItemFeatures]:
    """The vectors of the given items, modality by modality.

    Args:
        root: The store, `<dataset>/features`.
        item_ids: Items in the order in which rows are wanted.
        wanted: Modality to set name; empty or None: every modality of the store, and where a
            modality has several sets the one that was made last, which the note says.
        missing: See `MissingPolicy`.
        scaling: See `Scaling`.
        others: Further items, of which nothing is learned: neither means nor spreads.

    Returns:
        Features by modality, in an order of their own (`MODALITIES`, then the names of others):
        some models treat the first modality differently, and how a command or file lists them must
        not decide that.

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
            f"{root}: no feature sets; make one, e.g. `mmx extract --modality textual --model "
            "tfidf-lsa "
            f"--data {root.parent}`, or import one: `mmx store import --help`"
        )
    return {
        modality: _align(
            store.open(modality, chosen[modality]),
            item_ids,
            others,
            missing,
            scaling,
            notes.get(modality, ""),
        )
        for modality in in_order(chosen)
    }


def in_order(modalities: Iterable[str]) -> list[str]:
    """Modalities in the order in which models see them: `MODALITIES`, then others by name."""
    place = {modality: number for number, modality in enumerate(MODALITIES)}
    return sorted(modalities, key=lambda modality: (place.get(modality, len(place)), modality))


def load_content(
    root: Path, chosen: str, item_ids: Sequence[str], others: Sequence[str]
) -> tuple[Content, str, str]:
    """Vectors to measure distances between items with, as stored; the set's `MODALITY=NAME`; its content digest.

    Args:
        root: The store.
        chosen: `MODALITY=NAME`, or `MODALITY` for the set of that modality that was made last.
        item_ids: Items in the order in which rows are wanted.
        others: Further items, whose rows follow.

    Raises:
        UsageError: No such modality or set.
        DataError: The set doesn't fit, or no item has a vector.
    """
    modality, _, name = chosen.partition("=")
    if not name:
        newest, _ = _newest(FeatureStore(root))
        if modality not in newest:
            raise unknown_name("modality of the feature store", modality, newest)
        name = newest[modality]
    (one,) = load_features(root, item_ids, {modality: name}, missing="zero", others=others).values()
    vectors = np.concatenate([one.vectors, one.other_vectors]) if others else one.vectors
    return (
        Content(vectors, np.append(one.present, one.other_present)),
        f"{modality}={name}",
        one.digest,
    )


def load_presence(root: Path, item_ids: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Modality to which items have a vector, in the set of each modality that was made last; empty without a store."""
    if not root.is_dir():
        return {}
    store = FeatureStore(root)
    found = {}
    for modality, name in _newest(store)[0].items():
        with store.open(modality, name) as features:
            found[modality] = np.isin(item_ids, features.ids[features.status == Status.OK])
    return found


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
            raise UsageError(
                f"--features: {modality} is given twice; a model takes one set per modality"
            )
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
        modality: f"{len(sets)} {modality} sets ({', '.join(sorted(name for _, name in sets))}); "
        f"took {chosen[modality]}, "
        f"the newest; choose with --features {modality}=NAME"
        for modality, sets in by_modality.items()
        if len(sets) > 1
    }
    return chosen, notes


def _align(
    features: FeatureSet,
    item_ids: Sequence[str],
    others: Sequence[str],
    missing: MissingPolicy,
    scaling: Scaling,
    note: str,
) -> ItemFeatures:
    with features:
        if features.source != "item" or features.layout != "dense":
            raise DataError(
                f"{features.path}: {features.source} / {features.layout} features; a model needs "
                "one dense vector per item"
            )
        vectors, present = features.matrix(item_ids, dtype=np.float32)
        if not present.any():
            theirs, ours = (
                ", ".join(map(repr, features.ids[:3])),
                ", ".join(map(repr, item_ids[:3])),
            )
            raise DataError(
                f"{features.path}: none of the {len(item_ids)} items has a vector; its ids look "
                f"like {theirs}, "
                f"the dataset's like {ours}"
            )
        other_vectors, other_present = features.matrix(others, dtype=np.float32)
        corrupt = np.isin(features.ids[features.status == Status.CORRUPT], item_ids).sum()
        unused = int((features.status == Status.OK).sum() - present.sum() - other_present.sum())
        own = vectors[present]
        other_vectors[other_present] = _scaled(other_vectors[other_present], scaling, own)
        vectors[present] = _scaled(own, scaling, own)
        fill = (
            vectors[present].mean(0, dtype=np.float64).astype(np.float32)
            if missing == "mean"
            else np.float32(0)
        )
        vectors[~present] = fill
        other_vectors[~other_present] = fill
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
            np.ascontiguousarray(other_vectors),
            other_present,
        )


def _scaled(
    vectors: NDArray[np.float32], scaling: Scaling, own: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Vectors, shape (n, dim), scaled by what the present items' `own` say; zero vectors, constant dimensions stay finite."""
    if scaling == "none":
        return vectors
    if scaling == "l2":
        return np.asarray(
            vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32
        )
    mean, spread = own.mean(0, dtype=np.float64), own.std(0, dtype=np.float64)
    unit = np.where(spread > 0, spread, 1.0) * np.sqrt(vectors.shape[1])
    return np.asarray((vectors - mean) / unit, np.float32)
