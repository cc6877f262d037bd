"""Load what recipes name, split, content and side data, once for recipes on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmbase.layout import counted
from mmbase.progress import Progress
from mmbench.config import Evaluation, Recipe
from mmbench.core.interactions import HeldOut
from mmbench.data.dataset import Split, load_split
from mmbench.data.defaults import remember_split
from mmbench.data.features import (
    ItemFeatures,
    choose_sets,
    load_features,
    remember_features,
    trained_on,
)
from mmbench.data.files import available_splits, known_columns
from mmbench.data.restriction import with_content
from mmbench.data.reviews import load_reviews
from mmbench.data.tables import UNSURE
from mmbench.data.treatment import Treatment
from mmbench.errors import UsageError
from mmbench.evaluation.protocol import Setting, side_data
from mmbench.models import model_class
from mmbench.runs.start import with_digest


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a recipe names, loaded.

    Attributes:
        split: The split.
        features: The content of its items.
        evaluation: Digests of what else the evaluation looks at: the catalogue, vectors,
            categories, the order of histories.
        diversity_features: Which vectors distances are measured with, spelled out; None for none.
    """

    split: Split
    features: Mapping[str, ItemFeatures]
    evaluation: Mapping[str, str] = field(default_factory=dict)
    diversity_features: str | None = None

    def setting(self, evaluation: Evaluation) -> Setting:
        """Return all but the test rows, with how to rank and score, whatever makes the lists."""
        return Setting(self.split.training, evaluation, self.features)

    def setting_of(self, recipe: Recipe) -> Setting:
        """Return the same for a recipe's model, or for the trials of its grid."""
        model = model_class(recipe.model)
        unseen = any(model.represents_unseen(trial.settings) for trial in recipe.trials())
        return replace(self.setting(recipe.evaluation), trained_only=not unseen)

    @property
    def digests(self) -> dict[str, Any]:
        """What a run's name depends on besides its recipe."""
        return {
            "training": self.split.training.digest,
            "test": self.split.test.digest,
            "features": {modality: features.digest for modality, features in self.features.items()},
            **({"evaluation": dict(self.evaluation)} if self.evaluation else {}),
        }


