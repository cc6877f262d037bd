"""Questions: designs whose runs answer them, and the factors that they are about.

A question file has `title`, `question`, `designs` (a recipe with lists each, by name), `ask` (the
factors, each with a reference), `metrics`, and what differs by dataset under `datasets`. Every
level has the same budget: the first seed searches the grid, if there is one, and further seeds
train what it chose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmbench.analysis.effects import Contrast, key_of
from mmbench.config import Recipe
from mmbench.errors import ToolError, UsageError, first_problem
from mmbench.metrics import spelled
from mmbench.models import ModelConfig, model_class
from mmbench.models.start import StartFrom
from mmbench.runs.recipe_lists import (
    OF_CONTENT,
    Plan,
    Planned,
    expand,
    read_mapping,
)

KIND = "data"
"""The level of a run that says on what it was made; only runs of one kind are paired."""

DESIGN = "design"
"""The level that is its design's name: designs differ in more than factors, so pairs have one."""

_MATERIAL = ("data", "split", "seed")  # what a page is divided by, or takes means over


class Asked(BaseModel):
    """A factor that a question is about.

    Attributes:
        factor: A recipe key or model setting that has several values in a design, or `model`.
        reference: The value that the others are compared with.
        by: Factors at whose every level the comparison is made separately.
        gain_over: A level without what the reference gains; the page then says how much of the gain
            each level keeps.
        instead: Levels that are another model: `{ids only: {vbpr: bpr-mf}}` takes BPR-MF's runs as
            what VBPR would be at that level.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: str
    reference: Any
    by: tuple[str, ...] = ()
    gain_over: Any = None
    instead: dict[str, dict[str, str]] = {}

    @field_validator("by", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _can_be_paired(self) -> Asked:
        for name in (self.factor, *self.by):
            if name in _MATERIAL:
                raise ValueError(f"{name} is no factor to ask about: a page has a part for each")
        if self.factor in self.by:
            raise ValueError(f"by: {self.factor} is the factor itself")
        return self


class Question(BaseModel):
    """A question, and how to answer it.

    Attributes:
        title: Heading of the page.
        question: The question in words.
        designs: Recipes with lists, by name. `start_from: @NAME` names the run of another design
            with the same model and seed.
        ask: The factors.
        metrics: Metrics that are tested; the first one makes the verdict.
        also: Metrics that are shown only.
        curve: A factor with numbers: the tables have a column for each, the curves their axis.
        margin: Differences that are no effect, as a share of the reference's value.
        cost: Whether the tables have the CPU seconds of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    designs: dict[str, dict[str, Any]] = Field(min_length=1)
    ask: tuple[Asked, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = Field(("Recall@20",), min_length=1)
    also: tuple[str, ...] = ()
    curve: str | None = None
    margin: float = Field(0.02, gt=0, lt=1)
    cost: bool = False

    @field_validator("metrics", "also")
    @classmethod
    def _spelled(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(spelled, names)))


@dataclass(frozen=True, eq=False)
class Cell:
    """One run that a question needs.

    Attributes:
        design: Its design's name.
        recipe: Its recipe; of a search, as it was asked for.
        levels: Its level of every factor of the question, the model's name, and not the seed.
    """

    design: str
    recipe: Recipe
    levels: Mapping[str, Any]

    @property
    def seed(self) -> int | None:
        """The seed; None for a model without randomness."""
        return self.recipe.seed if model_class(self.recipe.model).uses_seed else None


@dataclass(frozen=True, eq=False)
class Planning:
    """All that a question asks for.

    Attributes:
        cells: The runs; equal ones of several designs once.
        factors: Names and levels of everything that varies, the seed not, in order of the file.
        notes: What is left out, by design.
    """

    question: Question
    cells: Sequence[Cell]
    factors: Mapping[str, Sequence[Any]]
    notes: Sequence[str]

    def contrasts(self, one: Asked, kinds: Sequence[str]) -> list[Contrast]:
        """Every level of a factor against its reference, by kind and at each level of `by`."""
        return [
            Contrast(
                one.factor, level, self.level(one.factor, one.reference), {KIND: kind, **where}
            )
            for kind in kinds
            for where in self._places(one.by)
            for level in (*self.factors[one.factor], *one.instead)
            if key_of(level) != key_of(self.level(one.factor, one.reference))
        ]

    def level(self, factor: str, given: Any) -> Any:
        """Return the level that a file means, which may be written otherwise: `{visual: 0}`, `{}`.

        Raises:
            UsageError: There is none.
        """
        levels = self.factors[factor]
        meant = key_of(_spelled_level(factor, given))
        for level in levels:
            if key_of(_spelled_level(factor, level)) == meant:
                return level
        known = ", ".join(map(in_words, levels))
        raise UsageError(f"ask: {factor} has no level {in_words(given)}; it has {known}")

    def _places(self, by: Sequence[str]) -> Iterator[dict[str, Any]]:
        for levels in itertools.product(*(self.factors[name] for name in by)):
            yield dict(zip(by, levels, strict=True))


