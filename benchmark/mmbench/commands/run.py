"""`mmbench run`."""

from __future__ import annotations

from pathlib import Path

import click

from mmbench.commands.common import (
    integers,
    jobs_option,
    local_executor,
    out_option,
    quiet_option,
)


@click.command()
@click.argument(
    "recipes", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Dataset folder instead of the recipe's."
)
@click.option("--seed", "seeds", help="Seeds instead of the recipe's, comma-separated.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps, instead of the recipe's.")
@out_option
@click.option("--restart", is_flag=True, help="Train anew even what is finished.")
@click.option(
    "--slices",
    is_flag=True,
    help="Print the test metrics by slice, too; metrics.json always has them.",
)
@jobs_option
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables."
)
@quiet_option
def run(
    recipes: tuple[Path, ...],
    data: Path | None,
    seeds: str | None,
    device: str | None,
    out: Path,
    restart: bool,
    slices: bool,
    jobs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run recipes: the recipe.yaml of a run folder, or one you wrote, with lists of datasets, models and seeds.

    A recipe has the keys of a run's recipe.yaml, of which all but `model` may be left out; data,
    missing, scaling, model and seed may be lists, and every combination is a run. Finished runs are
    read, not repeated: after an interruption the same command goes on. See docs/training.md.

    \b
    Examples:
      mmbench run runs/demo-vbpr-0123456789/recipe.yaml --data my/catalogue
      mmbench run study.yaml --jobs 4
      mmbench run study.yaml --seed 1,2,3,4,5
    """
    from mmbench.commands.train import show
    from mmbench.progress import make_progress
    from mmbench.runs.batch import Batch
    from mmbench.runs.recipe_lists import read_plan

    given = {
        "data": data and str(data),
        "seed": seeds and list(integers(seeds, "--seed")),
        "device": device,
    }
    instead = {key: value for key, value in given.items() if value is not None}
    planned = [recipe for path in recipes for recipe in read_plan(path, **instead)]
    distinct = [recipe for number, recipe in enumerate(planned) if recipe not in planned[:number]]
    progress = make_progress(quiet=quiet)
    batch = Batch(out, local_executor(jobs, progress), progress)
    show(batch.run(distinct, restart=restart), as_json, slices=slices)
