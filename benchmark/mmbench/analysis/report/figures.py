"""The figures of a report: what each shows of the runs, and the chart that shows it."""

from __future__ import annotations

import statistics as stdlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmbench.analysis.report import charts
from mmbench.analysis.report.board import Standing, ordered, standing
from mmbench.analysis.report.charts import Look
from mmbench.analysis.report.results import Line, Reproduction
from mmbench.analysis.report.variants import Variants
from mmbench.errors import ToolError
from mmbench.metrics import METRICS, sign
from mmbench.runs.finished_runs import FinishedRun, System
from mmbench.runs.folder import RunFolder

if TYPE_CHECKING:
    import altair as alt

_ACCURACY = "mmbench.metrics.ranking"  # where the metrics are that only count hits
_NAMED = 12
"""Systems up to which every point of a chart is named; of more, those on the front."""


@dataclass(frozen=True)
class Figure:
    """A chart with its name, which is read aloud, and what a reader should know about it."""

    name: str
    caption: str
    draw: Callable[[Look], alt.TopLevelMixin]


Figures = Mapping[str, Sequence[Figure]]
"""By section: `ranking`, `trade-offs`, `curves`, `slices`, `cost`, `missing`."""


def figures_of(part: Reproduction, board: Sequence[Standing]) -> dict[str, list[Figure]]:
    """Return the figures that the runs have numbers for."""
    found = {
        "ranking": _ranking(part, board),
        "trade-offs": _trade_offs(part),
        "curves": _learning(part),
        "slices": _slices(part),
        "cost": _costs(part),
        "missing": _missing(part),
    }
    return {name: figures for name, figures in found.items() if figures}


def picture(figures: Sequence[Figure], look: Look) -> alt.TopLevelMixin:
    """Return the figures of a section as one chart for a picture file, with a legend."""
    import altair as alt

    single = len(figures) == 1
    look = replace(look, legend=True, width=560 if single else 300, height=320 if single else 230)
    drawn: list[Any] = [figure.draw(look) for figure in figures]
    return drawn[0] if single else alt.concat(*drawn, columns=3)


def _ranking(part: Reproduction, board: Sequence[Standing]) -> list[Figure]:
    rows = [
        {
            "system": one.label,
            "mean": one.mean,
            "low": one.interval[0] if one.interval else one.mean,
            "high": one.interval[1] if one.interval else one.mean,
            "seeds": list(one.seeds) if len(one.seeds) > 1 else [],
            "told": f"{one.interval_text} over {one.over}" if one.interval else "none",
        }
        for one in board
    ]
    if not rows:
        return []
    caption = (
        "Point: mean over seeds. Bar: 95 % interval over seeds, or over users where one run is all "
        "there is. Ticks: seeds."
    )
    name = f"{part.metric} of every system with its 95 % interval"
    return [Figure(name, caption, lambda look: charts.ranking(look, rows, part.metric))]


def _points(
    part: Reproduction, xs: Mapping[str, float | None], towards: int | None
) -> list[dict[str, Any]]:
    """Return a point for each system that has both values; those on the front are marked.

    Args:
        part: The page; its metric is the vertical value.
        xs: The horizontal values by system.
        towards: 1 if more of them is better, -1 if less, None: there is no front.
    """
    ys = {one.label: one.mean for one in ordered(part.systems, part.metric)}
    up = sign(part.metric)
    known = [(label, x, y) for label, y in ys.items() if (x := xs.get(label)) is not None]
    rows = []
    for label, x, y in known:
        beaten = (
            towards is not None
            and up is not None
            and any(
                towards * a >= towards * x and up * b >= up * y and (a, b) != (x, y)
                for _, a, b in known
            )
        )
        front = towards is not None and up is not None and not beaten
        told = "yes" if front else "no" if towards else "–"
        rows.append({"system": label, "x": x, "y": y, "front": front, "on_front": told})
    _name(rows)
    return rows


def _name(rows: list[dict[str, Any]]) -> None:
    """Mark the points that are named: those on the front first, none where names would collide."""
    if not rows:
        return
    width, height = (max(row[k] for row in rows) - min(row[k] for row in rows) for k in "xy")
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda one: not one["front"]):
        near = any(
            abs(row["x"] - x) <= 0.35 * width and abs(row["y"] - y) <= 0.055 * height
            for x, y in taken
        )
        row["named"] = not near and (row["front"] or len(rows) <= _NAMED)
        if row["named"]:
            taken.append((row["x"], row["y"]))


def _trade_offs(part: Reproduction) -> list[Figure]:
    cutoff = part.metric.rpartition("@")[2]
    there = [name for name in part.metrics if name.rpartition("@")[2] == cutoff]
    known = {name: METRICS.get(name.rpartition("@")[0]) for name in there if name != part.metric}
    across = [n for n, one in known.items() if one and one.compute.__module__ != _ACCURACY]
    out = []
    for metric in across[:6]:
        rows = _points(part, {s.label: _mean(s, metric) for s in part.systems}, sign(metric))
        if len(rows) < 2:
            continue
        towards = {1: "further right is better", -1: "further left is better"}
        caption = towards.get(sign(metric) or 0, "neither side is better by itself")

        def draw(look: Look, rows: Any = rows, metric: str = metric) -> Any:
            return charts.trade_off(look, rows, metric, part.metric)

        out.append(Figure(f"{part.metric} against {metric}", f"{metric}: {caption}.", draw))
    return out


def _mean(system: System, metric: str) -> float | None:
    found = standing(system, metric, users=False)
    return None if found is None else found.mean


