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
        name: [f"{statistics.median(values):.3g}" if values else "-" for values in of_rows]
        for name, of_rows in known.items()
        if any(of_rows)
    }
    _print_table("cost", "model", rows, columns)


def stdout_console() -> Console:
    """Return the console for results, `WIDTH` columns wide for a pipe or a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def new_table(title: str) -> Table:
    """Return an empty table in the style of all tables."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def _print_blocks(
    title: str, label: str, rows: Sequence[Row], counts: Mapping[str, Sequence[str]], what: str = ""
) -> None:
    """Print the metrics at each cut-off in tables that fit; each of them has the `counts`."""
    names = list(rows[0].seeds[0]) if rows else []
    taken = max((len(row.label) for row in rows), default=0)
    taken += sum(_width(name, cells) for name, cells in counts.items() if cells)
    for cutoff in sorted({int(name.rpartition("@")[2]) for name in names}):
        columns = {
            name.rpartition("@")[0]: [_cell([seed[name] for seed in row.seeds]) for row in rows]
            for name in names
            if name.endswith(f"@{cutoff}")
        }
        for fitting in _fitting(columns, taken):
            shown = {**counts, **{name: columns[name] for name in fitting}}
            _print_table(f"{title} @{cutoff}{what}", label, rows, shown)


def _print_table(
    title: str, label: str, rows: Sequence[Row], columns: Mapping[str, Sequence[str]]
) -> None:
    table = new_table(title)
    table.add_column(label, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        table.add_row(row.label, *(cells[place] for cells in columns.values()))
    stdout_console().print(table)


def _fitting(columns: Mapping[str, Sequence[str]], taken: int) -> list[list[str]]:
    """Split the columns, in order, into as few tables as fit beside `taken` characters."""
    tables: list[list[str]] = [[]]
    used = taken
    for name, cells in columns.items():
        width = _width(name, cells)
        if tables[-1] and used + width > WIDTH - 3:  # the frame's margins
            tables.append([])
            used = taken
        tables[-1].append(name)
        used += width
    return tables


def _width(name: str, cells: Sequence[str]) -> int:
    return 2 + max(len(name), *map(len, cells))


def _cell(values: Sequence[float | None]) -> str:
    """Return mean and sample standard deviation over seeds; a dash if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    if len(known) == 1:
        return number(known[0])
    # Without the spread's leading zero six metrics with their spreads fit 100 columns.
    return f"{number(statistics.fmean(known))}±{number(statistics.stdev(known)).removeprefix('0')}"
