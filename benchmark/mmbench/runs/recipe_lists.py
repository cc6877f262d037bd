"""Recipes with lists: one file asks for several datasets, models, seeds, treatments of content."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmbench.config import Recipe, for_model, make_recipe, setting_name
from mmbench.data.missing import policy_of
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.models import MODELS, model_class

SINGLE = ("columns", "approximate", "settings", "grid", "search", "evaluation")
"""Keys that have one value, be it a list or a mapping. Every other key may hold several values."""

FACTORS = "factors"
"""Key of model settings whose every value is a run of its own, `fusion: [early, late]`."""

OF_CONTENT = ("features", "mask", "pattern", "mask_seed", "control")
"""Keys that say nothing to a model without content: it runs once, whatever their values."""


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    Attributes:
        recipe: The run.
        levels: The values of the keys and settings that have several in the file, by name; `model`
            and `seed` always.
    """

    recipe: Recipe
    levels: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The runs that a file asks for.

    Attributes:
        runs: In order, the first key outermost.
        refused: Why combinations of values, seeds aside, are left out: their model refuses them.
    """

    runs: Sequence[Planned]
    refused: Sequence[str] = field(default=())

    @property
    def note(self) -> str:
        """What is left out, as a sentence; empty if nothing is."""
        n, kept = len(self.refused), len({_key(_without_seed(one.levels)) for one in self.runs})
        if not n:
            return ""
        return f"{n} of {n + kept} combinations are left out, e.g. {self.refused[0]}"


def read_plan(
    path: Path, note: Callable[[str], object] = lambda text: None, **instead: object
) -> list[Recipe]:
    """Return the runs that a file asks for, in order; a run folder's `recipe.yaml` is such a file.

    With several models `settings`, `grid`, `factors` and `search.space` may name settings that only
    some of them have, and `vbpr.lr` is VBPR's alone, as on the command line. A model without
    randomness runs with the first seed only. Combinations that a model refuses are left out.

    Args:
        path: A YAML file with the keys of `Recipe`, and `factors`.
        note: Called with a sentence on what is left out.
        instead: Values that replace the file's.

    Raises:
        DataError: The file can't be read.
        UsageError: It is not a recipe; the message names the key.
    """
    values = read_mapping(path, "a recipe", "model: vbpr")
    if "models" in values and "dataset" in values:
        raise UsageError(
            f"{path}: a study of published values; run it with `mmbench reproduce {path}`"
        )
    if "ask" in values:
        raise UsageError(f"{path}: a question; answer it with `mmbench ask {path}`")
    try:
        plan = expand({**values, **instead})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if plan.note:
        note(f"{path}: {plan.note}")
    return [one.recipe for one in plan.runs]


def read_mapping(path: Path, what: str, example: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        DataError: The file can't be read.
        UsageError: It holds something else; the message says that it is not `what`.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); expected {what} in YAML") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not {what}: expected keys and values, e.g. `{example}`")
    return {str(key): value for key, value in values.items()}


def expand(values: Mapping[str, Any]) -> Plan:
    """Return the runs of a recipe with lists: every combination of their values is one.

    Raises:
        UsageError: A key or value is wrong, or a value is refused in every combination.
    """
    for key in values:
        if key != FACTORS and key not in Recipe.model_fields:
            raise unknown_name("key", key, [*Recipe.model_fields, FACTORS])
    if not values.get("model"):
        raise UsageError("model is missing; e.g. `model: vbpr` or `model: [vbpr, freedom]`")
    axes = _axes(values)
    factors = values.get(FACTORS) or {}
    models = [str(name) for name in axes["model"]]
    for name in models:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    runs: dict[str, Planned] = {}
    refused: dict[str, tuple[Mapping[str, Any], UsageError]] = {}
    for one, levels in _combinations(values, axes, factors, models):
        try:
            recipe = _recipe(one, models)
        except UsageError as error:
            refused.setdefault(_key(_without_seed(levels)), (levels, error))
        else:
            # A model without content runs once, whatever is done to content.
            runs.setdefault(_key(recipe.dump()), Planned(recipe, levels))
    _require_each([one.levels for one in runs.values()], list(refused.values()))
    return Plan(list(runs.values()), [_refusal(*one) for one in refused.values()])


def _axes(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of each key that may have several, outermost first."""
    between = (key for key in Recipe.model_fields if key not in ("data", "model", "seed", *SINGLE))
    order = ["data", *between, "model", "seed"]
    return {key: _several(key, values[key]) for key in order if key in values}


