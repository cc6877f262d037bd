"""Content of items: texts from columns of the table, pictures and sounds from files.

Files are found by `mmbase.catalogue.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mmbase.catalogue.files import Content, Rows, digest_of
from mmbase.catalogue.items import Items
from mmbase.catalogue.paths import Absent
from mmbase.choices import FILE
from mmbase.dataset import TEXT_COLUMNS
from mmbase.tables import Column
from mmx.catalogue.templates import Template, parse_template
from mmx.errors import ContentError, DataError, UsageError

NOT_A_NUMBER = ("NaN", "nan")
"""An absent text as data frames write it where the cell is not empty. `Nan` is a word."""


class Contents(Protocol):
    """Content of all items in one modality, fetched by ranges of rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that are read; empty when files are matched by their names."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Guesses and omissions, one line each."""

    def fetch(self, start: int, stop: int) -> list[Content]:
        """Return the content of rows `start` to `stop` (exclusive). Safe from any thread."""

    def take(self, rows: Rows) -> Contents:
        """Return the content of some items alone, shape (k,), in that order."""

    def digest(self) -> str | None:
        """Return the BLAKE2b-256 (hex) of the cells that are read; None where there are none."""

    def absent(self, rows: Iterable[int]) -> Iterator[tuple[int, Absent]]:
        """Yield which of some rows name a file that is not there, and the first such file."""


def text_contents(
    items: Items,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    usual: Sequence[str] = TEXT_COLUMNS,
    known: Sequence[str] = (),
) -> TextContents:
    """Return the items' texts: columns joined by one blank, or as a template says.

    Args:
        items: The items.
        columns: The columns; None takes those of `usual` that the table has.
        template: A name of `TEMPLATES` or a text with {column}; names its columns itself.
        usual: Names of text columns, lower case, in the order in which they are joined.
        known: Columns that were named for this dataset before; taken where it has no usual one.

    Raises:
        DataError: There is no table.
        UsageError: A column that does not exist, none of the usual ones, or no such template.
    """
    if items.table is None:
        raise DataError(
            f"{items.root}: no items table and so no text (expected items.tsv with a text column)"
        )
    notes: tuple[str, ...] = ()
    parsed = None if template is None else parse_template(template)
    if parsed is not None:
        if columns is not None:
            raise UsageError(
                "--text-columns and --text-template: a template names its columns; give one of them"
            )
        columns = parsed.columns
    elif columns is None:
        columns = [name for name in items.table.columns if name.casefold() in usual]
        columns.sort(key=lambda name: usual.index(name.casefold()))
        source = ""
        if not columns and known and set(known) <= set(items.table.columns):
            columns, source = list(known), f", as {FILE} says"
        if not columns:
            raise UsageError(
                f"{items.table.path.name}: which columns hold text? Name them with --text-columns "
                f"(columns: {', '.join(items.table.columns)})"
            )
        where = items.table.path.name
        notes = (f"text: {' + '.join(columns)} of {where}{source} (--text-columns overrides)",)
    read = items.table.read(columns)
    values = tuple(read[name].slice(0, len(items)) for name in columns)
    return TextContents(tuple(columns), notes, values, parsed)


@dataclass(frozen=True)
class TextContents:
    """Texts of the items: see `text_contents`."""

    columns: tuple[str, ...]
    notes: tuple[str, ...]
    values: tuple[Column, ...]
    template: Template | None = None

    def fetch(self, start: int, stop: int) -> list[Content]:
        """Return joined texts; None where all are blank, a ContentError where one is not UTF-8."""
        columns = [column.slice(start, stop - start).to_pylist() for column in self.values]
        return [_text(values, self.columns, self.template) for values in zip(*columns, strict=True)]

    def take(self, rows: Rows) -> TextContents:
        """Return the texts of some items alone."""
        return replace(self, values=tuple(column.take(rows) for column in self.values))

    def digest(self) -> str:
        """Return the BLAKE2b-256 of every cell, hexadecimal."""
        return digest_of(self.values)

    def absent(self, rows: Iterable[int]) -> Iterator[tuple[int, Absent]]:
        """Yield nothing: cells of text name no files."""
        yield from ()


def _text(values: Sequence[bytes], columns: Sequence[str], template: Template | None) -> Content:
    parts = []
    for value, column in zip(values, columns, strict=True):
        try:
            part = value.decode().strip()
        except UnicodeDecodeError as error:
            return ContentError(
                f"{column}: not valid UTF-8 (byte {value[error.start]:#04x} at {error.start})"
            )
        parts.append("" if part in NOT_A_NUMBER else part)
    if template is not None:
        return template.fill(dict(zip(columns, parts, strict=True)))
    return " ".join(filter(None, parts)) or None
