"""Results that are tables: as a pandas frame, as HTML in a notebook, as text everywhere else.

What a table shows comes from files of others: in HTML it is escaped, in text control characters are
spelled out, and neither takes markup.
"""

from __future__ import annotations

import html
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.text import Text

_ROWS = 20
"""Rows that are shown; `to_pandas` has all."""


class Tabular:
    """A result with a title and a table, which shows itself where Python shows values."""

    @property
    def title(self) -> str:
        """What the table is of, in a line."""
        return type(self).__name__

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas frame, a new one at each call."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Return the table for a notebook, with everything escaped."""
        frame = self._shown()
        table = frame.to_html(index=_named(frame), escape=True, border=0)
        # Notebooks would else typeset what stands between two dollar signs.
        return f'<div class="tex2jax_ignore"><p>{html.escape(_plain(self.title))}</p>{table}</div>'

    def __rich__(self) -> Text:
        """Return the table for a console of rich."""
        from rich.text import Text

        return Text(str(self))

    def __str__(self) -> str:
        frame = self._shown()
        width = shutil.get_terminal_size((100, 24)).columns
        return f"{_plain(self.title)}\n{frame.to_string(index=_named(frame), line_width=width)}"

    def __repr__(self) -> str:
        return str(self)

    def _listed(self) -> pd.DataFrame:
        """Return what is shown: all of the table, unless the whole is costly to make."""
        return self.to_pandas()

    def _shown(self) -> pd.DataFrame:
        """Return the first rows with texts alone; a line of dots says that there are more."""
        whole = self._listed()
        frame = whole.head(_ROWS).rename(columns=_plain).map(_cell)
        if _named(whole):
            frame.index = frame.index.map(_cell).rename(_plain(whole.index.name))
        if len(whole) > _ROWS:
            frame.loc["…"] = "…"
        return frame


def _named(frame: pd.DataFrame) -> bool:
    """Whether the index says something: numbers of rows have no name."""
    return frame.index.name is not None


def _plain(text: Any) -> str:
    """Return a text without control characters: they are spelled out, `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def _cell(value: object) -> str:
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return _plain(value)