def _costs(part: Reproduction) -> list[Figure]:
    peaks = ("peak_memory_bytes", "peak memory of the process, GiB", 2**30)
    out = []
    for key, title, unit in (("train_s", "seconds of training", 1), peaks):
        known = {line.model: line.cost[key] for line in part.lines}
        xs = {model: value / unit for model, value in known.items() if value}
        rows = _points(part, xs, -1)
        if len(rows) < 2:
            continue
        spread = max(xs.values()) / min(xs.values())

        def draw(look: Look, rows: Any = rows, title: str = title, log: bool = spread > 8) -> Any:
            return charts.trade_off(look, rows, title, part.metric, log=log)

        caption = "Medians over seeds; further left is cheaper. What is not trained has no seconds."
        if key != "train_s":
            caption = "Medians over seeds; further left is cheaper."
        out.append(Figure(f"{part.metric} against {title}", caption, draw))
    return out


def _learning(part: Reproduction) -> list[Figure]:
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for system in part.systems:
        seeds = [(run, curve) for run in system.runs if len(curve := curve_of(run)) > 1]
        if not seeds:
            continue
        metric = seeds[0][0].metrics["selected_by"]["metric"]
        by_epoch: dict[int, list[float]] = {}
        for _, curve in seeds:
            for epoch, value in curve:
                by_epoch.setdefault(epoch, []).append(value)
        # Where some seeds stopped earlier, a mean of the others would jump.
        whole = {e: values for e, values in by_epoch.items() if len(values) == len(seeds)}
        by_metric.setdefault(metric, []).extend(
            {
                "system": system.label,
                "x": e,
                "y": stdlib.fmean(v),
                "low": min(v),
                "high": max(v),
                "n": len(v),
            }
            for e, v in sorted(whole.items())
        )
    out = []
    for metric, rows in by_metric.items():

        def draw(look: Look, rows: Any = rows, metric: str = metric) -> Any:
            return charts.curves(look, rows, "epoch", f"validation {metric}")

        caption = (
            "Mean over seeds, as far as all of them trained; the band is from the lowest to the "
            "highest seed."
        )
        out.append(Figure(f"Validation {metric} by epoch", caption, draw))
    return out


def curve_of(run: FinishedRun) -> list[tuple[int, float]]:
    """Return epochs and validation values; of a search, those of the chosen trial."""
    folder = RunFolder(run.path)
    with suppress(OSError, ValueError, KeyError, ToolError):
        chosen = run.record.get("chosen_trial")
        metric = run.metrics["selected_by"]["metric"]
        lines = (folder if chosen is None else folder.trial(chosen)).history()
        return [(line["epoch"], line["valid"][metric]) for line in lines if line.get("valid")]
    return []


FAMILIES = {
    "popularity": "By the popularity of the held-out items",
    "items": "Items that training knows, and cold ones",
    "activity": "By the users' training rows",
    "target": "Next items that the history has, and new ones",
}


def slice_rows(part: Reproduction) -> dict[str, list[dict[str, Any]]]:
    """Return the page's metric in each slice, means over seeds, by family of slices."""
    out: dict[str, list[dict[str, Any]]] = {}
    for system in part.systems:
        values: dict[tuple[str, str], list[float]] = {}
        known: dict[tuple[str, str], Any] = {}
        for run in system.runs:
            for one in run.metrics.get("slices", {}).get("test", ()):
                key = (one["family"], one["slice"])
                value = one["metrics"].get(part.metric)
                if value is not None:
                    values.setdefault(key, []).append(value)
                    known[key] = one
        for key, of_seeds in values.items():
            one = known[key]
            out.setdefault(key[0], []).append(
                {"system": system.label, "slice": key[1], "y": stdlib.fmean(of_seeds),
                 "users": one.get("users_evaluated", 0), "rule": one["rule"]}
            )  # fmt: skip
    return out


def _slices(part: Reproduction) -> list[Figure]:
    out = []
    for family, rows in slice_rows(part).items():
        names = {row["slice"] for row in rows}
        if len(names) < 2:
            continue
        vectors = names == {"with", "without"}
        name = f"Items with and without a vector: {family}" if vectors else f"By {family}"
        name = FAMILIES.get(family, name)
        told = {row["slice"]: (row["rule"], row["users"]) for row in rows}
        caption = "; ".join(f"{s}: {rule} ({users:,} users)" for s, (rule, users) in told.items())

        def draw(look: Look, rows: Any = rows) -> Any:
            return charts.slices(look, rows, part.metric)

        out.append(Figure(name, f"{caption}.", draw))
    return out


def _missing(part: Reproduction) -> list[Figure]:
    rows = Variants(part).by_share()
    if not rows:
        return []
    axis = "share of the vectors that were taken away"
    caption = "Mean over seeds; the band is from the lowest to the highest seed."

    def draw(look: Look) -> Any:
        lines = list(dict.fromkeys(row["system"] for row in rows))
        return charts.curves(
            replace(look, systems=lines, legend=len(lines) > 1), rows, axis, part.metric
        )

    name = f"{part.metric} by the share of missing vectors"
    lines = {row["system"] for row in rows}
    return [Figure(f"{name}: {lines.pop()}" if len(lines) == 1 else name, caption, draw)]


def look_of(lines: Sequence[Line], board: Sequence[Standing]) -> Look:
    """Return the look of a page: colours in the order of the board."""
    labels = [one.label for one in board]
    return Look([*labels, *(line.model for line in lines if line.model not in labels)])
