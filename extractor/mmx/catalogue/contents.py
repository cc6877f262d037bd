"""What the items have in one modality: their texts from columns of the table, their pictures and sounds as files.

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
from mmbase.tables import Column, Table
from mmx.catalogue.items import Items
from mmx.catalogue.templates import Template, parse_template
from mmx.errors import ContentError, DataError, UsageError

Content: TypeAlias = str | Path | ContentError | tuple[Path | ContentError, ...] | None
"""What one item has: a text, a file, several files, nothing (None), or something that cannot be used and why."""

PATH_COLUMNS = {
    "visual": ("image", "image_path", "image_file", "img", "img_path", "picture", "photo"),
    "audio": ("audio", "audio_path", "audio_file", "sound"),
}
TEXT_COLUMNS = (
    "title", "name", "brand", "author", "authors", "artist", "artists", "category", "categories", "genre", "genres",
    "description", "abstract", "features", "text",
)  # fmt: skip
NOT_A_NUMBER = ("NaN", "nan")
"""How data frames write a text that is not there, where they do not leave the cell empty. `Nan` is a word."""

_BLOCK = 65_536


class Contents(Protocol):
    """What the items have in one modality, fetched by ranges of rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that are read, for the record; empty when files are matched by their names."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed or left aside, one line each."""

    def fetch(self, start: int, stop: int) -> list[Content]:
        """The content of rows `start` to `stop` (exclusive), one entry per row. Safe to call from any thread."""

    def digest(self) -> str | None:
        """BLAKE2b-256 of the cells that are read, hexadecimal; None where files are matched by their names."""


def text_contents(
    items: Items,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    usual: Sequence[str] = TEXT_COLUMNS,
) -> TextContents:
    """The items' texts: the named columns, or the usual ones that the table has, joined by one blank; or as a template says.

    Raises:
        DataError: there is no table to take texts from.
        UsageError: a column that does not exist, none of the usual ones and none named, or no such
            template.
    """
    if items.table is None:
        raise DataError(
            f"{items.root}: no items table, so there is no text (expected items.tsv with a text "
            "column)"
        )
    notes: tuple[str, ...] = ()
    filled_in = None if template is None else parse_template(template)
    if filled_in is not None:
        if columns is not None:
            raise UsageError(
                "--text-columns and --text-template: a template names its columns itself; give one "
                "of them"
            )
        columns = filled_in.columns
    elif columns is None:
        columns = [name for name in items.table.columns if name.casefold() in usual]
        columns.sort(key=lambda name: usual.index(name.casefold()))
        if not columns:
            raise UsageError(
                f"{items.table.path.name}: which columns hold text? Name them with --text-columns "
                f"(columns: {', '.join(items.table.columns)})"
            )
        notes = (
            f"text: {' + '.join(columns)} of {items.table.path.name} (--text-columns overrides)",
        )
    read = items.table.read(columns)
    return TextContents(
        tuple(columns), notes, tuple(read[name].slice(0, len(items)) for name in columns), filled_in
    )


def file_contents(items: Items, modality: str, column: str | None = None) -> FileContents:
    """The items' files of one modality: where a path column says, or else `<folder>/<item_id>.<extension>`.

    Args:
        items: The items.
        modality: `visual` (folder `images`) or `audio` (folder `audio`); the dataset folder itself
            is searched too.
        column: The column of paths; None looks for the usual names.
    """
    notes: list[str] = []
    found, links, unused, doubled = _match_by_name(items, modality)
    named = None
    if items.table is not None:
        column = (
            items.table.require(column) if column else _guess_path_column(items.table, modality)
        )
    if column is not None and items.table is not None:
        named = items.table.read([column])[column].slice(0, len(items))
        first = next((value for chunk in named.chunks for value in chunk.to_pylist() if value), b"")
        if b"://" in first:
            notes.append(
                f"column {column!r} holds addresses, which are not fetched; files are matched by "
                "item id"
            )
            named, column = None, None
    if named is not None:
        notes.append(f"files: column {column!r} of {items.table.path.name if items.table else ''}")
    elif unused and not items.limited:
        notes.append(f"{unused:,} {modality} files belong to no item of the table")
    if named is None and doubled:
        notes.append(
            f"{len(doubled):,} items have files of several extensions, of which one is taken (not "
            f"{doubled[0]}); "
            f"what lies in {FOLDERS[modality]}/<item_id>/ is taken together, with --several"
        )
    return FileContents(
        columns=(column,) if column else (),
        notes=tuple(notes),
        root=items.root,
        folder=FOLDERS[modality],
        named=named,
        found=found,
        links=links,
    )


@dataclass(frozen=True)
class TextContents:
    """Texts of the items: see `text_contents`."""

    columns: tuple[str, ...]
    notes: tuple[str, ...]
    values: tuple[Column, ...]
    template: Template | None = None

    def fetch(self, start: int, stop: int) -> list[Content]:
        """Joined texts; None where nothing but blanks is there, a ContentError where the bytes are not UTF-8."""
        columns = [column.slice(start, stop - start).to_pylist() for column in self.values]
        if len(columns) == 1:
            return [_text([value], self.columns, self.template) for value in columns[0]]
        return [_text(values, self.columns, self.template) for values in zip(*columns, strict=True)]

    def digest(self) -> str:
        """BLAKE2b-256 of every cell."""
        return _digest(self.values)


@dataclass(frozen=True)
class FileContents:
    """Files of the items: see `file_contents`.

    Attributes:
        root: The dataset folder.
        folder: Where bare file names of a path column are looked for as well.
        named: Paths from the table, relative to `root`; None without a path column.
        found: Paths relative to `root` of files whose name is the item's id, null where there is
            none.
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
        """Paths of existing files; None where there is none, a ContentError where a path may not be followed."""
        found: list[bytes | None] = self.found.slice(start, stop - start).to_pylist()
        if self.named is None:
            return [self._indexed(name) for name in found]
        named: list[bytes] = self.named.slice(start, stop - start).to_pylist()
        return [
            self.path_of(value) if value else self._indexed(name)
            for value, name in zip(named, found, strict=True)
        ]

    def digest(self) -> str | None:
        """BLAKE2b-256 of the path column's cells; None without one.

        The files themselves are left out: reading every file twice would cost as much as the work
        itself.
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
        """The file that a cell names; None where there is none, a ContentError where the path may not be followed."""
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
    """BLAKE2b-256 over the lengths and bytes of every cell, column by column, hexadecimal."""
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


def _guess_path_column(table: Table, modality: str) -> str | None:
    return next((name for name in PATH_COLUMNS[modality] if name in table.columns), None)


def _match_by_name(items: Items, modality: str) -> tuple[Column, frozenset[bytes], int, list[str]]:
    """For every item the file that bears its id (null without one), which of those are links, and what is left over.

    That is: how many files bear the id of no item, and for each item with several files the first
    that is not taken.
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
            if (
                name_stem := stem(name)
            ) != last:  # the names are sorted: the preferred extension comes first
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
    doubled = [
        others[one]
        for one in ids.filter(pc.is_in(ids, value_set=pa.array(others, pa.binary()))).to_pylist()
    ]
    return pa.chunked_array(pc.take(paths, rows), pa.binary()), frozenset(links), left, doubled
