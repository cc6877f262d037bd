"""Result tables that fit 100 columns: models as rows, one block per cut-off."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100
"""Columns of a table for a pipe or a file."""

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model's values, one mapping per seed."""

    label: str
    seeds: Sequence[Values]


def _new_table(title: str, label: str, names: Sequence[str]) -> Table:
    """An empty table: a column of labels, then one of numbers for each name."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column(label, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation over seeds; a dash where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    if len(known) == 1:
        return number(known[0])
    # Without the spread's leading zero six metrics with their spreads fit 100 columns.
    return f"{number(statistics.fmean(known))}±{number(statistics.stdev(known)).removeprefix('0')}"


def number(value: float) -> str:
    """A value with four decimals, or fewer where it is large."""
    return (
        f"{value:.4f}"
        if abs(value) < 10
        else f"{value:.2f}"
        if abs(value) < 1000
        else f"{value:.0f}"
    )


def print_results(title: str, rows: Sequence[Row]) -> None:
    """Print one block per cut-off to stdout, in as many tables as 100 columns need; mean ± standard deviation over seeds."""
    _print_blocks(title, "model", rows, {})


def print_slices(title: str, slices: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of each slice to stdout, with how many rows and users are behind them.

    Args:
        title: What is shown.
        slices: As `SliceScores.as_json` gives them.
    """
    rows = [Row(f"{one['family']} {one['slice']}", [one["metrics"]]) for one in slices]
    counts = {
        "rows": [f"{one['rows']:,}" for one in slices],
        "users": [f"{one['users_evaluated']:,}" for one in slices],
    }
    _print_blocks(title, "slice", rows, counts, " by slice")


def _print_blocks(
    title: str, label: str, rows: Sequence[Row], counts: Mapping[str, Sequence[str]], what: str = ""
) -> None:
    """The metrics at each cut-off, in tables that fit; `counts` are columns that stand in each of them."""
    console = stdout_console()
    taken = max((len(row.label) for row in rows), default=0)
    taken += sum(2 + max(len(name), *map(len, cells)) for name, cells in counts.items() if cells)
    for cutoff in (
        sorted({int(name.rpartition("@")[2]) for name in rows[0].seeds[0]}) if rows else ()
    ):
        columns = {
            name: [_cell([seed[f"{name}@{cutoff}"] for seed in row.seeds]) for row in rows]
            for name in _metrics_at(rows, cutoff)
        }
        for names in _fitting(columns, taken):
            shown = {**counts, **{name: columns[name] for name in names}}
            table = _new_table(f"{title} @{cutoff}{what}", label, list(shown))
            for place, row in enumerate(rows):
                table.add_row(row.label, *(cells[place] for cells in shown.values()))
            console.print(table)


def _metrics_at(rows: Sequence[Row], cutoff: int) -> list[str]:
    """The metrics that have a value at a cut-off."""
    suffix = f"@{cutoff}"
    return [name.removesuffix(suffix) for name in rows[0].seeds[0] if name.endswith(suffix)]


def _fitting(columns: Mapping[str, Sequence[str]], taken: int) -> list[list[str]]:
    """The columns, in their order, in as few tables as fit the width beside what is `taken` in each of them."""
    tables: list[list[str]] = [[]]
    used = taken
    for name, cells in columns.items():
        width = 2 + max(len(name), *map(len, cells))
        if tables[-1] and used + width > WIDTH - 3:  # the frame's margins
            tables.append([])
            used = taken
        tables[-1].append(name)
        used += width
    return tables


def print_costs(rows: Sequence[Row]) -> None:
    """Print what each model cost, medians over seeds; what no model has is left out."""
    names = [
        name
        for name in rows[0].seeds[0]
        if any(seed.get(name) is not None for row in rows for seed in row.seeds)
    ]
    table = _new_table("cost", "model", names)
    for row in rows:
        known = [
            [value for seed in row.seeds if (value := seed.get(name)) is not None] for name in names
        ]
        table.add_row(
            row.label, *(f"{statistics.median(values):.3g}" if values else "-" for values in known)
        )
    stdout_console().print(table)


def stdout_console() -> Console:
    """Where results are printed: `WIDTH` columns wide for a pipe or a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
