"""The charts of the page: lengths of vectors, and the map."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.pages import COLOURS, SERIES

GROUPS = 7  # that have a colour of their own
OTHERS = "others"
_BINS = 40


def norm_chart(norms: NDArray[np.float64]) -> Any:
    """Return the histogram of lengths; None where all are equal."""
    import altair as alt

    low, high = float(norms.min()), float(norms.max())
    if high - low <= 1e-5 * high:  # of unit vectors, rounding is all that differs
        return None
    counts, edges = np.histogram(norms, bins=_BINS, range=(low, high))
    bars = [
        {"from": float(f"{left:.6g}"), "to": float(f"{right:.6g}"), "items": int(count)}
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    return (
        alt.Chart(alt.InlineData(values=bars))
        .mark_bar(color=SERIES[0], binSpacing=1)
        .encode(
            x=alt.X("from:Q", title="length of the vector", bin="binned", scale={"zero": False}),
            x2="to:Q",
            y=alt.Y("items:Q", title="items"),
            tooltip=[
                alt.Tooltip("from:Q", title="from"),
                alt.Tooltip("to:Q", title="to"),
                alt.Tooltip("items:Q", title="items"),
            ],
        )
        .properties(width="container", height=180)
    )


@dataclass(frozen=True)
class WithPoints:
    """A chart whose data are put in at the end: Altair would check them one by one, for seconds."""

    chart: Any
    points: Sequence[dict[str, Any]]

    def to_dict(self, **options: Any) -> dict[str, Any]:
        """Return the specification, with the data."""
        spec: dict[str, Any] = self.chart.to_dict(**options)
        spec["data"] = {"values": self.points}
        return spec


def map_chart(points: Sequence[dict[str, Any]], groups: Sequence[str]) -> Any:
    """Return the map, with a switch between places by neighbours and by components.

    Args:
        points: See `map_points`.
        groups: The groups in the order of their colours; empty without any.
    """
    import altair as alt

    layout = alt.param(
        name="layout",
        value="neighbours",
        bind=alt.binding_radio(options=["neighbours", "principal components"], name="Placed by"),
    )
    size = 22 if len(points) > 2000 else 40
    chart = alt.Chart(alt.NamedData("points")).mark_circle(opacity=0.75, size=size)
    chart = chart.transform_calculate(
        x="layout == 'neighbours' ? datum.a : datum.c",
        y="layout == 'neighbours' ? datum.b : datum.d",
    )
    plain = alt.Axis(labels=False, ticks=False, grid=False, domain=False, title=None)
    scale = alt.Scale(zero=False, nice=False, padding=12)
    colour: Any = alt.value(SERIES[0])
    if groups:
        shades = [*SERIES[: len(groups)]]
        if groups[-1] == OTHERS:
            shades[-1] = COLOURS["other"][0]
        colour = alt.Color(
            "g:N",
            scale=alt.Scale(domain=list(groups), range=shades),
            sort=list(groups),
            legend=alt.Legend(symbolOpacity=1, symbolType="circle", columns=4, labelLimit=140),
        )
    chart = chart.encode(
        x=alt.X("x:Q", axis=plain, scale=scale),
        y=alt.Y("y:Q", axis=plain, scale=scale),
        color=colour,
        tooltip=[alt.Tooltip("n:N", title="title"), alt.Tooltip("i:N", title="image")],
    ).properties(width="container", height=560)
    zoom = alt.selection_interval(
        name="view", bind="scales", zoom="wheel![event.shiftKey]", translate=True
    )
    return WithPoints(chart.add_params(layout, zoom), points)


def map_points(
    names: Sequence[str],
    groups: Sequence[str],
    components: NDArray[np.float32],
    places: NDArray[np.float32],
) -> list[dict[str, Any]]:
    """Return the points with short names of fields, of which there are many.

    `n` is the text, `g` the group if there are any, `i` the picture (empty for now), `c` and `d`
    the components, `a` and `b` the places by neighbours.
    """
    points: list[dict[str, Any]] = []
    scale = float(np.abs(components).max()) or 1.0
    for row, name in enumerate(names):
        point: dict[str, Any] = {"n": name, "i": ""}
        if groups:
            point["g"] = groups[row]
        point["c"], point["d"] = (round(float(one) / scale, 3) for one in components[row, :2])
        point["a"], point["b"] = (round(float(one), 2) for one in places[row])
        points.append(point)
    return points


def coloured_groups(groups: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return each item's group, rare ones as `OTHERS`, and the groups by number of items.

    Nothing where the groups say little: there is one, or most items are in rare ones.
    """
    counts = Counter(one for one in groups if one)
    common = [name for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]
    common = common[: GROUPS if len(common) > GROUPS + 1 or "" in groups else GROUPS + 1]
    if len(common) < 2 or 2 * sum(counts[name] for name in common) < len(groups):
        return [], []
    short = {name: name if len(name) <= 40 else name[:39] + "…" for name in common}
    own = [short.get(one, OTHERS) for one in groups]
    found = list(dict.fromkeys(short.values()))
    return own, [*found, OTHERS] if OTHERS in own and OTHERS not in found else found


def size_of(points: Sequence[dict[str, Any]]) -> int:
    """Return the bytes that the points take on the page."""
    return len(json.dumps(points, ensure_ascii=False, separators=(",", ":")).encode())
