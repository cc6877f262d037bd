"""`mmbench evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mmbench.commands.common import columns_option, split_list
from mmbench.commands.train import _integers
from mmbench.errors import UsageError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--recs", type=click.Path(path_type=Path), help="Lists made elsewhere: user, item[, score or rank].")
@click.option("--data", type=click.Path(path_type=Path), help="Dataset folder; for a run: if it has moved.")
@click.option("--split", help="Split name, as in `mmbench train`.")
@click.option(
    "--metrics", default="paper", show_default=True, help="Names, `paper` (six) or `all`; see `mmbench metrics`."
)
@click.option("--cutoffs", default="10,20", show_default=True, help="List lengths.")
@click.option(
    "--threshold", type=float, default=0.0, show_default=True, help="Relevant means a rating of at least this."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")
@columns_option
def evaluate(
    run: Path | None,
    recs: Path | None,
    data: Path | None,
    split: str | None,
    metrics: str,
    cutoffs: str,
    threshold: float,
    as_json: bool,
    columns: dict[str, str],
) -> None:
    """Score a finished run, or lists made anywhere else, with the same code.

    In a file of lists the order of a user's rows is the ranking (a `rank` column, if there is one, goes first).

    \b
    Examples:
      mmbench evaluate runs/demo-vbpr-0123456789 --metrics all --cutoffs 5,10,20
      mmbench evaluate --recs lists.tsv --data my/catalogue --split given
    """
    from mmbench import experiment
    from mmbench.config import make_evaluation
    from mmbench.report.tables import Row, print_results

    evaluation = make_evaluation(
        metrics=tuple(split_list([metrics])), cutoffs=_integers(cutoffs, "--cutoffs"), threshold=threshold
    )
    if (run is None) == (recs is None):
        raise UsageError("give either a run folder or --recs FILE with --data DIR")
    if run is not None:
        label, scores = str(run), experiment.evaluate_run(run, evaluation, data)
        notes: list[str] = []
    else:
        assert recs is not None
        if data is None:
            raise UsageError("--recs needs --data DIR: the dataset that the lists were made for")
        label, (scores, notes) = recs.name, experiment.evaluate_lists(recs, data, split, evaluation, columns)
    if as_json:
        click.echo(
            json.dumps({"run": label, **{name: one.overall for name, one in scores.items()}}, ensure_ascii=False)
        )
        return
    for name, one in scores.items():
        print_results(name, [Row(label, [one.overall])])
        click.echo(f"{name}: {one.n_evaluated} users evaluated, {one.n_without_list} of them without a list")
    for note in notes:
        click.echo(f"note: {note}")
