"""Tables of a page: cells with what they sort by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What stands there; `Markup` is not escaped.
        value: What the column is sorted by; None: the text.
        mark: CSS classes: `best`, `second`, `warn`, `quiet`; `chip1` … put a series' colour before
            the text.
        title: Shown where the mouse rests.
        note: A second, smaller line.
    """

    text: str
    value: float | None = None
    mark: str = ""
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: Its heading.
        numeric: Whether it is aligned to the right, in figures of one width.
        less: Whether the first click on its heading sorts ascending: texts, and metrics of which
            less is better.
        title: Shown where the mouse rests on the heading.
    """

    name: str
    numeric: bool = True
    less: bool = False
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table; template `parts.html` has the macro `table(one)`.

    Attributes:
        caption: What the table is, for screen readers and above it.
        columns: The columns.
        rows: The cells by row; the first of each is the row's heading.
        sortable: Whether the headings are buttons that sort.
        sorted_by: Number of the column by which the rows are sorted as they come; None: none.
        hidden_caption: Whether only screen readers get the caption.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    sortable: bool = True
    sorted_by: int | None = None
    hidden_caption: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows with a `Cell` in place of each text."""
        return [[one if isinstance(one, Cell) else Cell(one) for one in row] for row in self.rows]
