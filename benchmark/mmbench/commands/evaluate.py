"""`mmbench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmbase.cli import FOLDER, PATH, Command, echo_json, given, json_option, options_of
from mmbase.layout import counted, hanging
from mmbench.commands.common import columns_option, metric_names, slices_option, split_names
from mmbench.config import Evaluation


@click.command(cls=Command)
@click.argument("run", required=False, type=FOLDER)
@click.option("--recs", type=PATH, help="Lists made elsewhere: user, item[, score or rank].")
@click.option("--data", type=PATH, help="Dataset folder; for a run: if it has moved.")
@click.option("--split", shell_complete=split_names, help="Split name, as in `mmbench train`.")
@options_of(
    Evaluation,
    exclude=("select_by", "select_decimals", "every", "patience"),
    protocol={
        "help": "Candidates, masks and users that are scored; see `mmbench train`.  [default: the "
        "run's own; strict for lists]"
    },
    metrics={"shown": "paper", "shell_complete": metric_names},
    diversity_features={"metavar": "MODALITY[=NAME]"},
    categories={"metavar": "COLUMN"},
)
@slices_option
@json_option
@columns_option
def evaluate(
    *, run: Path | None, recs: Path | None, data: Path | None, as_json: bool, **options: Any
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
    from mmbench.interface.scoring import evaluate as evaluated

    slices = options["slices"]
    where = {name: options[name] for name in ("split", "columns", "slices")}
    done = evaluated(run, recs=recs, data=data, **where, **given(Evaluation, options))
    scored, evaluation, label = done.scored, done.evaluation, done.label
    sliced = {name: [one.as_json() for one in found] for name, found in scored.slices.items()}
    if as_json:
        document = {"run": label, **{name: one.overall for name, one in scored.scores.items()}}
        document |= {"protocol": scored.protocol} | ({"slices": sliced} if slices else {})
        document["users"] = {
            name: {
                "evaluated": one.n_evaluated,
                "with_relevant": one.n_relevant,
                "without_list": one.n_without_list,
            }
            for name, one in scored.scores.items()
        }
        document["notes"] = list(scored.notes)
        echo_json(document, "mmbench.evaluation 1.0")
        return
    for name, one in scored.scores.items():
        print_results(name, [Row(label, [one.overall])])
        without = "left out" if evaluation.protocol == "paper" else "scored 0"
        users = f"{counted(one.n_evaluated, 'user')} evaluated; {one.n_without_list} without a list"
        users += f" {without}"
        click.echo(hanging(f"{name}, {evaluation.protocol} protocol: {users}", "", "  "))
        if slices:
            print_slices(name, sliced[name])
    for note in scored.notes:
        click.echo(hanging(note, "note: ", "  "))
