"""Start a training from a finished run: what of its weights is carried, and whether it fits.

Carried is every weight that belongs to no user and no item (`Recommender.id_weights`): projections,
layers, gates. What belongs to ids starts as in any training, and so does the optimiser. The run
may be on other data; it must be of the same model, and its content of the same encoders
(`data.encoders`), scaled alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmbench.config import Range, Recipe, read_recipe
from mmbench.data.encoders import difference
from mmbench.data.features import ItemFeatures
from mmbench.errors import DataError, UsageError
from mmbench.models import model_class
from mmbench.models.base import Recommender
from mmbench.models.start import StartFrom
from mmbench.runs.folder import RunFolder, digest_of

_SHAPES_NOTHING = ("epochs", "batch_size", "lr")


@dataclass(frozen=True, eq=False)
class Source:
    """A finished run that a training starts from.

    Attributes:
        path: Its folder, absolute.
        recipe: Its recipe, as given.
        record: Its `run.json`.
        weights: What its best epoch's weights are that belong to no user or item, by name.
        digest: Digest of all of that epoch's weights.
    """

    path: Path
    recipe: Recipe
    record: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    digest: str

    @property
    def system(self) -> str:
        """A name like a run folder's, which runs that differ in their seed alone share."""
        data, before = self.record["dataset"], self.record.get("start_from") or {}
        features = {m: one["digest"] for m, one in self.record["features"].items()}
        anyone = self.recipe.model_copy(update={"seed": 0, "start_from": None})
        digest = anyone.digest(data["digest"], features, before.get("system"))
        return f"{data['name']}-{self.recipe.model}-{digest}"

    def require_same(
        self, recipe: Recipe, features: Mapping[str, ItemFeatures], training: str
    ) -> None:
        """Refuse to start another model from this run, or one whose content means something else.

        Args:
            recipe: Of the training.
            features: Its content.
            training: Digest of its training data.

        Raises:
            UsageError: They do not fit; names the first difference.
        """
        model = recipe.model
        if self.recipe.model != model:
            self._refuse(f"it is a run of {self.recipe.model}, and this one is of {model}")
        if not model_class(model).trained:
            self._refuse(f"{model} is not trained, so it has no weights to carry")
        if not self.weights:
            self._refuse(f"every weight of {model} belongs to a user or an item; nothing is left")
        known = self.record["features"]
        if known.keys() != features.keys():
            there, here = (", ".join(one) or "none" for one in (known, features))
            self._refuse(f"its modalities are {there}; here they are {here}")
        if self.recipe.scaling != recipe.scaling:
            self._refuse(f"scaling is {self.recipe.scaling} there and {recipe.scaling} here")
        for modality, one in features.items():
            same = known[modality]["digest"] == one.digest
            provenance = known[modality].get("provenance")
            told = provenance if isinstance(provenance, Mapping) else {}
            if not same and (how := difference(told, one.provenance)):
                self._refuse(f"{modality}: another encoder: {how}")
            same = same and self.record["dataset"]["digest"] == training
            same = same and self.recipe.treatment == recipe.treatment
            if recipe.scaling == "standard" and not same:
                self._refuse(
                    f"{modality}: --scaling standard is fitted on the items of one dataset and "
                    "makes other numbers of the same vector on another; train both with "
                    "--scaling l2 or none"
                )

    def carry(self, model: Recommender, recipe: Recipe) -> dict[str, Any]:
        """Give a model that was just built the weights that belong to no id.

        Returns:
            What is kept in the record: `run`, `digest`, `system`, and names and shapes of the
            weights that are `carried` and of those that start `afresh`.

        Raises:
            UsageError: The model has other such weights.
        """
        shapes = {name: list(weight.shape) for name, weight in model.weights().items()}
        afresh = {name: shape for name, shape in shapes.items() if model.of_ids(name)}
        ours = {name: shape for name, shape in shapes.items() if name not in afresh}
        theirs = {name: list(weight.shape) for name, weight in self.weights.items()}
        for name in dict.fromkeys([*theirs, *ours]):
            if theirs.get(name) != ours.get(name):
                there, here = (_shape(one.get(name)) for one in (theirs, ours))
                why = self._settings(recipe)
                self._refuse(f"{name} is {there} there and {here} here{why}")
        model.start_from(self.weights)
        told = {"run": self.path.name, "digest": self.digest, "system": self.system}
        return {**told, "carried": ours, "afresh": afresh}

    def _settings(self, recipe: Recipe) -> str:
        """The settings that differ and may shape weights, in brackets."""
        there, here = self.record["settings"], recipe.settings.model_dump(mode="json")
        differ = [
            f"{name} is {there.get(name)} there and {value} here"
            for name, value in here.items()
            if name not in _SHAPES_NOTHING and there.get(name) != value
        ]
        return f" ({'; '.join(differ)})" if differ else ""

    def _refuse(self, why: str) -> None:
        raise UsageError(f"start from {self.path}: {why}")


