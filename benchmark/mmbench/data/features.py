"""Content of items or training pairs, joined by id from the feature store, treated as asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mmbase.dataset import find_table
from mmbase.layout import counted
from mmbench.core.content import ItemContent, Scaling, Source
from mmbench.core.interactions import TrainSet
from mmbench.data import controls, defaults, masks
from mmbench.data.caches import cache_folder, filled
from mmbench.data.controls import Control
from mmbench.data.files import available_splits
from mmbench.data.mapped import room
from mmbench.data.missing.base import Gaps
from mmbench.data.splits import PARTS
from mmbench.data.treatment import Treatment
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics.item_data import ItemVectors
from mmstore.spec import Status

if TYPE_CHECKING:
    from mmstore.reader import FeatureSet
    from mmstore.store import FeatureStore

MODALITIES = ("visual", "textual", "audio")
"""The modalities that come first, as in the papers."""


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """One modality's vectors for all items of a dataset, those of training first.

    Or, where `source` is `interaction`, for all training pairs, in the order of `TrainSet`, and for
    nothing else: read "pair" for "item" below.

    Attributes:
        modality: What a model knows the set as: the store's modality, e.g. `visual`, or a label.
        name: The feature set's name in the store, `MODALITY/NAME` behind a label.
        vectors: Shape (n_items, dim), float32, finite: scaled, absent rows filled by the policy.
        present: Which items have a vector of their own, shape (n_items,).
        digest: The set's content digest.
        provenance: How the vectors were made, as stored.
        n_stored: Vectors in the set, those of items unknown to the dataset included.
        corrupt: Training items whose content could not be decoded.
        note: What a user should know, e.g. how the set was chosen; else empty.
        n_masked: Training items whose vector a mask took away: they are not among the present.
        n_masked_others: The same of all other items.
        control: What the present vectors are instead of the real ones.
        source: What a row belongs to.
    """

    modality: str
    name: str
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    digest: str
    provenance: Mapping[str, object]
    n_stored: int
    corrupt: int
    note: str
    n_masked: int = 0
    n_masked_others: int = 0
    control: Control | None = None
    source: Source = "item"

    def first(self, n_items: int) -> ItemContent:
        """Return the content of the first items as tensors that share the arrays' memory."""
        vectors, present = (torch.from_numpy(one[:n_items]) for one in (self.vectors, self.present))
        return ItemContent(vectors, present)


def load_features(
    root: Path,
    item_ids: Sequence[str] | Sequence[tuple[str, str]],
    wanted: Mapping[str, str] | None = None,
    *,
    n_trained: int | None = None,
    treatment: Treatment | None = None,
    train: TrainSet | None = None,
    source: Source = "item",
) -> dict[str, ItemFeatures]:
    """Load the vectors of the given items, modality by modality, and treat them.

    Args:
        root: The store, `<dataset>/features`.
        item_ids: Items in the order in which rows are wanted; of interactions the training pairs,
            (user, item).
        wanted: Modality to set name, see also `set_of`; empty or None: see `mmbench.data.defaults`.
        n_trained: The first so many items are those of training: scaling and policy are fitted on
            them alone. None: all.
        treatment: What is done to the vectors; None: the mean stands in for absent ones.
        train: The training pairs, for masks by popularity and policies on a graph of items.
        source: What the vectors belong to; a training pair is as popular as its item.

    Returns:
        Features by modality, in an order of their own (`MODALITIES`, then the names of others):
        some models treat the first modality differently, and how a command or file lists them must
        not decide that.

    Raises:
        UsageError: No such modality or set, or several and none is named; a mask or control is of
            a modality that is not used.
        DataError: The store is empty, a set doesn't fit, or no training item has a vector.
    """
    store, treatment = _store(root), treatment or Treatment()
    chosen, notes = choose_sets(root, wanted, source)
    treatment.require(chosen)
    n_trained = len(item_ids) if n_trained is None else n_trained
    found = {}
    for modality in in_order(chosen):
        if treatment.control.get(modality) == "absent":
            continue
        with store.open(*set_of(modality, chosen[modality])) as features:
            one = _align(features, item_ids, n_trained, notes.get(modality, ""), source)
            found[modality] = replace(one, modality=modality, name=chosen[modality])
    popularity = np.zeros(n_trained, np.int64) if train is None else train.popularity
    names = ["\0".join(one) if isinstance(one, tuple) else one for one in item_ids]
    if source == "interaction" and train is not None:
        popularity, train = train.popularity[train.items], None
    kept = masks.masked(
        {modality: one.present for modality, one in found.items()},
        treatment.mask,
        names,
        popularity,
        pattern=treatment.pattern,
        seed=treatment.seed,
    )
    for modality, one in found.items():
        present = kept.get(modality, one.present)
        found[modality] = _treated(one, present, names, n_trained, treatment, train)
    return found


