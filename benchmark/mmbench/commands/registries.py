"""`mmbench models` and `mmbench metrics`: the registries, with their settings and formulas."""

from __future__ import annotations

import inspect
import json
import sys

import click

from mmbase.cli import Command, echo_json, json_option
from mmbase.layout import hanging

_LETTERS = (
    "L a user's list, L[:k] its first k items; Rel the user's relevant items; T the training "
    "pairs, T_u those of the user; "
    "pop an item's training users; I the candidate items; E the evaluated users, R those of them "
    "with a relevant item; "
    "d(r) = 1 / log2(r + 2), r = 0, 1, … the rank; c_i how many lists hold item i, C the sum."
)


@click.command(cls=Command)
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the models, or show one model's equations and settings.

    \b
    Examples:
      mmbench models
      mmbench models vbpr
    """
    from mmbench.models import MODELS, model_class
    from mmbench.models.base import ModelConfig

    if name is None:
        rows = [(model, *_first_lines(model)) for model in MODELS]
        if as_json:
            keys = ("name", "features", "summary")
            listed = [dict(zip(keys, row, strict=True)) for row in rows]
            echo_json({"models": listed}, "mmbench.models 1.0")
            return
        width = max(len(row[0]) for row in rows)
        for model, features, text in rows:
            _hanging(f"{model:<{width}}  {'features' if features else '-':<8}  ", text)
        return
    chosen = model_class(name)
    schema = chosen.Config.model_json_schema()["properties"]
    if not chosen.trained:  # what every model has means nothing to one that is not trained
        own = [setting for setting in schema if setting not in ModelConfig.model_fields]
        schema = {setting: schema[setting] for setting in own}
    if as_json:
        document = {"name": name, "scores_unseen": chosen.scores_unseen, "settings": schema}
        echo_json(document, "mmbench.model 1.0")
        return
    click.echo(_flowing(inspect.cleandoc(sys.modules[chosen.__module__].__doc__ or "")))
    unseen = "scored" if chosen.scores_unseen else "never listed"
    click.echo(f"\nItems unseen in training: {unseen} (--protocol strict).")
    click.echo("\nSettings (--set NAME=VALUE):" if schema else "\nIt has no settings.")
    for setting, entry in schema.items():
        default = json.dumps(entry.get("default")).strip('"')
        _hanging(f"  {setting:<22} {default:<10} ", entry.get("description", ""))


def _flowing(text: str) -> str:
    """Break paragraphs by the width of the terminal; what is indented, as equations, stays."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        one if "\n " in f"\n{one}" else hanging(one.replace("\n", " ")) for one in paragraphs
    )


def _hanging(label: str, text: str) -> None:
    """Print a text beside its label."""
    click.echo(hanging(text, label))


def _first_lines(name: str) -> tuple[bool, str]:
    from mmbench.models import model_class

    model = model_class(name)
    return model.uses_features, inspect.cleandoc(model.__doc__ or "").splitlines()[0]


@click.command(cls=Command)
@click.argument("name", required=False)
@json_option
def metrics(name: str | None, as_json: bool) -> None:
    """List the metrics, or show one metric's formula, range and source.

    \b
    Examples:
      mmbench metrics
      mmbench metrics nDCG
    """
    from mmbench.metrics import METRICS, resolve

    chosen = list(METRICS.values()) if name is None else resolve([name])
    if as_json:
        echo_json({"metrics": [_entry(metric) for metric in chosen]}, "mmbench.metrics 1.0")
    elif name is None:
        width = max(len(metric.name) for metric in chosen)
        for metric in chosen:
            _hanging(f"{metric.name:<{width}}  ", metric.formula)
        click.echo()
        _hanging("Letters: ", _LETTERS)
    else:
        for metric in chosen:
            for key, value in _entry(metric).items():
                _hanging(f"{key:<11} ", str(value))
        _hanging(f"{'letters':<11} ", _LETTERS)


def _entry(metric: object) -> dict[str, object]:
    keys = ("name", "formula", "kind", "population", "bounds", "source", "aliases", "needs")
    return {key: getattr(metric, key) for key in keys}
