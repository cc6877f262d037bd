"""Settings of models from names and values, as command lines and recipes give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mmbench.errors import UsageError, unknown_name
from mmbench.models import ModelConfig, model_class


def make_settings(model: str, values: Mapping[str, Any]) -> ModelConfig:
    """Return a model's settings from names and values; aliases of other frameworks work.

    Raises:
        UsageError: There is no such model or setting, or a value is out of range.
    """
    config = model_class(model).Config
    try:
        return config(**{setting_name(model, key): value for key, value in values.items()})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"{model}: {problem['loc'][0] if problem['loc'] else 'settings'} = "
            f"{problem['input']!r}: {problem['msg']}"
        ) from error


def setting_name(model: str, key: str) -> str:
    """Return our name of a model's setting, given by ours or by that of another framework.

    Raises:
        UsageError: The model has no such setting.
    """
    config = model_class(model).Config
    name = key if key in config.model_fields else config.ALIASES.get(key.casefold(), key)
    if name not in config.model_fields:
        raise unknown_name(f"setting of {model}", key, config.model_fields)
    return name


def for_model(model: str, values: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Return the settings of one of several models: `lr` is for all that have it, `vbpr.lr` wins.

    Args:
        model: Whose settings are wanted.
        values: Settings by name or by `model.name`.
        models: All models of the command.

    Raises:
        UsageError: A setting belongs to none of the models.
    """
    chosen: dict[str, Any] = {}
    for key, value in sorted(values.items(), key=lambda item: "." in item[0]):
        scope, dot, name = key.rpartition(".")
        if dot and scope not in models:
            raise unknown_name("model in a setting", scope, models)
        owners = [scope] if dot else [owner for owner in models if _has_setting(owner, name)]
        if not owners:
            known = {
                f
                for owner in models
                for f in model_class(owner).Config.model_fields
                if _has_setting(owner, f)
            }
            raise unknown_name(f"setting of {' or '.join(models)}", name, known)
        if model in owners:
            chosen[setting_name(model, name)] = value
    return chosen


def _has_setting(model: str, key: str) -> bool:
    """Return whether a model has a setting; untrained ones lack those of every model."""
    try:
        name = setting_name(model, key)
    except UsageError:
        return False
    return model_class(model).trained or name not in ModelConfig.model_fields


def without_retired(values: Any) -> Any:
    """The values of a recipe, perhaps of an older version, without retired settings."""
    if not (isinstance(values, dict) and isinstance(values.get("model"), str)):
        return values
    retired = model_class(values["model"]).Config.RETIRED

    def kept(part: Any) -> Any:
        return (
            {k: v for k, v in part.items() if k not in retired} if isinstance(part, dict) else part
        )

    values = {**values, **{key: kept(values[key]) for key in ("settings", "grid") if key in values}}
    search = values.get("search")
    if isinstance(search, dict) and (space := kept(search.get("space"))) != search.get("space"):
        values["search"] = {**search, "space": space} if space else None
    return values
