"""What a recipe names, loaded: split, features and side data; what recipes on the same data share is loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmbase.progress import Progress
from mmbench.config import Evaluation, Recipe
from mmbench.data.dataset import Split, load_split
from mmbench.data.features import ItemFeatures, load_content, load_features
from mmbench.data.leakage import trained_on
from mmbench.data.tables import read_categories
from mmbench.models import model_class


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a recipe names, loaded.

    Attributes:
        split: The split.
        features: The features of its items.
        evaluation: Digests of what else the evaluation looks at: the catalogue, vectors,
            categories.
        diversity_features: Which vectors distances are measured with, spelled out; None for none.
    """

    split: Split
    features: Mapping[str, ItemFeatures]
    evaluation: Mapping[str, str] = field(default_factory=dict)
    diversity_features: str | None = None

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
    """`Inputs.digests` of a finished run, from its `run.json`."""
    digests = record["protocol"].get("digests")
    return {
        "training": record["dataset"]["digest"],
        "test": record["dataset"]["test_digest"],
        "features": {modality: one["digest"] for modality, one in record["features"].items()},
        **({"evaluation": digests} if digests else {}),
    }


def load_inputs(recipe: Recipe, like: Inputs | None = None) -> tuple[Recipe, Inputs]:
    """Load what a recipe names, and spell out in the recipe what it left to be found: split and feature sets.

    Args:
        recipe: What is wanted.
        like: Inputs of another recipe on the same data, split and feature sets: what it holds is
            not read again.

    Raises:
        DataError: The dataset or the store lacks what the recipe needs.
    """
    data = Path(recipe.data)
    strict = recipe.evaluation.protocol == "strict"
    split = (
        load_split(data, recipe.split, recipe.columns, catalogue=strict)
        if like is None
        else like.split
    )
    features: Mapping[str, ItemFeatures] = {}
    if model_class(recipe.model).uses_features:
        if like is not None and like.features:
            features = like.features
        else:
            features = load_features(
                data / "features",
                split.training.item_ids.tolist(),
                recipe.features,
                missing=recipe.missing,
                scaling=recipe.scaling,
                others=split.training.other_item_ids if strict else (),
            )
            features = {
                modality: _warned(one, data, split.training.split)
                for modality, one in features.items()
            }
    names = {modality: one.name for modality, one in features.items()}
    if like is None:
        evaluation, split, digests = side_data(data, recipe.evaluation, split, recipe.columns)
    else:
        digests = dict(like.evaluation)
        evaluation = recipe.evaluation.model_copy(
            update={"diversity_features": like.diversity_features}
        )
    recipe = recipe.model_copy(
        update={"split": split.training.split, "features": names, "evaluation": evaluation}
    )
    return recipe, Inputs(split, features, digests, evaluation.diversity_features)


def _warned(features: ItemFeatures, data: Path, split: str) -> ItemFeatures:
    """The features, with a note where their encoder may have seen what is held out."""
    foreign = trained_on(features.provenance, data, split)
    if not foreign:
        return features
    seen = (
        f"{features.name}: its encoder was trained on split {', '.join(foreign)} and not on this "
        "one, so it may have seen "
        "pairs that are held out here"
    )
    return replace(features, note="; ".join(filter(None, (features.note, seen))))


def side_data(
    data: Path, evaluation: Evaluation, split: Split, columns: Mapping[str, str] | None
) -> tuple[Evaluation, Split, dict[str, str]]:
    """The split with what the metrics need besides it, the choice of vectors spelled out, and digests."""
    training, digests = split.training, {}
    if evaluation.protocol == "strict":
        digests["catalogue"] = split.catalogue_digest
    if evaluation.categories is not None:
        topics, digests["categories"] = read_categories(
            data, evaluation.categories, training.all_item_ids, (columns or {}).get("item_id")
        )
        training = replace(training, topics=topics)
    if evaluation.diversity_features is not None:
        content, chosen, digests["diversity_features"] = load_content(
            data / "features",
            evaluation.diversity_features,
            training.item_ids.tolist(),
            training.other_item_ids,
        )
        training = replace(training, content=content)
        evaluation = evaluation.model_copy(update={"diversity_features": chosen})
    return evaluation, replace(split, training=training), digests


def coverage(inputs: Inputs) -> list[str]:
    """What was read, one line each: the split's counts, each modality's coverage of the items, and what was left out."""
    training, test = inputs.split.training, inputs.split.test
    train = training.train
    lines = [
        f"data: {training.name}, split {training.split}: {train.n_users:,} users, "
        f"{train.n_items:,} items; "
        f"{train.n_edges:,} train, {training.valid.users.size:,} valid, {test.rows.users.size:,} "
        "test",
        *(f"data: {note}" for note in training.notes),
    ]
    for modality, one in inputs.features.items():
        absent = int((~one.present).sum())
        lines.append(
            f"{modality}: {one.name}, {one.vectors.shape[1]:,} numbers per item: "
            f"{int(one.present.sum()):,} of "
            f"{one.present.size:,} items have a vector, {absent - one.corrupt:,} missing, "
            f"{one.corrupt:,} corrupt; "
            f"{one.unused:,} vectors of other items unused"
        )
        if one.note:
            lines.append(f"{modality}: {one.note}")
    return lines


class Loader:
    """Loads the inputs of one recipe after the other, those of neighbours on the same data once.

    Args:
        progress: Told what was read, each line once.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: tuple[Recipe, Inputs] | None = None
        self._said: set[str] = set()

    def __call__(self, recipe: Recipe) -> tuple[Recipe, Inputs]:
        """The resolved recipe and its inputs; see `load_inputs`."""
        like = (
            self._last[1] if self._last is not None and same_data(self._last[0], recipe) else None
        )
        resolved, inputs = load_inputs(recipe, like)
        self._last = recipe, inputs
        for line in coverage(inputs):
            if line not in self._said:
                self._progress.note(line)
                self._said.add(line)
        return resolved, inputs


def same_data(one: Recipe, other: Recipe) -> bool:
    """Whether what one recipe loads serves another, too; a model without content has no features to differ in."""
    names = ["data", "columns", "split", "missing", "scaling"] + ["features"] * bool(
        one.features and other.features
    )
    of_evaluation = ("protocol", "diversity_features", "categories")
    return all(getattr(one, name) == getattr(other, name) for name in names) and all(
        getattr(one.evaluation, name) == getattr(other.evaluation, name) for name in of_evaluation
    )
