"""The colours of pages and charts, by name, in light and dark.

Charts are drawn in the light colours; on a page each becomes the CSS variable of its name, so that
the theme, and printing, change what is drawn already.
"""

from __future__ import annotations

from collections.abc import Mapping

# Okabe and Ito's palette, which colour-blind readers can tell apart. Its yellow is too pale on
# white, its black too dark on black; the last one is for what is beyond the named series.
_LIGHT_SERIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8a6d3b",
)  # fmt: skip
_DARK_SERIES = (
    "#4fa8e0", "#ff8a3d", "#2ec79a", "#e79cc4", "#f2b93b", "#8fd0f7", "#b596e0", "#c9a66b",
)  # fmt: skip

COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171c"),
    "raised": ("#f6f7f9", "#1d2128"),
    "ink": ("#1b1f24", "#e8eaed"),
    "quiet": ("#59636e", "#a4adb8"),
    "line": ("#dfe3e8", "#343a43"),
    "grid": ("#eceff2", "#2a2f37"),
    "link": ("#0a5fb4", "#79b8ff"),
    "warn": ("#8a5300", "#f0b95a"),
    "warned": ("#fff6e5", "#2b2415"),
    "good": ("#116b3c", "#5fd19a"),
    "other": ("#8b949e", "#79828d"),
    **{
        f"s{number}": pair
        for number, pair in enumerate(zip(_LIGHT_SERIES, _DARK_SERIES, strict=True), 1)
    },
}
"""By the name of their CSS variable: light, dark. All values differ within a column."""

SERIES = _LIGHT_SERIES
"""Colours of the first series of a chart; further ones take `other`, and a shape of `SHAPES`."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def as_css(theme: int) -> str:
    """Return the variables' declarations; `theme` 0 is light, 1 dark."""
    return ";".join(f"--{name}:{pair[theme]}" for name, pair in COLOURS.items())
