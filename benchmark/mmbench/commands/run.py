"""`mmbench run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase.cli import PATH, CommaList, Command, json_option, progress, quiet_option
from mmbench.commands import common

RECIPES = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(cls=Command)
@click.argument("recipes", nargs=-1, required=True, type=RECIPES)
@click.option("--data", type=PATH, help="Dataset folder instead of the recipe's.")
@click.option("--seed", "seeds", type=CommaList(int), help="Seeds instead of the recipe's.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps, instead of the recipe's.")
@common.out_option
@common.restart_option
@common.track_option
@common.slices_option
@common.engine_options
@json_option
@quiet_option
def run(*, recipes: tuple[Path, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Run recipes: the recipe.yaml of a run folder, or your own, with lists of models and seeds.

    A recipe has the keys of a run's recipe.yaml; all but `model` are optional. data, split,
    features, missing, mask, control, scaling, model, seed and others may be lists, `factors` has
    lists of model settings, and every combination is a run. Finished runs are read, not repeated:
    after an interruption the same command goes on. See docs/training.md and docs/missing.md.

    \b
    Examples:
      mmbench run runs/demo-vbpr-0123456789/recipe.yaml --data my/catalogue
      mmbench run study.yaml --jobs 4
      mmbench run study.yaml --seed 1,2,3,4,5
      mmbench run study.yaml --engine ray --address auto --out /shared/runs
    """
    from mmbench.commands.train import train_and_show
    from mmbench.interface.training import read_recipes

    data, seeds = options["data"], options["seeds"]
    instead = {"data": data and str(data), "seed": seeds and list(seeds)}
    reporter = progress(quiet=quiet)
    planned = read_recipes(recipes, reporter, **instead, device=options["device"])
    train_and_show(planned, options, reporter, as_json=as_json)
