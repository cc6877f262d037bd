"""`mmbench compare`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbench.commands.common import split_list

if TYPE_CHECKING:
    from mmbench.analysis.compare import Comparison
    from mmbench.runs.finished_runs import System


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--metric",
    "metrics",
    default="Recall@20,nDCG@20",
    show_default=True,
    help="Metrics with per-user values.",
)
@click.option("--baseline", help="Compare all others with this model only.  [default: all pairs]")
@click.option(
    "--test",
    type=click.Choice(["randomisation", "t", "wilcoxon"]),
    default="randomisation",
    show_default=True,
    help="Paired test over users.",
)
@click.option(
    "--correction",
    type=click.Choice(["holm", "bh"]),
    default="holm",
    show_default=True,
    help="For all comparisons of the call.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Level of the tests.",
)
@click.option(
    "--split",
    type=click.Choice(["valid", "test"]),
    default="test",
    show_default=True,
    help="Whose metrics.",
)
@click.option(
    "--allow-mixed", is_flag=True, help="Compare in spite of different data, splits or protocols."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables."
)
def compare(
    runs: tuple[Path, ...],
    metrics: str,
    baseline: str | None,
    test: str,
    correction: str,
    alpha: float,
    split: str,
    allow_mixed: bool,
    as_json: bool,
) -> None:
    """Say which models are better, and which order is not resolved.

    RUNS are run folders, or folders that hold some. Runs that differ in their seed alone are one
    system: its users' values are averaged over seeds. A system is called better if the paired test
    over users rejects after correction for all comparisons, and, with two seeds or more of both,
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
    if not allow_mixed:
        require_comparable(found)
    systems = group(found)
    if len(systems) == 1:
        systems = one_each(found)
    names = [spelled(name) for name in split_list([metrics])]
    outcome = compare_systems(
        systems,
        names,
        split=split,
        baseline=baseline,
        test=test,
        correction=correction,
        alpha=alpha,
    )
    taus = {name: agreement_of_seeds(systems, name, split) for name in names}
    if as_json:
        document = {
            "test": test,
            "correction": correction,
            "alpha": alpha,
            "split": split,
            "systems": [_system(system, split, names) for system in systems],
            "comparisons": [_comparison(one) for one in outcome],
            "agreement_of_seeds": taus,
        }
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    _print(systems, outcome, names, split, taus)
    click.echo(
        f"{test} test over {users_in_words(outcome)}; {correction} correction for {len(outcome)} "
        "comparisons;"
    )
    click.echo(f"alpha {alpha:g}; intervals 95 %, bootstrap over users")


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

    from mmbench.analysis.report.tables import (
        Row,
        new_table,
        number,
        print_results,
        stdout_console,
    )

    console = stdout_console()
    short = _short([system.label for system in systems])
    systems = [dataclasses.replace(system, label=short[system.label]) for system in systems]
    outcome = [
        dataclasses.replace(one, first=short[one.first], second=short[one.second])
        for one in outcome
    ]
    rows = []
    for system in systems:
        values = {name: system.values(split, name) for name in metrics}
        rows.append(
            Row(system.label, [{n: values[n][k] for n in metrics} for k in range(len(system.runs))])
        )
    print_results(split, rows)
    for label, name in short.items():
        if name != label:
            click.echo(textwrap.fill(f"{name}: {label}", console.width, subsequent_indent="  "))
    if any(name != label for label, name in short.items()):
        click.echo()
    for metric in metrics:
        table = new_table(metric)
        for name, side in (("first", "left"), ("second", "left")):
            table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
        for name in ("difference", "interval", "p", "p seeds", "d_z", "superior", "ahead"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in outcome:
            if one.metric == metric:
                table.add_row(
                    ("* " if one.better else "  ") + one.first,
                    one.second,
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
        click.echo(textwrap.fill(one.verdict, console.width, subsequent_indent="  "))
    for metric, tau in taus.items():
        if tau is not None:
            click.echo(f"{metric}: mean Kendall's tau between the orders of two seeds {tau:.2f}")
    single = [system.label for system in systems if len(system.runs) == 1 and not system.exact]
    if single and any(len(system.runs) > 1 for system in systems):
        click.echo(
            textwrap.fill(
                f"one seed only: {', '.join(single)}", console.width, subsequent_indent="  "
            )
        )


_LABEL_WIDTH = 16  # two of them and all columns of a comparison fit 100 columns


def _short(labels: Sequence[str]) -> dict[str, str]:
    """A name for each label that leaves tables readable: itself, or the model's with a number."""
    numbers: dict[str, int] = {}
    names = {}
    for label in labels:
        model, bracket, _ = label.partition("(")
        if bracket and len(label) > _LABEL_WIDTH:
            numbers[model] = numbers.get(model, 0) + 1
            label_of = f"{model} #{numbers[model]}"
        else:
            label_of = label
        names[label] = label_of
    return names


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