def _treated(
    one: ItemFeatures,
    present: NDArray[np.bool_],
    item_ids: Sequence[str],
    n_trained: int,
    treatment: Treatment,
    train: TrainSet | None,
) -> ItemFeatures:
    """The vectors of items that are still `present`: controlled, scaled, all others filled."""
    vectors, lost = one.vectors, one.present & ~present
    n_masked, n_others = int(lost[:n_trained].sum()), int(lost[n_trained:].sum())
    if not present[:n_trained].any():
        if treatment.policy.DROPS:  # which will say that nothing is left
            return replace(one, present=present)
        raise DataError(
            f"mask: {one.modality}: no {one.source} of training keeps its vector of {one.name} "
            f"({counted(n_masked, 'vector')} taken); lower the share"
        )
    vectors[~present] = np.nan
    if (control := treatment.control.get(one.modality)) is not None:
        vectors = controls.replaced(
            vectors,
            present,
            n_trained,
            control,
            item_ids,
            seed=treatment.seed,
            modality=one.modality,
        )
    if treatment.scaling != "none":
        _scale(vectors, present, n_trained, treatment.scaling)
    gaps = Gaps(vectors, present, n_trained, item_ids, treatment.seed, one.modality, train)
    return replace(
        one,
        vectors=filled(treatment.policy, gaps, cache_folder()),
        present=present,
        n_masked=n_masked,
        n_masked_others=n_others,
        control=control,
    )


