"""Studies: one dataset, several models with their grids or their known best settings, and the values published for them.

A study says what a paper did, so that it can be done again: `best` trains each model with its
published settings for exactly the published number of epochs; `grid` tries the published grid and
lets validation choose. The first seed searches; further seeds train what it chose, so that every
model has the same budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmbench.config import Evaluation, Recipe, make_settings, setting_name
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.metrics import resolve
from mmbench.models import MODELS, model_class
from mmbench.progress import Progress
from mmbench.runs import run as experiment
from mmbench.runs.inputs import Loader
from mmbench.runs.parallel_training import train_ahead
from mmbench.runs.run import Result

Protocol = Literal["best", "grid"]


class ModelPlan(BaseModel):
    """What a study does with one model.

    Attributes:
        fixed: Settings that are not searched.
        grid: Settings and the values to try.
        best: Settings that were found best before, `epochs` among them; empty where nothing is
            known.
        epochs: Epochs of each trial of the grid.
        published: `@20: {Recall: …}`: values to compare with, by cut-off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed: dict[str, Any] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    best: dict[str, Any] = {}
    epochs: int | None = Field(None, ge=1)
    published: dict[str, dict[str, float]] = {}

    @property
    def values(self) -> dict[str, float]:
        """The published values as `Recall@20` to value."""
        return {
            f"{resolve([name])[0].name}{cutoff}": value
            for cutoff, values in self.published.items()
            for name, value in values.items()
        }


class Study(BaseModel):
    """A study of one dataset.

    Attributes:
        dataset: The dataset's name.
        fetch: What `mmx fetch` calls it, where it can.
        features: Feature sets, modality to name.
        split: Name of the split.
        split_rule: How that split is made of the interactions where the dataset does not have it:
            `random:TEST,VALID,SEED` per user, or `eighths:SEED`.
        select_by: Validation metric that chooses.
        every: Epochs between validations while searching.
        patience: Stop a trial after so many validations without improvement.
        models: What is done with which model, in the order of the tables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    fetch: str | None = None
    features: dict[str, str] = {}
    split: str | None = None
    split_rule: str | None = Field(None, pattern=r"^(random:0?\.\d+,0?\.\d+,\d+|eighths:\d+)$")
    select_by: str = "Recall@20"
    every: int = Field(10, ge=1)
    patience: int | None = Field(None, ge=1)
    models: dict[str, ModelPlan] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> Study:
        for name, plan in self.models.items():
            if name not in MODELS:
                raise ValueError(str(unknown_name("model", name, MODELS)))
            for key in (*plan.fixed, *plan.grid, *plan.best):
                setting_name(name, key)
            for cutoff in plan.published:
                if not (cutoff.startswith("@") and cutoff[1:].isdigit()):
                    raise ValueError(f"published: {cutoff!r} must look like @20")
            _ = plan.values  # every metric exists
        return self

    def recipe(
        self,
        model: str,
        protocol: Protocol,
        *,
        data: Path,
        seed: int,
        split: str | None = None,
        features: Mapping[str, str] | None = None,
        epochs: int | None = None,
        device: str = "auto",
    ) -> Recipe:
        """The recipe of one model.

        Args:
            model: One of the study's models.
            protocol: `best` or `grid`.
            data: Dataset folder.
            seed: The run's seed.
            split: Another split than the study's.
            features: Other feature sets than the study's.
            epochs: Fewer or more epochs, for a quick look.
            device: Where to train.

        Raises:
            UsageError: Nothing is known to be best, or a setting is out of range.
        """
        plan, settings = self.models[model], dict(self.models[model].fixed)
        kind = model_class(model)
        trained = kind.trained
        if protocol == "best" and trained:
            if not plan.best:
                raise UsageError(
                    f"{self.dataset}: no best settings of {model} are known; use the protocol grid"
                )
            settings |= plan.best
        elif plan.epochs is not None:
            settings["epochs"] = plan.epochs
        if epochs is not None and trained:
            settings["epochs"] = epochs
        every = self.every
        if (
            protocol == "best" and trained
        ):  # validated once, when the published number of epochs is over
            every = int(settings["epochs"])
        evaluation = Evaluation(
            protocol="paper",
            select_by=self.select_by,
            every=every,
            patience=self.patience if protocol == "grid" else None,
        )
        return Recipe(
            data=str(data),
            split=split or self.split,
            model=model,
            features=dict(self.features if features is None else features)
            if kind.uses_features
            else {},
            seed=seed,
            device=device,
            settings=make_settings(model, settings),
            grid=dict(plan.grid) if protocol == "grid" else {},
            evaluation=evaluation,
        )


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        DataError: The file cannot be read.
        UsageError: It is no study; the message says which key is wrong.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Study(**values)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); studies are in recipes/"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(
            f"{path}: {where or 'study'}: {problem['msg'].removeprefix('Value error, ')}"
        ) from error
    except (yaml.YAMLError, TypeError, UsageError) as error:
        raise UsageError(f"{path}: not a study: {str(error).splitlines()[0]}") from error


def run_study(
    study: Study,
    protocol: Protocol,
    *,
    data: Path,
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    progress: Progress,
    jobs: int = 1,
    **options: Any,
) -> Iterator[tuple[str, list[Result]]]:
    """Do what is left of a study, model by model.

    Args:
        study: What to do.
        protocol: `best` or `grid`.
        data: Dataset folder.
        out: Where run folders go; finished runs there are read, not repeated.
        models: Which of the study's models, in order.
        seeds: Seeds; with `grid` the first one searches.
        progress: Where to report to.
        jobs: Trainings at once, see `mmbench.runs.parallel_training`.
        options: `split`, `features`, `epochs`, `device` of `Study.recipe`.

    Yields:
        Each model and its results, in the order of the seeds.

    Raises:
        UsageError: A model is not in the study.
        DataError: Dataset or features are absent or unreadable.
        TrainingError: A training diverged.
    """
    for model in models:
        if model not in study.models:
            raise unknown_name(f"model of the study {study.dataset}", model, study.models)
    load = Loader(progress)

    def ahead(recipes: Iterable[Recipe]) -> None:
        if jobs > 1:
            train_ahead([load(recipe) for recipe in recipes], out, jobs=jobs, progress=progress)

    def recipe_of(model: str, seed: int) -> Recipe:
        return study.recipe(model, protocol, data=data, seed=seed, **options)

    def do(recipe: Recipe) -> Result:
        resolved, inputs = load(recipe)
        return experiment.run(
            resolved, inputs, experiment.run_folder(out, resolved, inputs), progress=progress
        )

    own = {model: seeds if model_class(model).uses_seed else seeds[:1] for model in models}
    searches = {model for model in models if recipe_of(model, seeds[0]).grid}
    first = {
        model: [recipe_of(model, seed) for seed in own[model][: 1 if model in searches else None]]
        for model in models
    }
    ahead(recipe for recipes in first.values() for recipe in recipes)
    for model in models:
        results = [do(recipe) for recipe in first[model]]
        # After a search the other seeds take what it chose.
        chosen = results[0].recipe.settings.model_dump()
        others = [recipe_of(model, seed).trial(chosen) for seed in own[model][len(results) :]]
        ahead(others)
        results += [do(recipe) for recipe in others]
        yield model, results
