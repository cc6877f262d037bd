"""Recipes with lists: one file asks for several datasets, models, seeds, vector treatments."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmbench.config import Recipe, for_model, make_recipe
from mmbench.data.missing import policy_of
from mmbench.errors import DataError, UsageError, unknown_name
from mmbench.models import MODELS, model_class

LISTS = (
    "data", "missing", "mask", "pattern", "control", "mask_seed", "scaling", "model", "seed",
)  # fmt: skip
"""Keys that may hold several values, outermost first: every combination is a run."""


def read_plan(path: Path, **instead: object) -> list[Recipe]:
    """Return the runs that a file asks for, in order; a run folder's `recipe.yaml` is such a file.

    With several models `settings`, `grid` and `search.space` may name settings that only some of
    them have, and `vbpr.lr` is VBPR's alone, as on the command line. A model without randomness
    runs with the first seed only.

    Args:
        path: A YAML file with the keys of `Recipe`.
        instead: Values that replace the file's.

    Raises:
        DataError: The file can't be read.
        UsageError: It is not a recipe; the message names the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); expected a recipe in YAML") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not a recipe: expected keys and values, e.g. `model: vbpr`")
    if "models" in values and "dataset" in values:
        raise UsageError(
            f"{path}: a study of published values; run it with `mmbench reproduce {path}`"
        )
    values = {**{str(key): value for key, value in values.items()}, **instead}
    try:
        for key in values:
            if key not in Recipe.model_fields:
                raise unknown_name("key", key, Recipe.model_fields)
        if not values.get("model"):
            raise UsageError("model is missing; e.g. `model: vbpr` or `model: [vbpr, freedom]`")
        return _expand(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _expand(values: Mapping[str, Any]) -> list[Recipe]:
    axes = {key: _several(key, values[key]) for key in LISTS if key in values}
    models = [str(name) for name in axes["model"]]
    for name in models:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    recipes = []
    for chosen in itertools.product(*axes.values()):
        one = {**values, **dict(zip(axes, chosen, strict=True))}
        model = model_class(one["model"])
        if not model.uses_seed and "seed" in axes and one["seed"] != axes["seed"][0]:
            continue
        if not (model.uses_features or policy_of(one.get("missing", "mean")).DROPS):
            one.pop("features", None)
        recipes.append(_recipe(one, models))
    # A model without content runs once, whatever is done to content.
    return list({json.dumps(one.dump(), default=str): one for one in recipes}.values())


def _several(key: str, value: object) -> list[Any]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise UsageError(f"{key}: an empty list; name at least one")
    return list({json.dumps(one, sort_keys=True, default=str): one for one in several}.values())


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