def choose_sets(
    root: Path, wanted: Mapping[str, str] | None = None, source: Source = "item"
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the set of each modality, and notes on how it was chosen; as for `load_features`."""
    if wanted:
        return dict(wanted), {}
    chosen, notes = defaults.default_features(_store(root), source=source)
    if not chosen and source == "interaction":
        raise DataError(
            f"{root}: no feature sets of interactions; make one of the reviews: `mmx extract "
            "--source interaction --modality textual --model all-minilm-l6-v2 --data "
            f"{root.parent}` (docs/reviews.md)"
        )
    if not chosen:
        raise DataError(
            f"{root}: no feature sets; make one, e.g. `mmx extract --modality textual --model "
            f"tfidf-lsa --data {root.parent}`, or import one: `mmx store import --help`"
        )
    return chosen, notes


def set_of(modality: str, name: str) -> tuple[str, str]:
    """Return the store's modality and name of a set; `visual/edge-map` stands for itself.

    So a model may take several sets of one modality, each under a label of its own.
    """
    own, slash, rest = name.partition("/")
    return (own, rest) if slash else (modality, name)


def in_order(modalities: Iterable[str]) -> list[str]:
    """Order modalities as models see them: `MODALITIES`, then others by name."""
    place = {modality: number for number, modality in enumerate(MODALITIES)}
    return sorted(modalities, key=lambda modality: (place.get(modality, len(place)), modality))


def load_content(
    root: Path, chosen: str, item_ids: Sequence[str], n_trained: int
) -> tuple[ItemVectors, str, str]:
    """Load the vectors, as stored, that distances between items are measured with.

    Args:
        root: The store.
        chosen: `MODALITY=NAME`, or `MODALITY` for the set that is taken where none is named.
        item_ids: Items in the order in which rows are wanted.
        n_trained: The first so many are those of training.

    Returns:
        The vectors, the set's `MODALITY=NAME`, and its content digest.

    Raises:
        UsageError: No such modality or set.
        DataError: The set doesn't fit, or no training item has a vector.
    """
    modality, _, name = chosen.partition("=")
    if not name:
        store = _store(root)
        if modality not in (known := {kind for kind, _ in store.sets()}):
            raise unknown_name("modality of the feature store", modality, known)
        flag = "--diversity-features"
        name = defaults.default_features(store, modality=modality, flag=flag)[0][modality]
    (one,) = load_features(
        root, item_ids, {modality: name}, n_trained=n_trained, treatment=Treatment("zeros")
    ).values()
    return ItemVectors(one.vectors, one.present), f"{modality}={name}", one.digest


def load_presence(root: Path, item_ids: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which items have a vector in each modality's set; empty without a store.

    The set is the one that is taken where none is named, or else the first one made.
    """
    if not root.is_dir():
        return {}
    store = _store(root)
    found = {}
    for modality, name in defaults.default_features(store, ask=False)[0].items():
        with store.open(modality, name) as features:
            found[modality] = np.isin(item_ids, features.ids[features.status == Status.OK])
    return found


def parse_wanted(options: Sequence[str]) -> dict[str, str]:
    """Parse options such as `visual=resnet50`, or `shape=visual/edge-map`, to label and set name.

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
                f"--features: {modality} is given twice; a model takes one set per modality, and "
                f"another under a label of its own, e.g. more={modality}/{name}"
            )
        wanted[modality] = name
    return wanted


def remember_features(
    root: Path, taken: Mapping[str, str], *, named: bool, source: Source = "item"
) -> None:
    """Keep the sets that a training takes as the default; see `defaults.remember_features`.

    Sets under labels are of one model, and are not kept.
    """
    if any("/" in name for name in taken.values()):
        return
    defaults.remember_features(_store(root), taken, named=named, source=source)


def _store(root: Path) -> FeatureStore:
    # Imported here: lists and models without content need neither a store nor h5py.
    from mmstore.store import FeatureStore

    return FeatureStore(root)


def _align(
    features: FeatureSet,
    item_ids: Sequence[str] | Sequence[tuple[str, str]],
    n_trained: int,
    note: str,
    source: Source,
) -> ItemFeatures:
    """Vectors of the items as they are stored, NaN in absent rows."""
    if features.source != source or features.layout != "dense":
        needs = "a model" if source == "item" else "this model"
        raise DataError(
            f"{features.path}: {features.source} / {features.layout} features; {needs} needs "
            f"one dense vector per {source}"
        )
    vectors, present = features.matrix(item_ids, out=room(len(item_ids), features.dim))
    if not present[:n_trained].any():
        theirs, ours = (", ".join(map(repr, ids[:3])) for ids in (features.ids, item_ids))
        raise DataError(
            f"{features.path}: none of the {n_trained} {_ROWS[source]} has a vector; its ids look "
            f"like {theirs}, the dataset's like {ours}"
        )
    _require_lengths(features, vectors, item_ids)
    unread = set(map(_key, features.ids[features.status == Status.CORRUPT].tolist()))
    corrupt = sum(one in unread for one in item_ids[:n_trained]) if unread else 0
    return ItemFeatures(
        features.modality,
        features.name,
        vectors,
        present,
        features.content_digest,
        features.provenance,
        int((features.status == Status.OK).sum()),
        corrupt,
        note,
        source=source,
    )


_ROWS: dict[Source, str] = {"item": "items", "interaction": "training pairs"}


def _key(stored: str | list[str]) -> str | tuple[str, ...]:
    """Return an id as `item_ids` has it, from one as `FeatureSet.ids` lists it."""
    return tuple(stored) if isinstance(stored, list) else stored


def _require_lengths(
    features: FeatureSet, vectors: NDArray[np.float32], item_ids: Sequence[object]
) -> None:
    """Refuse vectors whose squared length float32 can't hold: they would count as zeros."""
    peak = np.maximum(vectors.max(1), -vectors.min(1))  # NaN where absent
    limit = float(np.sqrt(np.finfo(np.float32).max / vectors.shape[1]))
    large = np.flatnonzero(peak > limit)
    if large.size:
        raise DataError(
            f"{features.path}: numbers up to {np.nanmax(peak):.3g} in the vectors of "
            f"{counted(large.size, features.source)}, e.g. {item_ids[large[0]]!r}: their lengths "
            f"overflow (at most {limit:.1g} here); divide the set by a constant, or extract it "
            "again"
        )


def _scale(
    vectors: NDArray[np.float32], present: NDArray[np.bool_], n_trained: int, scaling: Scaling
) -> None:
    """Scale the present vectors in place, by what the present ones of training items say."""
    mean, unit = np.zeros(1), np.ones(1)
    if scaling == "standard":
        fitted = vectors[:n_trained][present[:n_trained]]
        mean, spread = fitted.mean(0, dtype=np.float64), fitted.std(0, dtype=np.float64)
        # A constant dimension becomes 0, not NaN.
        unit = np.where(spread > 0, spread, 1.0) * np.sqrt(vectors.shape[1])
    # Some rows at a time: vectors may be more than the memory holds twice.
    for start in range(0, len(vectors), _SCALED_ROWS):
        rows = start + np.flatnonzero(present[start : start + _SCALED_ROWS])
        found = vectors[rows]
        if scaling == "l2":
            vectors[rows] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        else:
            vectors[rows] = (found - mean) / unit


_SCALED_ROWS = 4096


def trained_on(provenance: object, data: Path, split: str) -> list[str]:
    """Name the other splits that an encoder behind the vectors was fine-tuned on.

    Args:
        provenance: Of a feature set; that of a fused one holds those of its parts.
        data: The dataset folder.
        split: The split that is none of the others: known by the bytes of its training file, not by
            its name.
    """
    told = _trainings(provenance)
    if not told:
        return []
    folder = available_splits(data).get(split)
    path = find_table(folder, PARTS["train"]) if folder is not None else None
    own = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
    return sorted({str(one.get("split", "?")) for one in told if one["train_sha256"] != own})


def _trainings(provenance: object) -> list[Mapping[str, object]]:
    if isinstance(provenance, Mapping):
        if "train_sha256" in provenance:
            return [provenance]
        provenance = list(provenance.values())
    return (
        [one for part in provenance for one in _trainings(part)]
        if isinstance(provenance, list)
        else []
    )
