"""Studies: what a paper did on one dataset, and the values that it published.

The protocol `best` trains each model with its published settings for exactly the published number
of epochs; `grid` tries the published grid and lets validation choose. The first seed searches;
further seeds train what it chose, so that every model has the same budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmbench.config import Evaluation, Recipe, for_model, make_settings, setting_name
from mmbench.errors import DataError, UsageError, first_problem, unknown_name
from mmbench.metrics import PAPER, resolve
from mmbench.models import MODELS, model_class
from mmbench.runs.batch import Batch
from mmbench.runs.run import Result

Protocol = Literal["best", "grid"]


class ModelPlan(BaseModel):
    """One model of a study.

    Attributes:
        fixed: Settings that are not searched.
        grid: Settings and the values to try.
        best: Published best settings, `epochs` among them; empty if none are known.
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
        fetch: The dataset's name for `mmx fetch`, if that has it.
        features: Feature sets, modality to name.
        split_rule: How to make that split if the dataset lacks it: `random:TEST,VALID,SEED` per
            user, or `eighths:SEED`.
        select_by: Validation metric that chooses.
        every: Epochs between validations while searching.
        patience: Stop a trial after this many validations without improvement.
        select_decimals: See `Evaluation`.
        metrics: Likewise.
        margin: By how much, as a share, ours may differ from a published value and count as equal;
            None: no verdicts, see `mmbench.analysis.published`.
        models: The models, in the order of the tables.
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
    select_decimals: int | None = Field(None, ge=0)
    metrics: tuple[str, ...] = PAPER
    margin: float | None = Field(None, gt=0, lt=1)
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
            _ = plan.values  # refuses metrics that do not exist
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
        """Return the recipe of one model; split, features and epochs replace the study's.

        Raises:
            UsageError: No best settings are known, or a setting is out of range.
        """
        plan, kind = self.models[model], model_class(model)
        settings = dict(plan.fixed)
        trained, best = kind.trained, protocol == "best"
        if plan.epochs is not None:
            settings["epochs"] = plan.epochs
        if best and trained:
            if not plan.best:
                told = f"no best settings of {model} are known"
                raise UsageError(f"{self.dataset}: {told}; use the protocol grid")
            settings |= plan.best
        # Else the study's rule says when a training stops.
        exact = best and (not trained or "epochs" in plan.best)
        if epochs is not None and trained:
            settings["epochs"] = epochs
        evaluation = Evaluation(
            protocol="paper",
            metrics=self.metrics,
            select_by=self.select_by,
            # Validated once, after the published number of epochs.
            every=int(settings["epochs"]) if exact and trained else self.every,
            patience=None if exact else self.patience,
            select_decimals=self.select_decimals,
        )
        sets = self.features if features is None else features
        return Recipe(
            data=str(data),
            split=split or self.split,
            model=model,
            features=dict(sets) if kind.uses_features else {},
            seed=seed,
            device=device,
            settings=make_settings(model, settings),
            grid={} if best else dict(plan.grid),
            evaluation=evaluation,
        )


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        DataError: The file cannot be read.
        UsageError: It is not a study; the message names the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Study(**values)
    except OSError as error:
        told = f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {told}; studies are in recipes/") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, 'study')}") from error
    except (yaml.YAMLError, TypeError, UsageError) as error:
        raise UsageError(f"{path}: not a study: {str(error).splitlines()[0]}") from error


def with_grid(
    study: Study, grid: Mapping[str, tuple[Any, ...]], models: Sequence[str] | None
) -> Study:
    """The study with other values to try: `reg_weight`, or `lightgcn.reg_weight`, to values.

    Args:
        study: The study.
        grid: Values by setting; those of a setting that a grid has already replace its own.
        models: The models that will be trained; None: all of the study.

    Raises:
        UsageError: A setting belongs to none of the models.
    """
    if not grid:
        return study
    names = [name for name in study.models if models is None or name in models]
    plans = {
        name: plan.model_copy(update={"grid": {**plan.grid, **for_model(name, grid, names)}})
        for name, plan in study.models.items()
        if name in names
    }
    return study.model_copy(update={"models": {**study.models, **plans}})


def run_study(
    study: Study,
    protocol: Protocol,
    batch: Batch,
    models: Sequence[str],
    seeds: Sequence[int],
    **choices: Any,
) -> Iterator[tuple[str, list[Result]]]:
    """Do what is left of a study and yield each model with its results, in the order of the seeds.

    Args:
        study: The study.
        protocol: Published settings, or the published grid.
        batch: Does the runs.
        models: Names of the study's models, in order.
        seeds: With `grid` the first one searches, and the others take what it chose.
        choices: `data`, `split`, `features`, `epochs`, `device` of `Study.recipe`.

    Raises:
        UsageError: A model is not in the study; else see `Batch.run`.
    """
    for model in models:
        if model not in study.models:
            raise unknown_name(f"model of the study {study.dataset}", model, study.models)
    first: dict[str, list[Recipe]] = {}
    rest: dict[str, list[Recipe]] = {}
    for model in models:
        own_seeds = seeds if model_class(model).uses_seed else seeds[:1]
        recipes = [study.recipe(model, protocol, seed=seed, **choices) for seed in own_seeds]
        n_first = 1 if recipes[0].grid else len(recipes)
        first[model], rest[model] = recipes[:n_first], recipes[n_first:]
    batch.train_ahead(recipe for recipes in first.values() for recipe in recipes)
    for model in models:
        results = batch.run(first[model])
        # What the first seed's search chose is every seed's: all models have the same budget.
        chosen = results[0].recipe.settings.model_dump()
        results += batch.run(recipe.trial(chosen) for recipe in rest[model])
        yield model, results
