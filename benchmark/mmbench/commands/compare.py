"""`mmbench compare`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import FOLDER, CommaList, Command, echo_json, echo_table, json_option
from mmbase.layout import Column, hanging
from mmbench.commands.common import metrics_at_cutoffs, only_option

if TYPE_CHECKING:
    from mmbench.analysis.compare import Comparison
    from mmbench.analysis.controls import ContentGain
    from mmbench.interface.results import Comparisons
    from mmbench.runs.finished_runs import System

_TESTS = click.Choice(["randomisation", "t", "wilcoxon"])
_CORRECTIONS = click.Choice(["holm", "bh"])
_LEVEL = click.FloatRange(0, 1, min_open=True, max_open=True)
_SPLITS = click.Choice(["valid", "test"])


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--metric",
    "metrics",
    type=CommaList(),
    default="Recall@20,nDCG@20",
    shell_complete=metrics_at_cutoffs,
    help="Per-user metrics.",
)
@click.option("--baseline", help="Compare all others with this model only.  [default: all pairs]")
@click.option("--test", type=_TESTS, default="randomisation", help="Paired test over users.")
@click.option(
    "--correction",
    type=_CORRECTIONS,
    default="holm",
    help="Correction for the number of comparisons.",
)
@click.option("--alpha", type=_LEVEL, default=0.05, help="Level of the tests.")
@click.option("--split", type=_SPLITS, default="test", help="Part whose metrics count.")
@click.option("--allow-mixed", is_flag=True, help="Accept different data, splits or protocols.")
@only_option
@json_option
def compare(
    *, runs: tuple[Path, ...], metrics: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Rank models by paired tests, and report which order is not resolved.

    RUNS are run folders, or folders that hold some. Runs that differ in their seed alone are one
    system: its users' values are averaged over seeds. A system is better if the paired test over
    users rejects after correction for all comparisons, and, with two seeds or more of both,
    Welch's test over seeds rejects too (a model without randomness needs one). Seeds of a single
    model are compared with each other.

    \b
    Examples:
      mmbench compare runs/
      mmbench compare runs/ --metric Recall@20 --baseline bpr-mf
      mmbench compare runs/ --only split=loo --only protocol=strict
      mmbench compare runs/demo-vbpr-0123456789 runs/demo-bpr-mf-0123456789 --test t
    """
    from mmbench.analysis.compare import users_in_words
    from mmbench.interface.comparing import compare as compared

    done = compared(runs, metrics, **options)
    names, how, outcome, split = done.metrics, done.how, done.comparisons, done.split
    if as_json:
        told = [_system(system, split, names) for system in done.systems]
        document = {**how, "split": split, "of": done.kinds, "systems": told}
        document["comparisons"] = [_comparison(one) for one in outcome]
        if done.gains:
            document["content"] = [_gain(one) for one in done.gains]
        echo_json({**document, "agreement_of_seeds": done.agreement}, "mmbench.comparison 1.0")
        return
    click.echo("\n".join(done.kinds) + "\n")
    _print(done)
    _print_gains(done.gains)
    family = f"{how['correction']} correction for {len(outcome)} comparisons"
    test = f"{how['test']} test over {users_in_words(outcome)}; {family}"
    click.echo(hanging(f"{test}; alpha {how['alpha']:g}; intervals 95 %, bootstrap over users"))


def _system(system: System, split: str, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "label": system.label,
        "runs": [str(run.path) for run in system.runs],
        "seeds": [run.recipe.seed for run in system.runs],
        "values": {name: system.values(split, name) for name in metrics},
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    effect = one.effect if math.isfinite(one.effect) else None  # JSON has no infinity
    return {**dataclasses.asdict(one), "effect": effect, "verdict": one.verdict}


def _gain(one: ContentGain) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "gain": one.gain, "sentence": one.sentence}


def _print_gains(gains: Sequence[ContentGain]) -> None:
    from mmbench.analysis.controls import HEADER

    if not gains:
        return
    columns = [
        Column(name, list(cells), left=name in ("model", "control", "metric"))
        for name, cells in zip(HEADER, zip(*(one.cells for one in gains), strict=True), strict=True)
    ]
    echo_table(columns[:2], columns[2:], title="how much is content")
    for one in gains:
        click.echo(hanging(one.sentence, "", "  "))


def _print(done: Comparisons) -> None:
    from mmbench.analysis.report import tables

    systems, outcome, metrics, split = done.systems, done.comparisons, done.metrics, done.split
    rows = []
    for system in systems:
        by_seed = zip(*(system.values(split, name) for name in metrics), strict=True)
        seeds = [dict(zip(metrics, values, strict=True)) for values in by_seed]
        rows.append(tables.Row(system.label, seeds))
    tables.print_results(split, rows)
    for metric in metrics:
        _print_pairs(metric, [one for one in outcome if one.metric == metric])
    for one in outcome:
        click.echo(hanging(one.verdict, "", "  "))
    for metric, tau in done.agreement.items():
        if tau is not None:
            click.echo(f"{metric}: mean Kendall's tau between the orders of two seeds {tau:.2f}")
    single = [system.label for system in systems if len(system.runs) == 1 and not system.exact]
    if single and any(len(system.runs) > 1 for system in systems):
        click.echo(hanging(f"one seed only: {', '.join(single)}", "", "  "))


def _print_pairs(metric: str, pairs: Sequence[Comparison]) -> None:
    from mmbench.analysis.report.tables import number

    intervals = [f"{number(one.interval[0])} … {number(one.interval[1])}" for one in pairs]
    of_seeds = ["-" if one.p_seeds is None else _p(one.p_seeds) for one in pairs]
    firsts = [("* " if one.better else "  ") + one.first for one in pairs]
    labels = [
        Column("first", firsts, left=True),
        Column("second", [one.second for one in pairs], left=True),
    ]
    columns = [
        Column("difference", [number(one.difference) for one in pairs]),
        Column("interval", intervals),
        Column("p", [_p(one.p) for one in pairs]),
        Column("p seeds", of_seeds),
        Column("d_z", [f"{one.effect:.2f}" for one in pairs]),
        Column("superior", [f"{one.superiority:.1%}" for one in pairs]),
        Column("ahead", [f"{one.ahead}/{one.pairs}" for one in pairs]),
    ]
    echo_table(labels, columns, title=metric)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
