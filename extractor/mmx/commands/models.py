"""`mmx models`: the encoders."""

from __future__ import annotations

import dataclasses

import click

from mmbase.cli import (
    Command,
    echo_json,
    echo_table,
    json_option,
    quiet_option,
    verbose_option,
)
from mmbase.layout import Column

_UNKNOWN = {"dim": "?", "licence": "-"}


@click.command(cls=Command)
@click.option("--modality", type=click.Choice(["visual", "textual", "audio"]), help="Only these.")
@json_option
@quiet_option
@verbose_option
def models(*, modality: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the encoders: dimension, input, and whether the weights are on this machine.

    --verbose adds the layer, the pooling and the weights' licence.

    \b
    EXAMPLES
      mmx models
      mmx models --modality audio --verbose
      mmx models --json
    """
    from mmx.encoders import describe

    infos = describe(modality)
    if as_json:
        echo_json({"models": [dataclasses.asdict(info) for info in infos]}, "mmx.models 1.0")
        return
    shown = ("modality", "dim", "input", "weights", "layer", "pooling", "licence")
    names = [Column("model", [info.name for info in infos], left=True)]
    columns = [
        Column(name, [str(getattr(info, name) or _UNKNOWN[name]) for info in infos], name != "dim")
        for name in shown[: None if verbose else shown.index("layer")]
    ]
    echo_table(names, columns)
