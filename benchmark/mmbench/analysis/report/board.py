"""The leaderboard of a report: means, 95 % intervals, which orders are resolved, differences."""

from __future__ import annotations

import statistics as stdlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmbase.pages import Cell, Column, Table
from mmbench.analysis import statistics
from mmbench.analysis.compare import Comparison
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.tables import number
from mmbench.errors import ToolError
from mmbench.metrics import METRICS, sign
from mmbench.runs.finished_runs import System

SHOWN = 10
"""Differences that a page shows; the others are folded."""


@dataclass(frozen=True)
class Standing:
    """A system on one metric.

    Attributes:
        mean: Over seeds.
        interval: 95 %: Student's, over seeds, or over users where one run is all there is.
        over: What it is over: `seeds`, `users`, or nothing.
        seeds: The value of each seed.
    """

    label: str
    mean: float
    interval: tuple[float, float] | None
    over: str
    seeds: Sequence[float]

    @property
    def interval_text(self) -> str:
        """The interval as `0.2946–0.2999`, empty if there is none."""
        if self.interval is None:
            return ""
        return f"{number(self.interval[0])}–{number(self.interval[1])}"


def standing(system: System, metric: str, *, users: bool = True) -> Standing | None:
    """Return a system's standing; None where a seed has no value.

    Args:
        system: The system.
        metric: Name with cut-off.
        users: Whether a system of one run gets an interval over users, which reads their values.
    """
    values = [run.metrics["test"].get(metric) for run in system.runs]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    interval, over = None, ""
    if len(known) > 1:
        interval, over = statistics.t_interval(np.array(known)), "seeds"
    elif users:
        try:
            of_users = system.runs[0].per_user("test", metric).to_numpy(np.float64)
            if of_users.size > 1:
                interval, over = statistics.t_interval(of_users), "users"
        except ToolError:  # a metric of whole lists, such as Gini, has no values of users
            pass
    return Standing(system.label, stdlib.fmean(known), interval, over, known)


def ordered(systems: Sequence[System], metric: str) -> list[Standing]:
    """Return the standings, best first; systems without a value are left out."""
    found = (standing(system, metric) for system in systems)
    towards = sign(metric) or 1
    return sorted(filter(None, found), key=lambda one: -towards * one.mean)


def ranks(labels: Sequence[str], outcome: Sequence[Comparison]) -> dict[str, str]:
    """Return the places that a system may have: `1`, or `2–4` where the order is not resolved.

    Where all were compared with one only, the places of the others are as open as that leaves them.

    Args:
        labels: The systems, best first.
        outcome: Their comparisons on one metric.
    """
    if not outcome:
        return {}
    beaten = {(one.first, one.second) for one in outcome if one.better}
    out = {}
    for label in labels:
        first = 1 + sum((other, label) in beaten for other in labels)
        last = len(labels) - sum((label, other) in beaten for other in labels)
        out[label] = f"{first}" if first == last else f"{first}–{last}"
    return out


def leaderboard(part: Reproduction, cutoff: int, colours: Sequence[str]) -> Table:
    """Return the table of all metrics at one cut-off, sorted by the report's metric.

    The best value of a metric is bold, the second underlined, if either side is better.

    Args:
        part: The page; its metric decides the order, and `outcome` the places.
        cutoff: The cut-off.
        colours: Labels of the systems in the order of their colours.
    """
    metrics = [name for name in part.metrics if name.endswith(f"@{cutoff}")]
    main = part.metric if part.metric in metrics else metrics[0]
    metrics = [main, *(name for name in metrics if name != main)]
    systems = {system.label: system for system in part.systems}
    labels = [one.label for one in _board(part, main)]
    labels += [label for label in systems if label not in labels]
    places = ranks(labels, part.outcome) if main == part.metric else {}
    of_metric = {
        name: {label: standing(systems[label], name, users=name == main) for label in labels}
        for name in metrics
    }
    columns = [Column("system", numeric=False)]
    columns += [Column("place", less=True, title=_PLACE)] if places else []
    columns += [
        Column(name.rpartition("@")[0], less=sign(name) == -1, title=_told(name))
        for name in metrics
    ]
    rows = []
    for label in labels:
        chip = colours.index(label) + 1 if label in colours[:8] else 0
        row = [Cell(label, mark=f"chip{chip}", note=_of_runs(systems[label]))]
        if places:
            row.append(Cell(place := places.get(label, "–"), _first_of(place)))
        row += [_cell(of_metric[name], label, name) for name in metrics]
        rows.append(row)
    caption = f"Test @{cutoff}: mean over seeds, 95 % interval below"
    return Table(caption, columns, rows, sorted_by=2 if places else 1)