def digests_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Inputs.digests` of a finished run, from its `run.json`."""
    digests = record["protocol"].get("digests")
    return {
        "training": record["dataset"]["digest"],
        "test": record["dataset"]["test_digest"],
        "features": {modality: one["digest"] for modality, one in record["features"].items()},
        **({"evaluation": digests} if digests else {}),
    }


def load_inputs(recipe: Recipe, like: Inputs | None = None) -> tuple[Recipe, Inputs]:
    """Load what a recipe names, and spell out in it where the data are, split and feature sets.

    Args:
        recipe: What is wanted.
        like: Inputs of another recipe on the same data, split and feature sets: what it holds is
            not read again.

    Raises:
        DataError: The dataset or the store lacks what the recipe needs, or the run that it starts
            from is not finished.
        UsageError: The model needs categories, and no column is named.
    """
    if model_class(recipe.model).uses_categories and recipe.evaluation.categories is None:
        raise UsageError(
            f"{recipe.model}: needs the items' categories; say which column of the items table has "
            "them: --categories COLUMN"
        )
    if recipe.start_from is not None:
        recipe = recipe.model_copy(update={"start_from": with_digest(recipe.start_from)})
    data = Path(recipe.data)
    if like is None:
        catalogue = recipe.evaluation.whole_catalogue
        split = load_split(data, recipe.split, recipe.columns, catalogue=catalogue)
    else:
        split = like.split
    features: Mapping[str, ItemFeatures] = {}
    treatment = recipe.treatment
    if recipe.loads_features:
        features = like.features if like is not None else {}
        features = features or _features(recipe, treatment, data, split)
        if treatment.policy.DROPS and like is None:
            columns, catalogue = recipe.columns, recipe.evaluation.whole_catalogue
            whole = split
            split = with_content(data, whole, features, columns, catalogue=catalogue)
            if split is not whole:  # whom a mask took from is gone
                features = _features(recipe, replace(treatment, mask={}), data, split)
    if like is None:
        columns = known_columns(data, recipe.columns)
        evaluation, split, digests = side_data(data, recipe.evaluation, split, columns)
    else:
        digests = dict(like.evaluation)
        evaluation = recipe.evaluation.model_copy(
            update={"diversity_features": like.diversity_features}
        )
    if model_class(recipe.model).in_order:
        digests["histories"] = split.training.order_digest
    elif not evaluation.next_item:  # `like` may be of a model that looks at the order
        digests.pop("histories", None)
    found = {
        "data": str(data.absolute()),  # a run can be used from elsewhere
        "split": split.training.split,
        "features": {modality: one.name for modality, one in features.items()},
        "evaluation": evaluation,
    }
    if "absent" in treatment.control.values():  # it has a set all the same
        chosen = choose_sets(data / "features", recipe.features, recipe.content_of)
        found["features"] = chosen[0]
    recipe = recipe.model_copy(update=found)
    return recipe, Inputs(split, features, digests, evaluation.diversity_features)


def require_modalities(recipes: Iterable[Recipe]) -> None:
    """Refuse masks and controls of modalities that are not used, before anything is trained.

    Raises:
        UsageError: There is one.
        DataError: There are no features.
    """
    sets: dict[tuple[str, str], Mapping[str, str]] = {}
    for recipe in recipes:
        treatment = recipe.treatment
        if treatment.mask or treatment.control:
            source = recipe.content_of
            key = recipe.data, source + repr(sorted(recipe.features.items()))
            if key not in sets:
                sets[key] = choose_sets(Path(recipe.data) / "features", recipe.features, source)[0]
            treatment.require(sets[key])


def _features(
    recipe: Recipe, treatment: Treatment, data: Path, split: Split
) -> dict[str, ItemFeatures]:
    """The model's content, with a note where an encoder may have seen what is held out."""
    training = split.training
    if recipe.content_of == "interaction":
        features = load_reviews(data / "features", split, recipe.features, treatment)
    else:
        features = load_features(
            data / "features",
            training.item_ids.tolist(),
            recipe.features,
            n_trained=training.n_trained,
            treatment=treatment,
            train=training.train,
        )
    for modality, one in features.items():
        foreign = trained_on(one.provenance, data, training.split)
        if foreign:
            seen = (
                f"{one.name}: its encoder was trained on split {', '.join(foreign)} and not on "
                "this one, so it may have seen pairs that are held out here"
            )
            features[modality] = replace(one, note="; ".join(filter(None, (one.note, seen))))
    return features


def remember(asked: Recipe, loaded: Recipe) -> None:
    """Keep the split and feature sets of a training as the dataset's defaults.

    Args:
        asked: The recipe as given.
        loaded: The same with everything spelled out.
    """
    data = Path(loaded.data)
    if loaded.split is not None:
        named = asked.split is not None
        remember_split(data, loaded.split, available_splits(data), named=named)
    if loaded.features:
        named, source = bool(asked.features), loaded.content_of
        remember_features(data / "features", loaded.features, named=named, source=source)


def coverage(inputs: Inputs, evaluation: Evaluation) -> list[str]:
    """List what was read: the split's counts, each modality's coverage, and what was left out."""
    training, test = inputs.split.training, inputs.split.test
    train, present = training.train, inputs.setting(evaluation).present
    n_valid, n_test = (
        training.of_trained_users(rows).users.size for rows in (training.valid, test.rows)
    )
    lines = [
        f"data: {training.name}, split {training.split}: {counted(train.n_users, 'user')}, "
        f"{counted(train.n_items, 'item')}; {train.n_edges:,} train, {n_valid:,} valid, "
        f"{n_test:,} test",
        *(f"data: {note}" for note in training.notes),
        *_relevance(training.valid, evaluation.threshold),
    ]
    for modality, one in inputs.features.items():
        if one.source == "interaction":
            lines.append(f"{modality}: {_of_pairs(one)}")
            if one.note:
                lines.append(f"{modality}: {one.note}")
            continue
        n_present = int(one.present[: train.n_items].sum())
        used = int(present[modality].sum()) + one.n_masked
        if evaluation.whole_catalogue:
            used += one.n_masked_others
        unused = counted(one.n_stored - used, "vector")
        lines.append(
            f"{modality}: {one.name}, {one.vectors.shape[1]:,} numbers per item: {n_present:,} of "
            f"{train.n_items:,} items have a vector, "
            f"{train.n_items - n_present - one.n_masked - one.corrupt:,} missing, "
            f"{one.corrupt:,} corrupt{_treated(one, n_present)}; {unused} of other items unused"
        )
        if one.note:
            lines.append(f"{modality}: {one.note}")
    return lines


def _of_pairs(one: ItemFeatures) -> str:
    """Whose vectors are read of a set of interactions, and whose are not."""
    n_pairs, n_present = one.present.size, int(one.present.sum())
    unread = one.n_stored - n_present - one.n_masked
    absent = n_pairs - n_present - one.n_masked - one.corrupt
    return (
        f"{one.name}, {one.vectors.shape[1]:,} numbers per interaction: {n_present:,} of "
        f"{n_pairs:,} training pairs have a vector, {absent:,} missing, {one.corrupt:,} corrupt"
        f"{_treated(one, n_present)}; {counted(unread, 'vector')} of held-out and other pairs not "
        "read"
    )


def _treated(one: ItemFeatures, n_present: int) -> str:
    """What a mask and a control did to a modality, for its line."""
    told = ""
    if one.n_masked:
        share = one.n_masked / (one.n_masked + n_present)
        told = f", {one.n_masked:,} masked ({share:.1%} of those with a vector)"
    return told + (f"; {one.control} in place of the real ones" if one.control else "")


def _relevance(held_out: HeldOut, threshold: float) -> list[str]:
    """Return a note on which held-out rows are relevant, if ratings differ."""
    ratings = held_out.ratings
    low, high = float(ratings.min()), float(ratings.max())
    if low == high:
        return []
    relevant = int((ratings >= threshold).sum())
    share = "all" if relevant == ratings.size else f"{relevant:,}"
    told = (
        f"held-out rows count as relevant from {threshold:g} on: {share} of {ratings.size:,} valid"
    )
    return [
        f"ratings: {low:g} to {high:g}; {told}, and the more the higher in nDCG; choose with "
        "--threshold. Training takes rows of any rating; `mmbench data split --filter "
        "min-rating:N` leaves some out"
    ]


