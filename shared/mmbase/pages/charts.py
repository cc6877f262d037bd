"""Charts of Altair on pages and as picture files: the same chart, the same numbers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from mmbase.pages.palette import COLOURS, SERIES

if TYPE_CHECKING:
    import altair as alt
    from markupsafe import Markup

_WIDTH = 640
"""Pixels of a picture whose chart has the width of its place on the page."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def page_theme() -> dict[str, Any]:
    """Return Vega-Lite's `config`: quiet axes, light grid, series in the order of `SERIES`."""
    ink, quiet, line, grid = (COLOURS[name][0] for name in ("ink", "quiet", "line", "grid"))
    text = {"labelColor": quiet, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "gridColor": grid,
            "domain": False,
            "tickColor": line,
            "labelPadding": 6,
            "tickCount": 6,
            "labelFlush": False,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": line},
        "legend": {**text, "orient": "top", "title": None, "symbolStrokeWidth": 2},
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "header": {"labelColor": ink, "titleColor": quiet, "labelFontSize": 12},
        "text": {"color": ink, "fontSize": 12},
        "range": {"category": list(SERIES)},
    }


def chart_figure(
    chart: alt.TopLevelMixin, name: str, caption: str = "", tall: bool = False
) -> Markup:
    """Return the figure of a chart, for a page of `base.html`.

    The chart may have `width="container"`; a parameter `hidden`, a list, is set to the names of the
    systems that the page's buttons switch off (`data-series`).

    Args:
        chart: The chart; colours of `palette.COLOURS` follow the page's theme.
        name: What it shows, in words: the line above it, and its accessible name.
        caption: A sentence below it.
        tall: Whether the place kept for it while it is drawn is twice as high.
    """
    from markupsafe import Markup

    spec = _coloured(_plain(chart))
    text = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup(
        '<figure class="chart"><p class="name">{1}</p>'
        '<div class="plot{0}" role="group" aria-label="{1}"></div>'
        '<script type="application/json">{2}</script>{3}</figure>'
    ).format(" tall" if tall else "", name, Markup(_as_json(spec)), text)


def static_pictures(chart: alt.TopLevelMixin) -> dict[str, bytes]:
    """Return a chart as the contents of picture files, by their endings `svg` and `png`."""
    import vl_convert

    svg = static_picture(chart, "svg")
    return {"svg": svg, "png": vl_convert.svg_to_png(svg.decode(), scale=2)}


def static_picture(chart: alt.TopLevelMixin, kind: Literal["svg", "png"]) -> bytes:
    """Return a chart as the content of a picture file, in the light colours, on white."""
    import vl_convert

    spec = _sized(_plain(chart))
    spec["config"] = {**spec["config"], "background": COLOURS["paper"][0], "font": "sans-serif"}
    spec["padding"] = 12
    svg = vl_convert.vegalite_to_svg(spec)
    return svg.encode() if kind == "svg" else vl_convert.svg_to_png(svg, scale=2)


def _plain(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return the chart's specification with the theme, without what may differ between calls.

    It is not validated, which takes longer than all else here: a test does.
    """
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec["config"] = page_theme()
    spec.pop("usermeta", None)
    return spec


def _sized(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "width": _WIDTH} if spec.get("width") == "container" else spec


def _coloured(spec: Any) -> Any:
    """Replace the light colours by the variables of the page's theme."""
    if isinstance(spec, dict):
        return {name: _coloured(value) for name, value in spec.items()}
    if isinstance(spec, list):
        return [_coloured(value) for value in spec]
    return _VARIABLES.get(spec, spec) if isinstance(spec, str) else spec


_VARIABLES = {pair[0]: f"var(--{name})" for name, pair in COLOURS.items()}


def _as_json(value: Any) -> str:
    """Return JSON that can't end the script it stands in."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