def read_question(path: Path, dataset: str) -> Question:
    """Read a question, with what its file has for a dataset of that name.

    Under `datasets`, its name may replace any key; in its `designs`, `every` adds keys to each
    design, and the name of a design to that one; null takes a key, or the design, away.

    Raises:
        DataError: The file can't be read.
        UsageError: It is no question; the message names the key.
    """
    values = read_mapping(path, "a question", "title: Early or late fusion")
    differing = values.pop("datasets", None) or {}
    try:
        if not isinstance(differing, Mapping):
            raise UsageError("datasets: expected names of datasets and what differs there")
        own = dict(differing.get(dataset) or {})
        designs = _designs(values.get("designs"), own.pop("designs", None) or {})
        return Question(**{**values, **own, "designs": designs})
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, 'question')}") from error
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path}: not a question: {str(error).splitlines()[0]}") from error


def _designs(given: Any, own: Any) -> Any:
    """Return the designs with the keys that a dataset adds or takes away."""
    if not isinstance(given, Mapping) or not isinstance(own, Mapping):
        return given
    out: dict[str, Any] = {}
    for name, design in given.items():
        if (name in own and own[name] is None) or not isinstance(design, Mapping):
            if name not in own:
                out[name] = design  # refused by `Question`
            continue
        merged = {**design, **(own.get("every") or {}), **(own.get(name) or {})}
        out[str(name)] = {key: value for key, value in merged.items() if value is not None}
    return out


def plan(
    question: Question,
    data: Path | None,
    *,
    seeds: Sequence[int] = (),
    epochs: int | None = None,
    device: str | None = None,
) -> Planning:
    """Return the runs that answer a question.

    Args:
        question: The question.
        data: Dataset folder of the designs that name none.
        seeds: Instead of those of the designs.
        epochs: At most so many, for a quick look.
        device: Instead of the designs'.

    Raises:
        UsageError: A design is no recipe, or a factor does not vary.
    """
    for name in question.designs:
        depth_of(question, name)  # refuses what starts from nothing
    plans: dict[str, Plan] = {}
    for name, design in question.designs.items():
        values = {**({"data": str(data)} if data else {}), **design}
        values |= {"seed": list(seeds)} if seeds else {}
        values |= {"device": device} if device else {}
        try:
            plans[name] = expand(values)
        except UsageError as error:
            raise UsageError(f"designs.{name}: {error}") from error
    varying = _varying([run for one in plans.values() for run in one.runs])
    cells: dict[str, Cell] = {}
    for name, one in plans.items():
        for run in one.runs:
            recipe = _shortened(run.recipe, epochs)
            levels = {factor: _level(recipe, factor, run.levels) for factor in varying}
            known = {factor: level for factor, level in levels.items() if level is not _ABSENT}
            cells.setdefault(key_of(recipe.dump()), Cell(name, recipe, known))
    notes = [f"{name}: {one.note}" for name, one in plans.items() if one.note]
    factors = {
        factor: list({key_of(c.levels[factor]): c.levels[factor] for c in cells.values()
                      if factor in c.levels}.values())
        for factor in varying
    }  # fmt: skip
    planning = Planning(question, list(cells.values()), factors, notes)
    _check(planning)
    return planning


_ABSENT = object()


def _varying(runs: Sequence[Planned]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.levels if name not in _MATERIAL)
    return ["model", *(name for name in names if name != "model")]