class Loader:
    """Loads the inputs of recipes in turn; neighbours on the same data share what was loaded.

    Args:
        progress: Told what was read, each line once.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: tuple[Recipe, Inputs] | None = None
        self._said: set[str] = set()

    def __call__(self, recipe: Recipe) -> tuple[Recipe, Inputs]:
        """Return the resolved recipe and its inputs; see `load_inputs`."""
        last = self._last
        like = last[1] if last is not None and same_data(last[0], recipe) else None
        resolved, inputs = load_inputs(recipe, like)
        self._last = recipe, inputs
        for line in coverage(inputs, resolved.evaluation):
            if line not in self._said:
                (self._progress.warn if UNSURE in line else self._progress.note)(line)
                self._said.add(line)
        return resolved, inputs


def same_data(one: Recipe, other: Recipe) -> bool:
    """Whether what one recipe loads serves the other, which may use no content at all."""
    names = ["data", "columns", "split"]
    if one.loads_features and other.loads_features:
        if one.content_of != other.content_of:
            return False
        names.append("treatment")
    elif one.treatment.policy.DROPS or other.treatment.policy.DROPS:
        return False
    if one.features and other.features:
        names.append("features")
    of_evaluation = ("protocol", "diversity_features", "categories")
    return all(getattr(one, name) == getattr(other, name) for name in names) and all(
        getattr(one.evaluation, name) == getattr(other.evaluation, name) for name in of_evaluation
    )
