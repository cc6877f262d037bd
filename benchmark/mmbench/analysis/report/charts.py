"""The charts of reports: rows of numbers to charts of Altair, for pages and for picture files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmbase.pages import COLOURS, SERIES, SHAPES

if TYPE_CHECKING:
    import altair as alt

Rows = Sequence[Mapping[str, Any]]
_QUIET, _LINE, _INK, _PAPER = (COLOURS[n][0] for n in ("quiet", "line", "ink", "paper"))


@dataclass(frozen=True)
class Look:
    """How charts are drawn.

    Attributes:
        systems: The names of the series, in the order of their colours.
        legend: Whether each chart has a legend; a page has buttons instead.
        width: Pixels; None: as wide as the place on the page.
        height: Pixels.
    """

    systems: Sequence[str]
    legend: bool = False
    width: int | None = None
    height: int = 280

    @property
    def size(self) -> dict[str, Any]:
        """The chart's properties."""
        return {"width": self.width or "container", "height": self.height}

    def colour(self) -> alt.Color:
        """The systems' colours; those beyond the palette share one, and differ in shape."""
        import altair as alt

        beyond = [COLOURS["other"][0]] * max(len(self.systems) - len(SERIES), 0)
        scale = alt.Scale(domain=list(self.systems), range=[*SERIES[: len(self.systems)], *beyond])
        return alt.Color("system:N", scale=scale, legend=self._legend())

    def shape(self) -> alt.Shape:
        """The systems' shapes: circles for those with colours of their own."""
        import altair as alt

        own = ["circle"] * min(len(SERIES), len(self.systems))
        beyond = [SHAPES[n % len(SHAPES)] for n in range(len(self.systems) - len(own))]
        scale = alt.Scale(domain=list(self.systems), range=[*own, *beyond])
        return alt.Shape("system:N", scale=scale, legend=self._legend())

    def names(self, limit: int) -> alt.Axis:
        """Return an axis of names, cut at `limit` pixels, and on a phone at 120."""
        import altair as alt

        wide = f"containerSize()[0] > 600 ? {limit} : 120"
        cut = alt.ExprRef(expr=wide) if self.width is None else limit
        return alt.Axis(labelLimit=cut, ticks=False, labelColor=_INK, labelPadding=12)

    def _legend(self) -> Any:
        import altair as alt

        return alt.Legend(orient="bottom", columns=3, labelLimit=220) if self.legend else None

    def finish(self, rows: Rows, *layers: Any, **more: Any) -> alt.LayerChart:
        """Return the layers as a chart of the rows whose system is not switched off."""
        import altair as alt

        # The rows are the whole chart's: each layer would get a copy of them at every step.
        chart: Any = alt.layer(*layers, data=_data(rows))
        chart = chart.transform_filter("indexof(hidden, datum.system) < 0")
        chart = chart.add_params(alt.param("hidden", value=[]))
        shown: alt.LayerChart = chart.properties(**{**self.size, **more})
        return shown


def _data(rows: Rows) -> Any:
    import altair as alt

    data: Any = alt.Data
    return data(values=list(rows))


def ranking(look: Look, rows: Rows, metric: str) -> alt.LayerChart:
    """Draw each system's mean with its interval and its seeds.

    Args:
        look: The look.
        rows: Best first: system, mean, low, high, over, seeds (a list), told.
        metric: Name of the values.
    """
    import altair as alt

    base = alt.Chart()
    order = [row["system"] for row in rows]
    y = alt.Y(
        "system:N",
        sort=order,
        title=None,
        axis=look.names(270),
    )
    x = alt.X("mean:Q", title=metric, scale=alt.Scale(zero=False, nice=True, padding=8))
    tooltip = _tooltip(("system", "system"), (metric, "mean"), ("interval", "told"))
    whisker = base.mark_rule(strokeWidth=2.5, strokeCap="round", opacity=0.55).encode(
        y=y, x=alt.X("low:Q", title=metric), x2="high:Q", color=look.colour()
    )
    seeds = (
        base.transform_flatten(["seeds"], ["seed"])
        .mark_tick(thickness=1.5, size=11, opacity=0.8)
        .encode(y=y, x="seed:Q", color=look.colour())
    )
    means = base.mark_point(filled=True, size=85, opacity=1).encode(
        y=y, x=x, color=look.colour(), shape=look.shape(), tooltip=tooltip
    )
    return look.finish(rows, whisker, seeds, means, height=26 * len(order))