_PLACE = "The places that the system may have: two are in order where their difference is resolved"


def _board(part: Reproduction, metric: str) -> list[Standing]:
    return ordered(part.systems, metric)


def _first_of(place: str) -> float | None:
    first, _, last = place.partition("–")
    return float(first) + float(last or first) / 1e4 if first else None


def _told(metric: str) -> str:
    """Return a metric's first line of description, and which side is better."""
    name = metric.rpartition("@")[0]
    known = METRICS.get(name)
    better = {1: "more is better", -1: "less is better", None: "neither side is better"}
    about = (known.formula if known is not None else "").splitlines()[:1]
    return "; ".join([*about, better[sign(metric)]])


def _of_runs(system: System) -> str:
    if system.exact:
        return "no randomness"
    n = len(system.runs)
    return "1 seed" if n == 1 else f"{n} seeds"


def _cell(found: dict[str, Standing | None], label: str, metric: str) -> Cell:
    one = found[label]
    if one is None:
        return Cell("–", mark="quiet")
    towards = sign(metric)
    means = sorted(
        {o.mean for o in found.values() if o is not None}, key=lambda v: -(towards or 1) * v
    )
    marks = {means[0]: "best", **({means[1]: "second"} if len(means) > 2 else {})}
    mark = marks.get(one.mean, "") if towards and len(means) > 1 else ""
    title = ", ".join(number(value) for value in one.seeds) + (
        f"; over {one.over}" if one.over else ""
    )
    note = one.interval_text + ("*" if one.over == "users" else "")
    return Cell(number(one.mean), one.mean, mark, f"{label}, {metric}: {title}", note)


def differences(part: Reproduction, outcome: Sequence[Comparison]) -> list[Table]:
    """Return the comparisons that matter most, and a table of the others if there are more.

    Those with the best system come first, then those between neighbours of the leaderboard.
    """
    places = {one.label: n for n, one in enumerate(_board(part, part.metric))}

    def matters(one: Comparison) -> tuple[bool, int, int]:
        first, second = places[one.first], places[one.second]
        return min(first, second) > 0, abs(first - second), first

    columns = [
        Column("better by mean", numeric=False),
        Column("than", numeric=False),
        Column("difference"),
        Column("95 % interval", title="Bootstrap over users"),
        Column("p", less=True, title="Paired randomisation test over users, Holm's correction"),
        Column("p, seeds", less=True, title="Welch's t-test over seeds, not corrected"),
        Column("ahead", title="Pairs of seeds in which the first is ahead"),
        Column("outcome", numeric=False),
    ]
    rows = [_row(one) for one in sorted(outcome, key=matters)]
    parts = [rows[:SHOWN], rows[SHOWN:]]
    names = [f"Differences in {part.metric}", f"Further differences in {part.metric}"]
    return [
        Table(name, columns, own, hidden_caption=True)
        for name, own in zip(names, parts, strict=True)
        if own
    ]


def _row(one: Comparison) -> list[Cell | str]:
    low, high = one.interval
    resolved = "better" if sign(one.metric) else "higher"
    told = resolved if one.better else "not resolved"
    if one.better and one.one_seed:
        told = f"{resolved}, one seed"
    return [
        one.first,
        one.second,
        Cell(f"{one.difference:+.4f}", one.difference),
        Cell(f"{number(low)} … {number(high)}", low),
        Cell(p_text(one.p), one.p),
        Cell("–" if one.p_seeds is None else p_text(one.p_seeds), one.p_seeds),
        Cell(f"{one.ahead}/{one.pairs}", one.ahead / one.pairs),
        Cell(told, mark="good" if one.better else "quiet", title=one.verdict),
    ]


def p_text(value: float) -> str:
    """Return a p-value with three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