def _level(recipe: Recipe, factor: str, given: Mapping[str, Any] | None = None) -> Any:
    """Return a recipe's level of a factor as JSON values; `_ABSENT` if it means nothing to it.

    A text is as the file has it: `pagerank`, not the policy with all of its settings.
    """
    if factor in Recipe.model_fields:
        if factor in (*OF_CONTENT, "missing", "scaling") and not recipe.loads_features:
            return _ABSENT
        level = (given or {}).get(factor)
        if factor == "mask":
            level = dict(recipe.treatment.mask)  # without zero shares
        elif not isinstance(level, str):
            level = recipe.treatment.missing if factor == "missing" else getattr(recipe, factor)
        return level.run if isinstance(level, StartFrom) else level
    if factor in ModelConfig.model_fields and not model_class(recipe.model).trained:
        return _ABSENT
    return recipe.settings.model_dump(mode="json").get(factor, _ABSENT)


def _spelled_level(factor: str, given: Any) -> Any:
    """Return a value of a recipe's key as a recipe has it: without the zero shares of a mask."""
    if factor not in Recipe.model_fields:
        return given
    try:
        return _level(Recipe(model="vbpr", settings={}, **{factor: given}), factor)
    except (ValidationError, TypeError, ToolError):
        return given


def _shortened(recipe: Recipe, epochs: int | None) -> Recipe:
    if epochs is None or recipe.settings.epochs <= epochs:
        return recipe
    settings = recipe.settings.model_copy(update={"epochs": epochs})
    return recipe.model_copy(update={"settings": settings})


def _check(planning: Planning) -> None:
    """Refuse a question whose factors do not vary, or whose references are no levels."""
    question, factors = planning.question, planning.factors
    for one in question.ask:
        for name in (one.factor, *one.by):
            if len(factors.get(name, ())) < 2:
                known = ", ".join(name for name, levels in factors.items() if len(levels) > 1)
                told = f"ask: {name} does not vary in any design"
                raise UsageError(f"{told}; what does: {known or 'nothing'}")
        planning.level(one.factor, one.reference)
        if one.gain_over is not None and one.gain_over not in one.instead:
            planning.level(one.factor, one.gain_over)
        for model in {m for pairs in one.instead.values() for pair in pairs.items() for m in pair}:
            if model not in factors["model"]:
                raise UsageError(f"ask: instead: no design has a run of {model}")
    if question.curve is not None:
        levels = factors.get(question.curve, ())
        if len(levels) < 2 or any(number_of(level) is None for level in levels):
            raise UsageError(f"curve: {question.curve} is no factor with two numbers or more")
    for cell in planning.cells:
        known_metrics = {
            f"{name}@{k}"
            for name in cell.recipe.evaluation.metrics
            for k in cell.recipe.evaluation.cutoffs
        }
        for metric in (*question.metrics, *question.also):
            if metric not in known_metrics:
                told = f"metrics: {metric} is not among those of design {cell.design}"
                raise UsageError(f"{told}; add it to its evaluation, metrics and cutoffs")


def depth_of(question: Question, name: str, seen: tuple[str, ...] = ()) -> int:
    """Return how many designs a design's runs start from, one after the other."""
    given = question.designs[name].get("start_from")
    sources = [
        one[1:]
        for one in (given if isinstance(given, list) else [given])
        if isinstance(one, str) and one.startswith("@")
    ]
    for source in sources:
        if source not in question.designs or source in (*seen, name):
            told = "that is no other design" if source not in question.designs else "in a circle"
            raise UsageError(f"designs.{name}: start_from: @{source}: {told}")
    return max((1 + depth_of(question, one, (*seen, name)) for one in sources), default=0)


def number_of(level: Any) -> float | None:
    """Return the number that a level stands for: of a mask, its largest share; None for others."""
    if isinstance(level, bool):
        return None
    if isinstance(level, int | float):
        return float(level)
    if level is None or level == {}:
        return 0.0
    if isinstance(level, Mapping):
        numbers = [number_of(one) for one in level.values()]
        known = [one for one in numbers if one is not None]
        return max(known) if len(known) == len(numbers) else None
    return None


def in_words(level: Any) -> str:
    """Return a level as text: `visual+textual 0.3`, `visual=resnet50`, `none`."""
    if level is None or level == {}:
        return "none"
    if isinstance(level, Mapping):
        values = list(dict.fromkeys(map(in_words, level.values())))
        if len(values) == 1 and len(level) > 1:
            return f"{'+'.join(map(str, level))} {values[0]}"
        return ", ".join(f"{name} {in_words(one)}" for name, one in level.items())
    if isinstance(level, list | tuple):
        return "+".join(map(in_words, level))
    return f"{level:g}" if isinstance(level, float) else str(level)
