"""Result tables on stdout: models as rows, one block per cut-off, as wide as the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbase.cli import echo_table
from mmbase.layout import Column, fits

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model's values, one mapping per seed."""

    label: str
    seeds: Sequence[Values]


def number(value: float) -> str:
    """Return a value with four decimals, fewer if it is large."""
    decimals = 4 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:.{decimals}f}"


def print_results(title: str, rows: Sequence[Row]) -> None:
    """Print tables of each cut-off to stdout: mean ± standard deviation over seeds."""
    _print_blocks(title, "model", rows, {})


def print_slices(title: str, slices: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of each slice to stdout, with the numbers of rows and users behind them.

    Args:
        title: Name of the split.
        slices: As `SliceScores.as_json` gives them.
    """
    rows = [Row(f"{one['family']} {one['slice']}", [one["metrics"]]) for one in slices]
    counts = {
        "rows": [f"{one['rows']:,}" for one in slices],
        "users": [f"{one['users_evaluated']:,}" for one in slices],
    }
    _print_blocks(title, "slice", rows, counts, " by slice")


def print_costs(rows: Sequence[Row]) -> None:
    """Print what each model cost, medians over seeds; costs that no model has are left out."""
    known = {
        name: [[v for seed in row.seeds if (v := seed.get(name)) is not None] for row in rows]
        for name in rows[0].seeds[0]
    }
    columns = {
        name: [_cost(statistics.median(values)) if values else "-" for values in of_rows]
        for name, of_rows in known.items()
        if any(of_rows)
    }
    _print_table("cost", "model", rows, columns, {})


def _cost(value: float) -> str:
    """Return three digits of a measured number, all of a count."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _print_blocks(
    title: str, label: str, rows: Sequence[Row], counts: Mapping[str, Sequence[str]], what: str = ""
) -> None:
    """Print the metrics at each cut-off; each block has the `counts` first."""
    names = list(rows[0].seeds[0]) if rows else []
    for cutoff in sorted({int(name.rpartition("@")[2]) for name in names}):
        columns = {
            name.rpartition("@")[0]: [_cell([seed[name] for seed in row.seeds]) for row in rows]
            for name in names
            if name.endswith(f"@{cutoff}")
        }
        _print_table(f"{title} @{cutoff}{what}", label, rows, columns, counts)


def _print_table(
    title: str,
    label: str,
    rows: Sequence[Row],
    values: Mapping[str, Sequence[str]],
    counts: Mapping[str, Sequence[str]],
) -> None:
    labels = [Column(label, [row.label for row in rows], left=True)]
    labels += [Column(name, cells) for name, cells in counts.items()]
    columns = [Column(name, cells) for name, cells in values.items()]
    if not fits(labels, columns):  # the spread goes below its mean
        columns = [
            Column(one.name, [cell.replace("±", "\n±") for cell in one.cells]) for one in columns
        ]
    echo_table(labels, columns, title=title)


def _cell(values: Sequence[float | None]) -> str:
    """Return mean ± sample standard deviation over seeds; n/a if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "n/a"
    if len(known) == 1:
        return number(known[0])
    # Without the leading zero a spread is as wide as its mean, and stands below it where need be.
    return f"{number(statistics.fmean(known))}±{number(statistics.stdev(known)).removeprefix('0')}"
