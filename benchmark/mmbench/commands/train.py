"""`mmbench train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbench.commands.common import (
    DEFAULT_DATA,
    columns_option,
    integers,
    jobs_option,
    local_executor,
    metrics_option,
    out_option,
    quiet_option,
    refuse_options,
    require_demo,
    side_options,
    split_list,
)
from mmbench.errors import UsageError

if TYPE_CHECKING:
    from mmbench.runs.run import Result


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model names, comma-separated or repeated; see `mmbench models`.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help=f"Dataset folder.  [default: {DEFAULT_DATA}]",
)
@click.option(
    "--split",
    help="Split name, or random[:TEST,VALID[,SEED]].  [default: the only one, else random]",
)
@click.option(
    "--features",
    multiple=True,
    metavar="MODALITY=NAME",
    help="Feature sets to use.  [default: all modalities]",
)
@click.option(
    "--missing",
    type=click.Choice(["mean", "zero"]),
    default="mean",
    show_default=True,
    help="What stands in for an absent vector.",
)
@click.option(
    "--scaling",
    type=click.Choice(["none", "l2", "standard"]),
    default="none",
    show_default=True,
    help="What is done to the vectors first.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting, e.g. lr=0.001, or of one model: vbpr.lr=0.001; see `mmbench models NAME`.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=V1,V2,…",
    help="Values to try; validation chooses, test is scored once.",
)
@click.option(
    "--seed",
    "seeds",
    default="123",
    show_default=True,
    help="Seeds, comma-separated: one run each.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--sparse-backend",
    type=click.Choice(["torch", "torch-sparse"]),
    default="torch",
    show_default=True,
    help="What multiplies sparse matrices; torch-sparse needs pip install 'mmx-mmbench[sparse]'.",
)
@click.option(
    "--approximate",
    default="",
    metavar="NAME,…",
    help="Give up exactness for speed: frozen-features, lazy-adam, tf32.  [default: none]",
)
@metrics_option
@click.option(
    "--protocol",
    type=click.Choice(["strict", "paper"]),
    default="strict",
    show_default=True,
    help="strict: the whole catalogue are candidates, validation positives are masked at test, "
    "users without a list "
    "score 0. paper: as in arXiv 2309.05273.",
)
@side_options
@click.option(
    "--slices",
    is_flag=True,
    help="Print the test metrics by slice, too; metrics.json always has them.",
)
@click.option("--cutoffs", default="10,20", show_default=True, help="List lengths.")
@click.option(
    "--select-by",
    default="Recall@20",
    show_default=True,
    help="Validation metric that chooses the epoch.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Epochs between validations.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=None,
    help="Stop after so many validations without improvement.",
)
@out_option
@click.option(
    "--resume",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Go on with this run folder.",
)
@click.option("--restart", is_flag=True, help="Train anew even if the run exists.")
@jobs_option
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables."
)
@columns_option
@quiet_option
def train(
    models: tuple[str, ...],
    data: Path | None,
    split: str | None,
    features: tuple[str, ...],
    missing: str,
    scaling: str,
    settings: tuple[str, ...],
    grid: tuple[str, ...],
    seeds: str,
    device: str,
    sparse_backend: str,
    approximate: str,
    metrics: str,
    protocol: str,
    diversity_features: str | None,
    categories: str | None,
    slices: bool,
    cutoffs: str,
    select_by: str,
    every: int,
    patience: int | None,
    out: Path,
    resume: Path | None,
    restart: bool,
    jobs: int,
    as_json: bool,
    columns: dict[str, str],
    quiet: bool,
    search: tuple[str, ...] = (),
    sampler: str = "tpe",
    budget: int = 0,
) -> None:
    """Train models and print their validation and test metrics.

    A run is a folder under --out, named after everything that decides its numbers: the same command
    again shows a finished run, and goes on with an unfinished one. Settings and grids apply to the
    models that have them.

    \b
    Examples:
      mmbench train --model vbpr
      mmbench train --model vbpr --data my/catalogue --features visual=resnet50
      mmbench train --model vbpr,bpr-mf,item-knn,most-popular --grid lr=0.0005,0.001,0.005,0.01
      mmbench train --model vbpr --set lr=0.005 --set reg_weight=0.01 --seed 1,2,3,4,5
      mmbench train --model vbpr,freedom --grid lr=0.0005,0.001,0.005 --jobs 4
      mmbench train --resume runs/demo-vbpr-0123456789
    """
    from mmbench.config import (
        Recipe,
        Search,
        for_model,
        make_evaluation,
        make_settings,
        parse_approximations,
        parse_grid,
        parse_search,
        parse_settings,
    )
    from mmbench.data.features import parse_wanted
    from mmbench.models import model_class, model_name
    from mmbench.progress import make_progress
    from mmbench.runs import run as experiment
    from mmbench.runs.batch import Batch
    from mmbench.runs.search import require_optuna

    progress = make_progress(quiet=quiet)
    if resume is not None:
        everything = {
            parameter.name or "" for parameter in click.get_current_context().command.params
        }
        refuse_options(
            everything - {"resume", "data", "slices", "restart", "as_json", "quiet"},
            "has no meaning beside --resume, which goes on with the run's own recipe",
        )
        show(
            [
                experiment.run(
                    *experiment.resume_inputs(resume, data), progress=progress, restart=restart
                )
            ],
            as_json,
            slices=slices,
        )
        return
    names = list(dict.fromkeys(map(model_name, split_list(models))))
    if not names:
        raise UsageError(
            "--model is missing; e.g. --model vbpr, or several: --model vbpr,bpr-mf (see `mmbench "
            "models`)"
        )
    chosen_approximations = parse_approximations(approximate)
    values, tried = parse_settings(settings), parse_grid(grid)
    space = parse_search(search)
    if space and sampler == "tpe":
        require_optuna()  # now, and not after five trials
    evaluation = make_evaluation(
        protocol=protocol,
        diversity_features=diversity_features,
        categories=categories,
        metrics=tuple(split_list([metrics])),
        cutoffs=integers(cutoffs, "--cutoffs"),
        select_by=select_by,
        every=every,
        patience=patience,
    )
    needs_features = any(model_class(name).uses_features for name in names)
    folder_of_data = require_demo(data, needs_features=needs_features, progress=progress)
    all_seeds = tuple(dict.fromkeys(integers(seeds, "--seed")))
    planned: list[Recipe] = []
    for name in names:
        own, grid_of_own = for_model(name, values, names), for_model(name, tried, names)
        own_space = for_model(name, space, names)
        for seed in all_seeds if model_class(name).uses_seed else all_seeds[:1]:
            recipe = Recipe(
                data=str(folder_of_data),
                columns=columns,
                split=split,
                model=name,
                features=parse_wanted(features) if model_class(name).uses_features else {},
                missing=missing,
                scaling=scaling,
                seed=seed,
                device=device,
                sparse_backend=sparse_backend,
                approximate=chosen_approximations,
                settings=make_settings(name, own),
                grid=grid_of_own,
                search=None
                if not own_space
                else Search(sampler=sampler, budget=budget, space=own_space),
                evaluation=evaluation,
            )
            recipe.trials()  # every combination is checked before the first one is trained
            planned.append(recipe)
    batch = Batch(out, local_executor(jobs, progress), progress)
    results = batch.run(planned, restart=restart)
    show(results, as_json, slices=slices)


def show(results: Sequence[Result], as_json: bool, *, slices: bool) -> None:
    """Print runs: validation, test and cost, a table for each dataset and treatment of vectors; or one JSON document."""
    from mmbench.analysis.report.tables import print_slices
    from mmbench.runs.fit import in_words
    from mmbench.runs.run import summarise

    if as_json:
        documents = summarise(results)
        click.echo(
            json.dumps(
                documents[0] if len(documents) == 1 else {"runs": documents}, ensure_ascii=False
            )
        )
        return
    for about, runs in _by_data(results).items():
        _tables(about, runs)
    for run in results:
        trained = f", best epoch {run.best_epoch}" if run.best_epoch else ""
        chosen = "".join(
            f", {name}={in_words(getattr(run.recipe.settings, name))}" for name in run.tried
        )
        click.echo(f"{run.recipe.model}, seed {run.recipe.seed}{chosen}{trained}: {run.path}")
        if slices:
            print_slices("test", run.slices["test"])


def _by_data(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs by what tells their data apart; one empty key if nothing does."""

    def facts(run: Result) -> dict[str, str]:
        recipe = run.recipe
        data = {
            "data": Path(recipe.data).name,
            "split": str(recipe.split),
            "protocol": recipe.evaluation.protocol,
        }
        return {
            **data,
            "missing": f"missing {recipe.missing}",
            "scaling": f"scaling {recipe.scaling}",
        }

    told = [facts(run) for run in results]
    differ = [name for name in told[0] if len({one[name] for one in told}) > 1]
    groups: dict[str, list[Result]] = {}
    for run, one in zip(results, told, strict=True):
        groups.setdefault(", ".join(one[name] for name in differ), []).append(run)
    return groups


