"""Content of items: texts from columns of the table, pictures and sounds from files.

No id is ever used as a path, and no path column leads out of the dataset folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from mmbase.dataset import FILE_SUFFIXES, FOLDERS, content_files, inside, stem
from mmbase.tables import Column
from mmx.catalogue.items import Items
from mmx.catalogue.templates import Template, parse_template
from mmx.errors import ContentError, DataError, UsageError

Content: TypeAlias = str | Path | ContentError | tuple[Path | ContentError, ...] | None
"""One item's content: a text, a file, several files, nothing, or the error that made it useless."""

PATH_COLUMNS = {
    "visual": ("image", "image_path", "image_file", "img", "img_path", "picture", "photo"),
    "audio": ("audio", "audio_path", "audio_file", "sound"),
}
TEXT_COLUMNS = (
    "title", "name", "brand", "author", "authors", "artist", "artists", "category", "categories",
    "genre", "genres", "description", "abstract", "features", "text",
)  # fmt: skip
NOT_A_NUMBER = ("NaN", "nan")
"""An absent text as data frames write it where the cell is not empty. `Nan` is a word."""

PATHS = "\n"
"""Between the paths of one cell: those of a list, in Parquet or JSON lines."""

_BLOCK = 65_536


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

    def digest(self) -> str | None:
        """Return the BLAKE2b-256 (hex) of the cells that are read; None where there are none."""


