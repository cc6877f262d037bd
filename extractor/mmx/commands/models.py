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


@click.command(cls=Command)
@click.option("--modality", type=click.Choice(["visual", "textual", "audio"]), help="Only these.")
@json_option
@quiet_option
@verbose_option
def models(*, modality: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the encoders: dimension, input, and whether the weights are on this machine.

    --verbose adds the layer, the pooling and the weights' licence, beyond the width of a terminal.

    \b
    EXAMPLES
      mmx models
      mmx models --modality audio --verbose
      mmx models --json
    """
    from mmx.encoders import describe

    infos = describe(modality)
    if as_json:
        echo_json([dataclasses.asdict(info) for info in infos])
        return
    header = ("model", "modality", "dim", "input", "weights", "layer", "pooling", "licence")
    rows = [
        (i.name, i.modality, str(i.dim or "?"), i.input, i.weights, i.layer, i.pooling,
         i.licence or "-")
        for i in infos
    ]  # fmt: skip
    shown = len(header) if verbose else header.index("layer")
    echo_table([row[:shown] for row in (header, *rows)])
