"""Result tables that fit 100 columns: models as rows, one block per cut-off."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model's values, one mapping per seed."""

    label: str
    seeds: Sequence[Values]


def results_table(title: str, rows: Sequence[Row], cutoff: int) -> Table:
    """One block: the metrics at one cut-off, mean ± standard deviation over seeds where there are several.

    Args:
        title: What is shown.
        rows: The models; all have the same metrics.
        cutoff: Which of the `metric@cutoff` values.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    suffix = f"@{cutoff}"
    names = [name.removesuffix(suffix) for name in rows[0].seeds[0] if name.endswith(suffix)]
    table = Table(
        title=f"{title} @{cutoff}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.label, *(_cell([seed[name + suffix] for seed in row.seeds]) for name in names))
    return table


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    mean, spread = mean_and_spread(known)
    # Without the spread's leading zero six metrics with their spreads fit 100 columns.
    return number(mean) if len(known) == 1 else f"{number(mean)}±{number(spread).removeprefix('0')}"


def number(value: float) -> str:
    """A value with four decimals, or fewer where it is large."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def print_results(title: str, rows: Sequence[Row]) -> None:
    """Print one block per cut-off to stdout."""
    from rich.console import Console

    console = Console(width=None if is_terminal() else 100, highlight=False)
    cutoffs = sorted({int(name.rpartition("@")[2]) for name in rows[0].seeds[0]})
    for cutoff in cutoffs:
        console.print(results_table(title, rows, cutoff))


_METRICS_A_TABLE = 6  # so many columns of values fit 100 columns beside the slices and their counts


def print_slices(title: str, slices: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of each slice to stdout, with how many rows and users are behind them.

    Args:
        title: What is shown.
        slices: As `SliceScores.as_json` gives them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if is_terminal() else 100, highlight=False)
    names = list(slices[0]["metrics"]) if slices else []
    for cutoff in sorted({int(name.rpartition("@")[2]) for name in names}):
        at_cutoff = [name for name in names if name.endswith(f"@{cutoff}")]
        for start in range(0, len(at_cutoff), _METRICS_A_TABLE):
            shown = at_cutoff[start : start + _METRICS_A_TABLE]
            table = Table(
                title=f"{title} @{cutoff} by slice",
                title_justify="left",
                title_style="bold",
                box=SIMPLE_HEAD,
                padding=(0, 1, 0, 0),
            )
            table.add_column("slice", no_wrap=True)
            for name in ("rows", "users", *(name.partition("@")[0] for name in shown)):
                table.add_column(name, justify="right", no_wrap=True)
            for one in slices:
                counts = f"{one['rows']:,}", f"{one['users_evaluated']:,}"
                cells = [_cell([one["metrics"][name]]) for name in shown]
                table.add_row(f"{one['family']} {one['slice']}", *counts, *cells)
            console.print(table)


def is_terminal() -> bool:
    """Whether stdout is one; results for a pipe or a file are 100 columns wide."""
    import sys

    return sys.stdout.isatty()