def trade_off(look: Look, rows: Rows, x: str, y: str, *, log: bool = False) -> alt.LayerChart:
    """Draw one value of each system against another, with the front of those that nothing beats.

    Args:
        look: The look.
        rows: system, x, y, front (whether it is on the front, if there is one).
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        log: Whether the horizontal axis is logarithmic.
    """
    import altair as alt

    base = alt.Chart()
    known = sorted(float(row["x"]) for row in rows)
    middle = (known[0] * known[-1]) ** 0.5 if log else (known[0] + known[-1]) / 2
    across = alt.X(
        "x:Q",
        title=x,
        scale=alt.Scale(type="log", nice=False, padding=26)
        if log
        else alt.Scale(zero=False, nice=False, padding=26),
        axis=alt.Axis(grid=True, format="~g", tickCount=5, labelOverlap=True)
        if log
        else alt.Axis(grid=True, tickCount=5),
    )
    up = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False, nice=True, padding=14))
    front = (
        base.transform_filter("datum.front")
        .mark_line(color=_QUIET, strokeWidth=1.2, strokeDash=[4, 3], opacity=0.9)
        .encode(x=across, y=up, order="x:Q")
    )
    tooltip = _tooltip(("system", "system"), (x, "x"), (y, "y"), ("on the front", "on_front"))
    points = base.mark_point(filled=True, size=95, opacity=1).encode(
        x=across, y=up, color=look.colour(), shape=look.shape(), tooltip=tooltip
    )
    left, right = f"datum.x <= {middle!r}", f"datum.x > {middle!r}"
    sides: list[tuple[str, Any, int]] = [(left, "left", 5), (right, "right", -5)]
    halo: dict[str, Any] = {"stroke": _PAPER, "strokeWidth": 3.5, "strokeJoin": "round"}
    texts = [
        base.transform_calculate(name=f"datum.named && {side} ? datum.system : ''")
        .mark_text(align=align, dx=dx, dy=-9, fontSize=11, color=_INK, limit=110, **around)
        .encode(x=across, y=up, text="name:N")
        for side, align, dx in sides
        for around in (halo, {})
    ]
    fronts = [front] if any(row["front"] for row in rows) else []
    return look.finish(rows, *fronts, points, *texts)


def curves(look: Look, rows: Rows, x: str, y: str) -> alt.LayerChart:
    """Draw means by a number, with a band from the lowest to the highest seed.

    Args:
        look: The look.
        rows: system, x, y, low, high, n (seeds).
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
    """
    import altair as alt

    base = alt.Chart()
    across = alt.X("x:Q", title=x, scale=alt.Scale(nice=False))
    up = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False))
    band = base.mark_area(opacity=0.16).encode(
        x=across, y=alt.Y("low:Q", title=y), y2="high:Q", color=look.colour()
    )
    seeds = (("lowest seed", "low"), ("highest seed", "high"), ("seeds", "n"))
    tooltip = _tooltip(("system", "system"), (x, "x"), (y, "y"), *seeds)
    lines = base.mark_line(strokeWidth=2).encode(x=across, y=up, color=look.colour())
    points = base.mark_point(filled=True, size=36, opacity=1).encode(
        x=across, y=up, color=look.colour(), shape=look.shape(), tooltip=tooltip
    )
    return look.finish(rows, band, lines, points)


def slices(look: Look, rows: Rows, metric: str) -> alt.LayerChart:
    """Draw a metric of each system in the slices of one family.

    Args:
        look: The look.
        rows: system, slice, y, users, rule; the slices in their order.
        metric: Name of the values.
    """
    import altair as alt

    base = alt.Chart()
    order = list(dict.fromkeys(row["slice"] for row in rows))
    y = alt.Y(
        "slice:N",
        sort=order,
        title=None,
        axis=look.names(110),
    )
    span = (
        base.transform_aggregate(low="min(y)", high="max(y)", groupby=["slice"])
        .mark_rule(color=_LINE, strokeWidth=6, strokeCap="round")
        .encode(y=y, x=alt.X("low:Q", title=metric), x2="high:Q")
    )
    of_slice = (("slice", "slice"), (metric, "y"), ("users", "users"), ("items", "rule"))
    tooltip = _tooltip(("system", "system"), *of_slice)
    points = base.mark_point(filled=True, size=95, opacity=0.95).encode(
        y=y,
        x=alt.X("y:Q", title=metric, scale=alt.Scale(zero=True, nice=True)),
        color=look.colour(),
        shape=look.shape(),
        tooltip=tooltip,
    )
    return look.finish(rows, span, points, height=38 * len(order))


