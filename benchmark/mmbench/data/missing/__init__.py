"""The registry of missing-content policies: what stands in for an absent vector.

Importing it imports no policy. One more policy is one class (`mmbench.data.missing.base.Policy`)
and one line in `POLICIES`. docs/missing.md has the formulas, their sources and their cost.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import yaml
from pydantic import ValidationError

from mmbench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from mmbench.data.missing.base import Policy

POLICIES: dict[str, str] = {
    "mean": "mmbench.data.missing.constants:Mean",
    "zeros": "mmbench.data.missing.constants:Zeros",
    "random": "mmbench.data.missing.constants:Random",
    "drop": "mmbench.data.missing.constants:Drop",
    "neighbours": "mmbench.data.missing.hops:Neighbours",
    "multihop": "mmbench.data.missing.hops:MultiHop",
    "propagation": "mmbench.data.missing.hops:Propagation",
    "pagerank": "mmbench.data.missing.series:PageRank",
    "learned": "mmbench.data.missing.learned:Learned",
    "heat": "mmbench.data.missing.series:Heat",
}

OLD_NAMES = {"zero": "zeros"}
"""Names that recipes of older versions have. A run is named after them still."""


def policy_of(given: object) -> Policy:
    """Return the policy that a recipe or a command line names.

    Args:
        given: `pagerank`, `pagerank:alpha=0.2,form=paper`, or `{policy: pagerank, alpha: 0.2}`.

    Raises:
        UsageError: There is no such policy or setting, or a value is out of range.
    """
    name, settings = _parts(given)
    name = OLD_NAMES.get(name, name)
    if name not in POLICIES:
        raise unknown_name("missing-content policy", name, POLICIES)
    module, attribute = POLICIES[name].split(":")
    kind = cast("type[Policy]", getattr(importlib.import_module(module), attribute))
    for key in settings:
        if key not in kind.model_fields:
            if not kind.model_fields:
                raise UsageError(f"missing: the policy {name} has no settings (got {key!r})")
            raise unknown_name(
                f"setting of the missing-content policy {name}", key, kind.model_fields
            )
    try:
        return kind(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = problem["loc"][0] if problem["loc"] else "settings"
        raise UsageError(
            f"missing: {name}: {where} = {problem['input']!r}: {problem['msg']}"
        ) from error


def spelled(given: object) -> str:
    """Return a policy's one spelling, with all of its settings: `pagerank:alpha=0.1,…`."""
    return policy_of(given).spelled


def _parts(given: object) -> tuple[str, dict[str, Any]]:
    """Name and settings of a policy as it was given."""
    if isinstance(given, Mapping):
        settings = {str(key): value for key, value in given.items()}
        name = settings.pop("policy", None)
        if not isinstance(name, str):
            raise UsageError("missing: expected `policy`, e.g. {policy: pagerank, alpha: 0.1}")
        return name, settings
    name, colon, text = str(given).partition(":")
    settings = {}
    for part in text.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UsageError(
                f"missing: {given!r}: expected NAME:SETTING=VALUE,…, e.g. pagerank:alpha=0.2"
            )
        if key in settings:
            raise UsageError(f"missing: {given!r}: {key} is given twice")
        settings[key.strip()] = yaml.safe_load(value)
    return name.strip(), settings
