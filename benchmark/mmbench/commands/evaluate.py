"""`mmbench evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mmbench.commands.common import (
    columns_option,
    integers,
    metrics_option,
    side_options,
    split_list,
)
from mmbench.errors import UsageError


@click.command()
@click.argument(
    "run", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--recs",
    type=click.Path(path_type=Path),
    help="Lists made elsewhere: user, item[, score or rank].",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Dataset folder; for a run: if it has moved."
)
@click.option("--split", help="Split name, as in `mmbench train`.")
@metrics_option
@click.option(
    "--protocol",
    type=click.Choice(["strict", "paper"]),
    help="Candidates, masks and who is scored; see `mmbench train`.  [default: the run's own; "
    "strict for lists]",
)
@side_options
@click.option(
    "--slices", is_flag=True, help="Also by popularity, activity, cold items and modalities."
)
@click.option("--cutoffs", default="10,20", show_default=True, help="List lengths.")
@click.option(
    "--threshold",
    type=float,
    default=0.0,
    show_default=True,
    help="Relevant means a rating of at least this.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables."
)
@columns_option
def evaluate(
    run: Path | None,
    recs: Path | None,
    data: Path | None,
    split: str | None,
    metrics: str,
    protocol: str | None,
    diversity_features: str | None,
    categories: str | None,
    slices: bool,
    cutoffs: str,
    threshold: float,
    as_json: bool,
    columns: dict[str, str],
) -> None:
    """Score a finished run, or lists made anywhere else, with the same code.

    In a file of lists the order of a user's rows is the ranking (a `rank` column, if there is one,
    goes first).

    \b
    Examples:
      mmbench evaluate runs/demo-vbpr-0123456789 --metrics all --cutoffs 5,10,20
      mmbench evaluate runs/demo-vbpr-0123456789 --protocol paper --slices
      mmbench evaluate runs/demo-vbpr-0123456789 --metrics ILD --diversity-features visual
      mmbench evaluate --recs lists.tsv --data my/catalogue --split given
    """
    from mmbench.analysis.report.tables import Row, print_results, print_slices
    from mmbench.config import RECIPE_FILE, make_evaluation, read_recipe

    if (run is None) == (recs is None):
        raise UsageError("give either a run folder or --recs FILE with --data DIR")
    if run is not None and (split is not None or columns):
        raise UsageError(
            "--split and --columns go with --recs; a run is scored on the split that it was "
            "trained on"
        )
    if protocol is None:
        protocol = "strict" if run is None else read_recipe(run / RECIPE_FILE).evaluation.protocol
    evaluation = make_evaluation(
        protocol=protocol,
        diversity_features=diversity_features,
        categories=categories,
        metrics=tuple(split_list([metrics])),
        cutoffs=integers(cutoffs, "--cutoffs"),
        threshold=threshold,
    )
    if run is not None:
        from mmbench.runs.run import evaluate_run

        label, scored = str(run), evaluate_run(run, evaluation, data, slices=slices)
    else:
        assert recs is not None
        if data is None:
            raise UsageError("--recs needs --data DIR: the dataset that the lists were made for")
        from mmbench.evaluation.protocol import evaluate_lists

        label = recs.name
        scored = evaluate_lists(recs, data, split, evaluation, columns, slices=slices)
    sliced = {name: [one.as_json() for one in found] for name, found in scored.slices.items()}
    if as_json:
        document = {"run": label, **{name: one.overall for name, one in scored.scores.items()}}
        document |= {"protocol": scored.protocol} | ({"slices": sliced} if slices else {})
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    for name, one in scored.scores.items():
        print_results(name, [Row(label, [one.overall])])
        without = "left out" if protocol == "paper" else "scored 0"
        click.echo(
            f"{name}, {protocol} protocol: {one.n_evaluated} users evaluated; {one.n_without_list} "
            f"without a list {without}"
        )
        if slices:
            print_slices(name, sliced[name])
    for note in scored.notes:
        click.echo(f"note: {note}")