def critical_difference(rows: Rows, critical: float, n: int) -> alt.LayerChart:
    """Draw mean ranks, each with a bar as long as the critical difference.

    Args:
        rows: system, rank, joined (in words).
        critical: The critical difference.
        n: Number of datasets.
    """
    import altair as alt

    look = Look([])
    order = [row["system"] for row in rows]
    x = alt.X(
        "rank:Q",
        title=f"mean rank over {n} datasets (1 is best)",
        scale=alt.Scale(domain=[1, max(len(rows), 2)], nice=False, padding=10),
    )
    y = alt.Y(
        "system:N",
        sort=order,
        title=None,
        axis=look.names(270),
    )
    base = alt.Chart()
    reach = (
        base.transform_calculate(high=f"min(datum.rank + {critical!r}, {max(len(rows), 2)})")
        .mark_rule(strokeWidth=7, strokeCap="round", color=_LINE)
        .encode(x=x, x2="high:Q", y=y)
    )
    points = base.mark_point(filled=True, size=100, opacity=1, color=SERIES[0]).encode(
        x=x,
        y=y,
        tooltip=_tooltip(("system", "system"), ("mean rank", "rank"), ("joined with", "joined")),
    )
    texts = base.mark_text(align="left", dx=10, color=_INK, fontSize=11).encode(
        x=x, y=y, text=alt.Text("rank:Q", format=".2f")
    )
    return look.finish(rows, reach, points, texts, height=30 * len(order))


def factor_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    labels: tuple[str, str],
) -> alt.HConcatChart:
    """Draw a metric by a factor with numbers, a panel and a line for each combination of others.

    Args:
        panels: By title and label the points of a line: the factor, the mean, half its interval.
        labels: Of the two axes.
    """
    import altair as alt

    lines = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    look = Look(lines, legend=True, width=320, height=260)
    points = [
        (x, m - h, m + h)
        for panel in panels.values()
        for line in panel.values()
        for x, m, h in line
    ]
    low, high = min(p[1] for p in points), max(p[2] for p in points)
    # Intervals at one level stand beside each other.
    step = 0.012 * (max(p[0] for p in points) - min(p[0] for p in points))
    beside = {label: step * (n - (len(lines) - 1) / 2) for n, label in enumerate(lines)}
    charts: list[Any] = []
    for title, panel in panels.items():
        rows = [
            {
                "system": label,
                "x": x + beside[label],
                "y": mean,
                "low": mean - half,
                "high": mean + half,
            }
            for label, line in panel.items()
            for x, mean, half in sorted(line)
        ]
        base = alt.Chart()
        up = alt.Scale(domain=[low, high], nice=True, zero=False)
        y = alt.Y("y:Q", title=labels[1] if not charts else None, scale=up)
        x_ = alt.X("x:Q", title=labels[0])
        bars = base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(
            x=x_, y=alt.Y("low:Q", scale=up, title=None), y2="high:Q", color=look.colour()
        )
        lines_ = base.mark_line(strokeWidth=2).encode(x=x_, y=y, color=look.colour())
        dots = base.mark_point(filled=True, size=45, opacity=1).encode(
            x=x_, y=y, color=look.colour(), shape=look.shape()
        )
        charts.append(
            alt.layer(bars, lines_, dots, data=_data(rows)).properties(
                width=320, height=260, title=title
            )
        )
    return alt.hconcat(*charts)


def _tooltip(*pairs: tuple[str, str]) -> list[alt.Tooltip]:
    """Return what stands at the mouse: pairs of a title and a field."""
    import altair as alt

    numbers = {"mean", "x", "y", "low", "high", "rank"}
    return [
        alt.Tooltip(field=name, type="quantitative", format=".4~g", title=title)
        if name in numbers
        else alt.Tooltip(field=name, type="nominal", title=title)
        for title, name in pairs
    ]
