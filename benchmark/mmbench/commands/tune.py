"""`mmbench tune`: `mmbench train` with a search in the place of a grid."""

from __future__ import annotations

from typing import Any

import click

from mmbench.commands.train import train
from mmbench.errors import UsageError

_TAKEN_OVER = [parameter for parameter in train.params if parameter.name not in ("grid", "resume")]


@click.command(params=[parameter for parameter in _TAKEN_OVER if parameter.name != "help"])
@click.option(
    "--search",
    multiple=True,
    metavar="NAME=SPACE",
    help="lr=log:1e-4..1e-2, n_layers=int:1..3, dropout=0.1..0.5, or values to choose from: "
    "reg_weight=1e-5,1e-2.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Trials of each model.",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random"]),
    default="tpe",
    show_default=True,
    help="What proposes trials.",
)
def tune(search: tuple[str, ...], **options: Any) -> None:
    """Search settings on the validation split, with the same number of trials for every model; score test once.

    Trials are proposed by TPE (where earlier ones did well; needs pip install 'mmx-mmbench[tune]')
    or at random. The n-th proposal follows from the seed and the results before it: a search that
    was killed goes on with the same command and ends as it would have. The other options are those
    of `mmbench train`, whose --grid tries every combination of given values.

    \b
    Examples:
      mmbench tune --model vbpr --search lr=log:1e-4..1e-2 --search reg_weight=log:1e-6..1e-1
      mmbench tune --model vbpr,freedom --search lr=log:1e-4..1e-2 --budget 20 --patience 5
      mmbench tune --model bm3 --search dropout=0.1..0.5 --search n_layers=int:1..3 --sampler random
    """
    if not search:
        raise UsageError("--search is missing; e.g. --search lr=log:1e-4..1e-2")
    assert train.callback is not None
    train.callback(search=search, grid=(), resume=None, **options)
