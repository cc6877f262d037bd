"""`mmbench estimate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase import cli
from mmbase.cli import Command
from mmbase.layout import Column, hanging
from mmbench.commands.run import RECIPES
from mmbench.commands.train import recipe_options, recipes_from
from mmbench.config import Recipe

if TYPE_CHECKING:
    from mmbase.progress import Progress
    from mmbench.runs.estimates import Estimate

_WITH_RECIPES = {"recipes", "data", "device", "out", "as_json", "quiet"}


@click.command(cls=Command)
@click.argument("recipes", nargs=-1, type=RECIPES)
@recipe_options(running=False)
@cli.quiet_option
def estimate(*, recipes: tuple[Path, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Estimate what training will need: weights, memory, a device, time.

    Takes recipes as `mmbench run` does, or the options of `mmbench train`. For each trial, prints
    the number of trained weights; the multiply-adds of a step; the peak memory of the process, and
    that of a GPU if it trained there; the device that --device takes, and why; and the seconds per
    epoch, if --out has finished runs of the same model. Only the data are loaded: everything else
    is counted on a miniature of the model. See docs/scaling.md.

    \b
    Examples:
      mmbench estimate --model vbpr,freedom --data my/catalogue --grid embedding_dim=64,256
      mmbench estimate study.yaml --json
    """
    from mmbench.runs.estimates import estimate_trial, trials_to_estimate
    from mmbench.runs.inputs import Loader

    reporter = cli.progress(quiet=quiet)
    load, past = Loader(reporter), sorted(options["out"].glob("*/"))
    found: dict[str, tuple[Recipe, Estimate]] = {}
    for asked in _recipes(recipes, options, reporter):
        recipe, inputs = load(asked)
        setting = inputs.setting_of(recipe)
        place = Path(recipe.data).name
        for label, trial in trials_to_estimate(recipe):
            # Seeds cost the same.
            told = f"{place}, {recipe.model}{', ' if label else ''}{label}"
            if told not in found:
                found[told] = trial, estimate_trial(trial, setting, past)
    if as_json:
        documents = [_document(*one) for one in found.values()]
        cli.echo_json({"trials": documents}, "mmbench.estimate 1.0")
    else:
        _print({label: one for label, (_, one) in found.items()})


def _recipes(files: Sequence[Path], options: Mapping[str, Any], progress: Progress) -> list[Recipe]:
    from mmbench.runs.recipe_lists import read_plan

    if not files:
        return recipes_from(options, progress)
    cli.refuse_options({*options} - _WITH_RECIPES, "the recipes say it; give recipes or options")
    typed = {"data": options["data"] and str(options["data"]), "device": options["device"]}
    instead = {key: value for key, value in typed.items() if value is not None}
    return [one for path in files for one in read_plan(path, progress.note, **instead)]


def _print(found: Mapping[str, Estimate]) -> None:
    """Print a table with a row per trial, and below it why."""
    all_of = list(found.values())
    columns = {
        "weights": [f"{sum(one.cost.parameters.values()):,}" for one in all_of],
        "multiply-adds": [f"{one.cost.multiply_adds:.3g}" for one in all_of],
        "steps": [f"{one.cost.steps:,}" for one in all_of],
        "GiB": [f"{one.host_bytes / 2**30:.2f}" for one in all_of],
        "GPU GiB": [f"{one.gpu_bytes / 2**30:.2f}" for one in all_of],
        "device": [str(one.choice.device) for one in all_of],
        "s/epoch": ["-" if one.epoch_s is None else f"{one.epoch_s:.3g}" for one in all_of],
    }
    # What all trials have in common is not said again in each row.
    heads = [label.split(", ") for label in found]
    shared = 0 if any(one[0] != heads[0][0] for one in heads) else 1
    labels = [", ".join(one[shared:]) for one in heads]
    cli.echo_table(
        [Column("trial", labels, left=True)],
        [Column(name, cells, left=name == "device") for name, cells in columns.items()],
        title=f"estimated{f' on {heads[0][0]}' if shared else ''}",
    )
    for device, reason in dict.fromkeys(
        (str(one.choice.device), one.choice.reason) for one in all_of
    ):
        click.echo(hanging(reason, f"{device}: ", "  "))
    for by in dict.fromkeys(one.by for one in all_of):
        click.echo(hanging(by, "s/epoch: ", "  "))
    click.echo(
        hanging(
            "multiply-adds of products, in one step; steps of an epoch; GiB of one process; "
            "GPU GiB if it trained on one",
            "",
            "  ",
        )
    )


def _document(trial: Recipe, one: Estimate) -> dict[str, Any]:
    cost = one.cost
    return {
        "data": trial.data,
        "model": trial.model,
        "settings": trial.settings.model_dump(mode="json"),
        "parameters": dict(cost.parameters),
        "multiply_adds_per_step": cost.multiply_adds,
        "multiply_adds_of_searches": cost.searches,
        "steps_per_epoch": cost.steps,
        "memory_bytes": one.host_bytes,
        "gpu_memory_bytes": one.gpu_bytes,
        "device": {"chosen": str(one.choice.device), "reason": one.choice.reason},
        "seconds_per_epoch": one.epoch_s,
        "seconds_by": one.by,
    }