def _tables(about: str, runs: Sequence[Result]) -> None:
    from mmbench.analysis.report.tables import Row, print_costs, print_results

    rows: dict[str, list[Result]] = {}
    for run, label in zip(runs, _labels(runs), strict=True):
        rows.setdefault(label, []).append(run)
    for split in ("valid", "test"):
        values = [Row(label, [getattr(run, split) for run in own]) for label, own in rows.items()]
        print_results(f"{about}, {split}" if about else split, values)
    print_costs([Row(label, [run.cost for run in own]) for label, own in rows.items()])


def _labels(runs: Sequence[Result]) -> list[str]:
    """Each run's model, with what tells it from the others of that model; seeds and what validation chose do not."""

    def told(run: Result) -> dict[str, object]:
        recipe = run.recipe
        settings = {name: value for name, value in recipe.settings if name not in run.tried}
        return {
            **settings,
            **recipe.features,
            "approximate": recipe.approximate,
            "sparse": recipe.sparse_backend,
        }

    labels = []
    for run in runs:
        own, rivals = (
            told(run),
            [told(other) for other in runs if other.recipe.model == run.recipe.model],
        )
        differ = [name for name in own if any(other.get(name) != own[name] for other in rivals)]
        parts = ", ".join(f"{name}={own[name]}" for name in differ)
        labels.append(f"{run.recipe.model}({parts})" if parts else run.recipe.model)
    return labels
