"""`mmbench models` and `mmbench metrics`: the registries, with their settings and formulas."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mmbase.cli import Command, echo_json, json_option
from mmbase.layout import hanging
from mmbench.commands.common import metric_names, model_names

if TYPE_CHECKING:
    from mmbench.models.base import Recommender

LETTERS = (
    "L a user's list, L[:k] its first k items; Rel the user's relevant items; T the training "
    "pairs, T_u those of the user; "
    "pop an item's training users; I the candidate items; E the evaluated users, R those of them "
    "with a relevant item; "
    "d(r) = 1 / log2(r + 2), r = 0, 1, … the rank; c_i how many lists hold item i, C the sum."
)


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=model_names)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the models, or show one model's equations and settings.

    \b
    Examples:
      mmbench models
      mmbench models vbpr
      mmbench models schema
    """
    from mmbench.models import MODELS, model_class, model_name
    from mmbench.models.base import ModelConfig
    from mmbench.models.origins import origin

    if name is None:
        _list_models({model: model_class(model) for model in MODELS}, as_json=as_json)
        return
    chosen = model_class(name)
    schema = chosen.Config.model_json_schema()["properties"]
    if not chosen.trained:  # what every model has means nothing to one that is not trained
        own = [setting for setting in schema if setting not in ModelConfig.model_fields]
        schema = {setting: schema[setting] for setting in own}
    if as_json:
        document = {
            "name": name,
            **asdict(origin(model_name(name))),
            "scores_unseen": chosen.scores_unseen,
            "cell": chosen.cell and asdict(chosen.cell),
            "settings": schema,
        }
        if _is_schema(chosen):
            from mmbench.models.cells import admissible

            document["combinations"] = [asdict(choice) for choice in admissible()]
        echo_json(document, "mmbench.model 1.0")
        return
    click.echo(_flowing(inspect.cleandoc(sys.modules[chosen.__module__].__doc__ or "")))
    unseen = "scored" if chosen.scores_unseen else "never listed"
    if any("represents_unseen" in vars(kind) for kind in _own(chosen)):
        unseen = "scored where they have content, unless an id decides (product, max)"
    if _is_schema(chosen):
        _print_combinations()
    elif chosen.cell is not None:
        told = (f"{key} {value or 'none'}" for key, value in asdict(chosen.cell).items())
        click.echo()
        _hanging("In the formal schema: ", "; ".join(told) + ".")
    click.echo()
    _hanging("Items unseen in training: ", f"{unseen} (--protocol strict, next-item).")
    click.echo("\nSettings (--set NAME=VALUE):" if schema else "\nIt has no settings.")
    for setting, entry in schema.items():
        default = json.dumps(entry.get("default")).strip('"')
        _hanging(f"  {setting:<22} {default:<10} ", entry.get("description", ""))


def _list_models(known: Mapping[str, type[Recommender]], *, as_json: bool) -> None:
    """Print what each model is, by group, and where it stands in the schema."""
    from mmbench.models.origins import GROUPS, grouped, origin

    summaries = {
        name: inspect.cleandoc(model.__doc__ or "").splitlines()[0] for name, model in known.items()
    }
    if as_json:
        listed = [
            {
                "name": name,
                "features": model.uses_features,
                "summary": summaries[name],
                **asdict(origin(name)),
                "cell": model.cell and asdict(model.cell),
            }
            for name, model in known.items()
        ]
        echo_json({"models": listed}, "mmbench.models 1.0")
        return
    width = max(map(len, known))
    groups = grouped()
    for group, names in groups.items():
        click.echo(f"{group}: {GROUPS[group]}")
        for name in names:
            own = origin(name)
            paper = f" {own.paper}." if own.paper else ""
            _hanging(f" {name:<{width}} {own.year or '-':<4} ", f"{summaries[name]}{paper}")
        click.echo()
    words = "representation, fusion, side, ids, operator and backbone"
    _hanging("", f"In the formal schema (`mmbench models schema`), {words}:")
    for name in (one for names in groups.values() for one in names):
        cell = known[name].cell
        if cell is not None:
            how = "; ".join(filter(None, (cell.operator, cell.backbone)))
            _columns(name, cell.representation, cell.fusion, cell.side, cell.ids, how)


def _columns(name: str, *texts: str | None) -> None:
    *short, last = [text or "-" for text in texts]
    widths = (10, 12, 4, 5)
    cells = "  ".join(f"{text:<{width}}" for text, width in zip(short, widths, strict=True))
    if len(name) > 9:  # a line of its own, so that narrow terminals have room for the rest
        click.echo(name)
        name = ""
    _hanging(f"{name:<10}{cells}  ", last)


def _own(model: type[Recommender]) -> tuple[type, ...]:
    """Return a model's class and those between it and what all models have."""
    from mmbench.models.base import Recommender

    return model.__mro__[: model.__mro__.index(Recommender)]


def _is_schema(model: type[Recommender]) -> bool:
    from mmbench.models import model_class

    return model is model_class("schema")


def _print_combinations() -> None:
    """Print which settings of the schema go together, those that differ in few things at once."""
    from mmbench.models.cells import combinations

    click.echo("\nWhat goes together (query=user with operator=attention and these backbones):")
    for representation, rows in combinations().items():
        click.echo(f"\n  representation={representation}")
        names = ("fusion", "side", "ids", "backbone", "query=user", "operator")
        for row in (names, *rows):
            widths = (12, 4, 5, 13, 13)
            cells = "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=False))
            _hanging(f"    {cells}  ", row[-1])


def _flowing(text: str) -> str:
    """Break paragraphs by the width of the terminal; what is indented, as equations, stays."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        one if "\n " in f"\n{one}" else hanging(one.replace("\n", " ")) for one in paragraphs
    )


def _hanging(label: str, text: str) -> None:
    """Print a text beside its label."""
    click.echo(hanging(text, label))


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=metric_names)
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
        _hanging("Letters: ", LETTERS)
    else:
        for metric in chosen:
            for key, value in _entry(metric).items():
                _hanging(f"{key:<11} ", str(value))
        _hanging(f"{'letters':<11} ", LETTERS)


def _entry(metric: object) -> dict[str, object]:
    keys = ("name", "formula", "kind", "population", "bounds", "source", "aliases", "needs")
    return {key: getattr(metric, key) for key in keys}