def text_contents(
    items: Items,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    usual: Sequence[str] = TEXT_COLUMNS,
) -> TextContents:
    """Return the items' texts: columns joined by one blank, or as a template says.

    Args:
        items: The items.
        columns: The columns; None takes those of `usual` that the table has.
        template: A name of `TEMPLATES` or a text with {column}; names its columns itself.
        usual: Names of text columns, lower case, in the order in which they are joined.

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
        if not columns:
            raise UsageError(
                f"{items.table.path.name}: which columns hold text? Name them with --text-columns "
                f"(columns: {', '.join(items.table.columns)})"
            )
        where = items.table.path.name
        notes = (f"text: {' + '.join(columns)} of {where} (--text-columns overrides)",)
    read = items.table.read(columns)
    values = tuple(read[name].slice(0, len(items)) for name in columns)
    return TextContents(tuple(columns), notes, values, parsed)


def file_contents(
    items: Items, modality: str, column: str | None = None, *, several: bool = False
) -> FileContents:
    """Return the items' files of one modality: from a path column, or else named by item id.

    Args:
        items: The items.
        modality: `visual` (folder `images`) or `audio` (folder `audio`); the dataset folder itself
            is searched too.
        column: The column of paths; None looks for the usual names.
        several: Whether all paths of a cell are taken, and not the first alone.
    """
    import pyarrow.compute as pc

    notes: list[str] = []
    found, links, unused, doubled = _match_by_name(items, modality)
    named, table = None, items.table
    if table is not None and column is None:
        column = next((name for name in PATH_COLUMNS[modality] if name in table.columns), None)
    if table is not None and column is not None:
        named = table.read([column], between=PATHS)[column].slice(0, len(items))
        first = next((value for chunk in named.chunks for value in chunk.to_pylist() if value), b"")
        if b"://" in first:
            notes.append(
                f"column {column!r} holds addresses, which are not fetched; files are matched by "
                "item id"
            )
            named, column = None, None
    if table is not None and named is not None:
        notes.append(f"files: column {column!r} of {table.path.name}")
        lists = 0 if several else pc.sum(pc.match_substring(named, PATHS)).as_py() or 0
        if lists:
            notes.append(
                f"{lists:,} items name several files, of which the first is taken; --several takes "
                "them all"
            )
    elif unused and not items.limited:
        notes.append(f"{unused:,} {modality} files belong to no item of the table")
    if named is None and doubled:
        notes.append(
            f"{len(doubled):,} items have files of several extensions, of which one is taken (not "
            f"{doubled[0]}); what lies in {FOLDERS[modality]}/<item_id>/ is taken together, with "
            "--several"
        )
    columns = (column,) if column else ()
    return FileContents(columns, tuple(notes), items.root, FOLDERS[modality], named, found, links)


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

    def digest(self) -> str:
        """Return the BLAKE2b-256 of every cell, hexadecimal."""
        return _digest(self.values)


@dataclass(frozen=True)
class FileContents:
    """Files of the items: see `file_contents`.

    Attributes:
        root: The dataset folder.
        folder: Where bare file names of a path column are looked for as well.
        named: Paths from the table, relative to `root`; None without a path column.
        found: Paths relative to `root` of files named by the item's id; null where there is none.
        links: Those of `found` that are symbolic links, which must not lead out of the folder.
    """

    columns: tuple[str, ...]
    notes: tuple[str, ...]
    root: Path
    folder: str
    named: Column | None
    found: Column
    links: frozenset[bytes] = field(default_factory=frozenset)

    def fetch(self, start: int, stop: int) -> list[Content]:
        """Return existing files; None where there is none, a ContentError for a forbidden path."""
        found: list[bytes | None] = self.found.slice(start, stop - start).to_pylist()
        if self.named is None:
            return [self._indexed(name) for name in found]
        named: list[bytes] = self.named.slice(start, stop - start).to_pylist()
        return [
            self.path_of(value.split(PATHS.encode())[0]) if value else self._indexed(name)
            for value, name in zip(named, found, strict=True)
        ]

    def digest(self) -> str | None:
        """Return the BLAKE2b-256 of the path column's cells; None without one.

        The files are left out: reading each twice would cost as much as the work itself.
        """
        return None if self.named is None else _digest([self.named])

    def _indexed(self, name: bytes | None) -> Content:
        if name is None:
            return None
        path = self.root / os.fsdecode(name)
        if name in self.links and not inside(self.root, path):
            return ContentError(f"{os.fsdecode(name)}: a link that leads out of the dataset folder")
        return path

    def path_of(self, value: bytes) -> Content:
        """Return the file that a cell names; None where there is none, else a ContentError."""
        try:
            name = value.decode().strip()
        except UnicodeDecodeError:
            return ContentError("the path is not valid UTF-8")
        if not name:
            return None
        if "\0" in name:
            return ContentError("the path holds a NUL character")
        for path in (self.root / name, self.root / self.folder / name):
            try:
                mode = path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                if not inside(self.root, path):
                    return ContentError(f"{name}: leads out of the dataset folder")
                continue
            except OSError as error:
                return ContentError(f"{name}: {error.strerror or error}")
            if not inside(self.root, path):
                return ContentError(f"{name}: leads out of the dataset folder")
            if not stat.S_ISREG(mode):
                return ContentError(f"{name}: not a file")
            return path
        return None


def _digest(columns: Sequence[Column]) -> str:
    """Return the BLAKE2b-256 of the lengths and bytes of all cells, column by column."""
    state = hashlib.blake2b(digest_size=32)
    for column in columns:
        for start in range(0, len(column), _BLOCK):
            cells = column.slice(start, _BLOCK).to_pylist()
            state.update(np.fromiter(map(len, cells), dtype="<i8", count=len(cells)).tobytes())
            state.update(b"".join(cells))
    return state.hexdigest()


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


def _match_by_name(items: Items, modality: str) -> tuple[Column, frozenset[bytes], int, list[str]]:
    """Match files to items by their names.

    Returns:
        Each item's file (null without one), those that are links, the number of files of no item,
        and for each item with several files the first that is not taken.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stems: list[bytes] = []
    names: list[bytes] = []
    links: set[bytes] = set()
    others: dict[bytes, str] = {}
    last = None
    for folder in (FOLDERS[modality], ""):
        listed, linked = content_files(items.root / folder, FILE_SUFFIXES[modality])
        prefix = f"{folder}/" if folder else ""
        for name in listed:
            # The names are sorted: the preferred extension comes first.
            if (name_stem := stem(name)) != last:
                stems.append(os.fsencode(name_stem))
                names.append(os.fsencode(prefix + name))
            else:
                others.setdefault(os.fsencode(name_stem), prefix + name)
            last = name_stem
        links.update(os.fsencode(prefix + name) for name in linked)
        last = None
    keys = pa.array(stems, pa.binary())
    paths = pa.array(names, pa.binary())
    ids = items.ids.cast(pa.binary())
    rows = pc.index_in(ids, value_set=keys)
    left = len(set(stems)) - pc.count_distinct(rows).as_py()
    several = ids.filter(pc.is_in(ids, value_set=pa.array(others, pa.binary()))).to_pylist()
    doubled = [others[one] for one in several]
    return pa.chunked_array(pc.take(paths, rows), pa.binary()), frozenset(links), left, doubled