def read_source(start: StartFrom) -> Source:
    """Read the run that a training starts from.

    Raises:
        DataError: It is no finished run, or has changed since a recipe named it.
        TrainingError: Its checkpoint is damaged.
    """
    path = Path(start.run).absolute()
    folder = RunFolder(path)
    if not folder.recipe_path.is_file():
        raise DataError(
            f"start from {path}: no run folder (it has no recipe.yaml); if the run has moved, say "
            "where it is: --start-from DIR, or start_from in the recipe"
        )
    recipe = read_recipe(folder.recipe_path)
    if not folder.complete:
        raise DataError(
            f"start from {path}: the run is not finished; `mmbench train --resume {path}` goes on"
        )
    record, epoch = folder.read_json("run.json"), folder.read_json("metrics.json")["best_epoch"]
    weights = folder.load_checkpoint(epoch)
    digest = digest_of(weights, {"epoch": str(epoch)})
    if start.digest not in ("", digest):
        raise DataError(
            f"start from {path}: the run has changed: its checkpoint's digest is {digest}, and the "
            f"recipe names {start.digest}; restore it, or begin a new run with --start-from"
        )
    of_ids = model_class(recipe.model).of_ids
    carried = {name: weight for name, weight in weights.items() if not of_ids(name)}
    return Source(path, recipe, record, carried, digest)


def with_digest(start: StartFrom) -> StartFrom:
    """Return the same with the folder's whole path and the run's digest; errors as `read_source`.

    A digest that is there already is checked when something is trained, and not here: a finished
    run can be used without the one that it started from.
    """
    path = Path(start.run).absolute()
    return StartFrom(run=str(path), digest=start.digest or read_source(start).digest)


def shapes_of(recipe: Recipe) -> list[Recipe]:
    """Return a recipe for each combination of settings that may shape weights otherwise.

    Of a search: its bounds and choices, one setting at a time.
    """
    trials = recipe.trials()
    for name, domain in recipe.search.space.items() if recipe.search is not None else ():
        values = domain.probes() if isinstance(domain, Range) else domain
        trials += [recipe.trial({name: value}) for value in values]
    distinct = {
        json.dumps(one.settings.model_dump(mode="json", exclude=set(_SHAPES_NOTHING))): one
        for one in trials
    }
    return list(distinct.values())


def in_a_sentence(told: Mapping[str, Any]) -> str:
    """Return what `Source.carry` tells, in one line."""
    parts = [
        f"{what}: {', '.join(f'{name} {_shape(one)}' for name, one in told[what].items()) or '-'}"
        for what in ("carried", "afresh")
    ]
    return f"start from {told['run']}; {'; '.join(parts)}"


def _shape(shape: list[int] | None) -> str:
    return "absent" if shape is None else f"({', '.join(f'{n:,}' for n in shape)})"