def _combinations(
    values: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    factors: object,
    models: Sequence[str],
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the values of each recipe, and the levels that tell it from the others."""
    seeds = list(axes.get("seed", ()))
    outer = {key: several for key, several in axes.items() if key != "seed"}
    for chosen in itertools.product(*outer.values()):
        one = {**values, **dict(zip(outer, chosen, strict=True))}
        model = model_class(one["model"])
        one.pop(FACTORS, None)
        policy = policy_of(one.get("missing", "mean"))
        if not (model.uses_features or policy.DROPS):
            for key in OF_CONTENT:
                one.pop(key, None)
            if policy.NAME not in ("mean", "zeros"):  # of which its runs have always had the names
                one["missing"] = "mean"
        elif not model.uses_features and isinstance(control := one.get("control"), Mapping):
            one["control"] = {m: kind for m, kind in control.items() if kind == "absent"}
        levels = {key: one[key] for key, tried in outer.items() if key in one and len(tried) > 1}
        levels["model"] = one["model"]
        own = _own_factors(one["model"], factors, models)
        if twice := sorted(own.keys() & _searched(one, models)):
            raise UsageError(f"{FACTORS}.{twice[0]}: also in grid or search, where one value wins")
        for tried in itertools.product(*own.values()):
            settings = dict(zip(own, tried, strict=True))
            given = one.get("settings") or {}
            if settings and isinstance(given, Mapping):
                scoped = {f"{one['model']}.{name}": value for name, value in settings.items()}
                given = {**given, **scoped}
            for seed in (seeds if model.uses_seed else seeds[:1]) or [None]:
                with_seed = {} if seed is None else {"seed": seed}
                yield {**one, "settings": given, **with_seed}, {**levels, **settings, **with_seed}


def _own_factors(model: str, factors: object, models: Sequence[str]) -> dict[str, list[Any]]:
    if not isinstance(factors, Mapping):
        told = f"{FACTORS}: expected settings and their values, e.g. `fusion: [early, late]`"
        raise UsageError(f"{told} (got {factors!r})")
    own = for_model(model, {str(key): value for key, value in factors.items()}, models)
    return {
        setting_name(model, name): _several(f"{FACTORS}.{name}", tried)
        for name, tried in own.items()
    }


def _searched(values: Mapping[str, Any], models: Sequence[str]) -> set[str]:
    """Return the names of the settings that validation chooses for the recipe's model."""
    search = values.get("search")
    tried = [values.get("grid"), search.get("space") if isinstance(search, Mapping) else None]
    spaces = (one for one in tried if isinstance(one, Mapping))
    return {name for one in spaces for name in for_model(values["model"], one, models)}


def _several(key: str, value: object) -> list[Any]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise UsageError(f"{key}: an empty list; name at least one")
    return [one for number, one in enumerate(several) if one not in several[:number]]


def _require_each(
    kept: Sequence[Mapping[str, Any]], refused: Sequence[tuple[Mapping[str, Any], UsageError]]
) -> None:
    """Raise the first refusal of a value that no run is left of: a mistake, not a combination."""
    left = {_key([name, value]) for levels in kept for name, value in levels.items()}
    for levels, error in refused:
        if any(_key([n, value]) not in left for n, value in levels.items() if n != "seed"):
            raise error


def _refusal(levels: Mapping[str, Any], error: UsageError) -> str:
    what = ", ".join(f"{name} {level}" for name, level in _without_seed(levels).items())
    why = str(error).partition(" (got")[0].partition("; ")[0]
    return f"{what} ({why})"


def _without_seed(levels: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in levels.items() if name != "seed"}


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _recipe(values: dict[str, Any], models: list[str]) -> Recipe:
    model = values["model"]
    for key in ("settings", "grid"):
        given = values.get(key) or {}
        if not isinstance(given, Mapping):
            raise UsageError(f"{key}: expected names and values (got {given!r})")
        values[key] = for_model(model, given, models)
    search = values.get("search")
    if isinstance(search, Mapping) and isinstance(search.get("space"), Mapping):
        space = for_model(model, search["space"], models)
        values["search"] = {**search, "space": space} if space else None
    recipe = make_recipe(**values)
    recipe.trials()  # refuses a bad combination before anything is trained
    return recipe
