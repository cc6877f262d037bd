"""Tables and paragraphs for a terminal: laid out by its width, and no number or name is cut.

Columns that don't fit go into further tables below, then long labels onto lines of their own; text
that is still too wide runs over the edge, where the terminal wraps it.
"""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

WIDTH = 80
"""Columns of output to a pipe or a file, unless $COLUMNS says otherwise."""

_MARGIN, _GAP = " ", "  "


def width() -> int:
    """Return the columns to print in: $COLUMNS, else those of the terminal, else `WIDTH`."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number and its noun: `1 item`, `2,345 items`; `many` where it is not one and s."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def hanging(text: str, first: str = "", then: str | None = None, *, limit: int = 0) -> str:
    """Return a text in lines of at most `limit` columns, broken between words alone.

    Args:
        text: Without line breaks.
        first: What the first line begins with.
        then: What further lines begin with; None: blanks, so that they hang below the first.
        limit: 0 for `width()`.
    """
    wrapper = textwrap.TextWrapper(limit or width(), break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent = first
    wrapper.subsequent_indent = " " * _length(first) if then is None else then
    return wrapper.fill(text).rstrip() or first.rstrip()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading; may be empty.
        cells: One for each row; a cell may have several lines.
        left: Whether it is aligned to the left, as texts are; numbers stand on the right.
    """

    name: str
    cells: Sequence[str]
    left: bool = False

    @cached_property
    def width(self) -> int:
        """Characters of the widest line."""
        lines = (line for cell in (self.name, *self.cells) for line in cell.split("\n"))
        return max(map(_length, lines))


def fits(labels: Sequence[Column], columns: Sequence[Column], *, limit: int = 0) -> bool:
    """Return whether all columns fit side by side."""
    return _total([*labels, *columns]) <= (limit or width())


def tables(labels: Sequence[Column], columns: Sequence[Column], *, limit: int = 0) -> list[str]:
    """Return a table as text; several, each with the labels, where not all columns fit.

    If the labels take more than a quarter of the width, those that leave too little room for the
    columns stand on lines of their own instead, above the row's other cells.

    Args:
        labels: The columns that identify a row.
        columns: The others, at least one.
        limit: Columns of the terminal; 0 for `width()`.
    """
    limit = limit or width()
    above: Sequence[str] = ()
    if not fits(labels, columns, limit=limit) and _total(labels) > limit // 4:
        above, beside = _stacked(labels, limit - _total(columns) - len(_GAP))
    else:
        beside = [*labels]
    out = []
    for part in _parts(beside, columns, limit):
        head, *rows = _rows([*beside, *part])
        if above:
            stood = [_standing(text, limit) for text in above]
            head, *rows = ([*own, *row] for own, row in zip(stood, [head, *rows], strict=True))
        lines = list(itertools.chain(head, *rows))
        rule = _MARGIN + "─" * (min(limit, max(map(_length, lines))) - len(_MARGIN))
        out.append("\n".join([*lines[: len(head)], rule, *lines[len(head) :]]))
    return out


def _stacked(labels: Sequence[Column], room: int) -> tuple[list[str], list[Column]]:
    """Return the texts above the heading and each row, and the labels that stay beside them."""
    texts = [lines[0][len(_MARGIN) :] for lines in _rows(labels)]
    short = [text for text in texts if _length(text) <= room]
    if 2 * len(short) <= len(texts):  # few would stay: all have lines of their own
        short = []
    stay = [text if text in short else "" for text in texts]
    above = ["" if text in short else text for text in texts]
    return above, [Column(stay[0] or " ", stay[1:], left=True)]


def _total(columns: Sequence[Column]) -> int:
    """Columns of the terminal that a row takes."""
    return len(_MARGIN) + sum(one.width for one in columns) + len(_GAP) * (len(columns) - 1)


def _parts(
    beside: Sequence[Column], columns: Sequence[Column], limit: int
) -> Iterator[list[Column]]:
    """Split the columns, in order, into as few tables as fit."""
    part: list[Column] = []
    for column in columns:
        if part and _total([*beside, *part, column]) > limit:
            yield part
            part = []
        part.append(column)
    yield part


def _rows(columns: Sequence[Column]) -> list[list[str]]:
    """Return the lines of the heading and of each row."""
    out = []
    for cells in zip(*([one.name, *one.cells] for one in columns), strict=True):
        split = [cell.split("\n") for cell in cells]
        lines = []
        for number in range(max(map(len, split))):
            texts = [lines_of[number] if number < len(lines_of) else "" for lines_of in split]
            padded = (_pad(text, one) for text, one in zip(texts, columns, strict=True))
            lines.append((_MARGIN + _GAP.join(padded)).rstrip())
        out.append(lines)
    return out


def _standing(text: str, limit: int) -> list[str]:
    """Return the lines of a label that stands above its row."""
    if not text or _length(text) < limit:
        return [_MARGIN + text] if text else []
    return hanging(text, _MARGIN, _MARGIN + _GAP, limit=limit).split("\n")


def _pad(text: str, column: Column) -> str:
    blank = " " * (column.width - _length(text))
    return text + blank if column.left else blank + text


def _length(text: str) -> int:
    """Columns of a terminal that a text takes; letters of East Asia take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
