"""`mmbench compare`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase.cli import FOLDER, CommaList, Command, echo_json, json_option

if TYPE_CHECKING:
    from mmbench.analysis.compare import Comparison
    from mmbench.runs.finished_runs import System

_TESTS = click.Choice(["randomisation", "t", "wilcoxon"])
_CORRECTIONS = click.Choice(["holm", "bh"])
_LEVEL = click.FloatRange(0, 1, min_open=True, max_open=True)
_SPLITS = click.Choice(["valid", "test"])


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--metric", "metrics", type=CommaList(), default="Recall@20,nDCG@20", help="Per-user metrics."
)
@click.option("--baseline", help="Compare all others with this model only.  [default: all pairs]")
@click.option("--test", type=_TESTS, default="randomisation", help="Paired test over users.")
@click.option(
    "--correction", type=_CORRECTIONS, default="holm", help="For all comparisons of the call."
)
@click.option("--alpha", type=_LEVEL, default=0.05, help="Level of the tests.")
@click.option("--split", type=_SPLITS, default="test", help="Part whose metrics count.")
@click.option("--allow-mixed", is_flag=True, help="Accept different data, splits or protocols.")
@json_option
def compare(
    *, runs: tuple[Path, ...], metrics: tuple[str, ...], split: str, as_json: bool, **options: Any
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
      mmbench compare runs/demo-vbpr-0123456789 runs/demo-bpr-mf-0123456789 --test t
    """
    from mmbench.analysis.compare import agreement_of_seeds, users_in_words
    from mmbench.analysis.compare import compare as compare_systems
    from mmbench.metrics import spelled
    from mmbench.runs.finished_runs import find_runs, group, one_each, require_comparable

    found = find_runs(runs)
    if not options["allow_mixed"]:
        require_comparable(found)
    systems = group(found)
    if len(systems) == 1:
        systems = one_each(found)
    names = [spelled(name) for name in metrics]
    how = {name: options[name] for name in ("test", "correction", "alpha")}
    outcome = compare_systems(systems, names, split=split, baseline=options["baseline"], **how)
    taus = {name: agreement_of_seeds(systems, name, split) for name in names}
    if as_json:
        told = [_system(system, split, names) for system in systems]
        document = {**how, "split": split, "systems": told}
        document["comparisons"] = [_comparison(one) for one in outcome]
        echo_json({**document, "agreement_of_seeds": taus})
        return
    _print(systems, outcome, names, split, taus)
    family = f"{how['correction']} correction for {len(outcome)} comparisons"
    click.echo(f"{how['test']} test over {users_in_words(outcome)}; {family};")
    click.echo(f"alpha {how['alpha']:g}; intervals 95 %, bootstrap over users")


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


def _print(
    systems: Sequence[System],
    outcome: Sequence[Comparison],
    metrics: Sequence[str],
    split: str,
    taus: dict[str, float | None],
) -> None:
    import textwrap

    from mmbench.analysis.report import tables
    from mmbench.analysis.report.tables import number

    console = tables.stdout_console()

    def echo(text: str) -> None:
        click.echo(textwrap.fill(text, console.width, subsequent_indent="  "))

    short = _short([system.label for system in systems])
    systems = [dataclasses.replace(system, label=short[system.label]) for system in systems]
    rows = []
    for system in systems:
        by_seed = zip(*(system.values(split, name) for name in metrics), strict=True)
        seeds = [dict(zip(metrics, values, strict=True)) for values in by_seed]
        rows.append(tables.Row(system.label, seeds))
    tables.print_results(split, rows)
    shortened = {name: label for label, name in short.items() if name != label}
    for name, label in shortened.items():
        echo(f"{name}: {label}")
    if shortened:
        click.echo()
    for metric in metrics:
        table = tables.new_table(metric)
        for name in ("first", "second"):
            table.add_column(name, overflow="fold")
        for name in ("difference", "interval", "p", "p seeds", "d_z", "superior", "ahead"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in outcome:
            if one.metric == metric:
                table.add_row(
                    ("* " if one.better else "  ") + short[one.first],
                    short[one.second],
                    number(one.difference),
                    f"{number(one.interval[0])} … {number(one.interval[1])}",
                    _p(one.p),
                    "-" if one.p_seeds is None else _p(one.p_seeds),
                    f"{one.effect:.2f}",
                    f"{one.superiority:.1%}",
                    f"{one.ahead}/{one.pairs}",
                )
        console.print(table)
    for one in outcome:
        named = dataclasses.replace(one, first=short[one.first], second=short[one.second])
        echo(named.verdict)
    for metric, tau in taus.items():
        if tau is not None:
            click.echo(f"{metric}: mean Kendall's tau between the orders of two seeds {tau:.2f}")
    single = [system.label for system in systems if len(system.runs) == 1 and not system.exact]
    if single and any(len(system.runs) > 1 for system in systems):
        echo(f"one seed only: {', '.join(single)}")


_LABEL_WIDTH = 16  # two of them and all columns of a comparison fit 100 columns


def _short(labels: Sequence[str]) -> dict[str, str]:
    """Return a name for each label: itself, or if it is long the model's with a number."""
    numbers: dict[str, int] = {}
    names = {}
    for label in labels:
        model, bracket, _ = label.partition("(")
        names[label] = label
        if bracket and len(label) > _LABEL_WIDTH:
            numbers[model] = numbers.get(model, 0) + 1
            names[label] = f"{model} #{numbers[model]}"
    return names


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
