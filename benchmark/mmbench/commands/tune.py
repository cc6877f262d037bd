"""`mmbench tune`: `mmbench train` with a search in the place of a grid."""

from __future__ import annotations

from typing import Any

import click

from mmbase.cli import Command, options_of, progress, quiet_option
from mmbench.commands.train import recipe_options, train_all
from mmbench.config import Search
from mmbench.errors import UsageError


@click.command(cls=Command)
@recipe_options("grid")
@click.option(
    "--search",
    multiple=True,
    metavar="NAME=SPACE",
    help="lr=log:1e-4..1e-2, n_layers=int:1..3, dropout=0.1..0.5, or values to choose from: "
    "reg_weight=1e-5,1e-2.",
)
@options_of(Search, only=("sampler", "pruner", "budget"), budget={"default": 12})
@quiet_option
def tune(*, as_json: bool, quiet: bool, **options: Any) -> None:
    """Search settings on the validation split, with equally many trials for every model.

    Trials are proposed by TPE (where earlier ones did well; needs the extra tune: pip install
    '.[tune]' in the checkout) or at random, and test is scored once. With --pruner (of the same
    extra) trials end early that do worse than others did. The n-th proposal follows from
    the seed and the results before it: a search that was killed goes on with the same command and
    ends as it would have. The other options are those of `mmbench train`, whose --grid tries every
    combination of given values.

    \b
    Examples:
      mmbench tune --model vbpr --search lr=log:1e-4..1e-2 --search reg_weight=log:1e-6..1e-1
      mmbench tune --model vbpr,freedom --search lr=log:1e-4..1e-2 --budget 20 --patience 5
      mmbench tune --model bm3 --search dropout=0.1..0.5 --search n_layers=int:1..3 --sampler random
      mmbench tune --model vbpr,bm3 --search lr=log:1e-4..1e-2 --engine ray --cpus 2
      mmbench tune --model grcn --search lr=log:1e-4..1e-2 --budget 30 --pruner median --every 5
    """
    if not options["search"]:
        raise UsageError("--search is missing; e.g. --search lr=log:1e-4..1e-2")
    train_all(options, progress(quiet=quiet), as_json=as_json)
