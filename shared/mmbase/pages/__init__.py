"""Pages that open from a file: one HTML document with its style, its scripts and its charts.

`environment` finds templates, `render` fills one in, `charts` puts Altair's charts into it and
makes pictures of the same charts. Template `base.html` is what pages extend; it has the theme, the
style and the scripts. Nothing on a page asks any host for anything.

All of this needs the extra `report`; `require_extra` says so in one line where it is missing.
"""

from mmbase.pages.charts import chart_figure, page_theme, static_picture, static_pictures
from mmbase.pages.palette import COLOURS, SERIES, SHAPES
from mmbase.pages.rendering import (
    environment,
    has_extra,
    render,
    require_extra,
    require_page_name,
)
from mmbase.pages.tables import Cell, Column, Table

__all__ = [
    "COLOURS",
    "SERIES",
    "SHAPES",
    "Cell",
    "Column",
    "Table",
    "chart_figure",
    "environment",
    "has_extra",
    "page_theme",
    "render",
    "require_extra",
    "require_page_name",
    "static_picture",
    "static_pictures",
]
