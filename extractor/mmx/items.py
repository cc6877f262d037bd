"""A dataset folder as mmx sees it: which items there are, and where each one's text, picture or sound is.

Ids are opaque strings. They are compared with the names of directory entries and never used as a path, so an id such
as `a/b` or `../x` has no file of its own unless a path column names one; and no path column leads out of the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmx.errors import ContentError, DataError, UsageError
from mmx.tables import SUFFIXES, Column, Table, is_table, open_table
from mmx.templates import Template, parse_template

Content: TypeAlias = str | Path | ContentError | tuple[Path | ContentError, ...] | None
"""What one item has: a text, a file, several files, nothing (None), or something that cannot be used and why."""

MODALITIES = ("visual", "textual", "audio")
FOLDERS = {"visual": "images", "audio": "audio"}
FILE_SUFFIXES = {
    "visual": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".m4a"),
}
PATH_COLUMNS = {
    "visual": ("image", "image_path", "image_file", "img", "img_path", "picture", "photo"),
    "audio": ("audio", "audio_path", "audio_file", "sound"),
}
ID_COLUMNS = ("item_id", "itemID", "itemId", "asin", "parent_asin", "id")
TEXT_COLUMNS = (
    "title", "name", "brand", "author", "authors", "artist", "artists", "category", "categories", "genre", "genres",
    "description", "abstract", "features", "text",
)  # fmt: skip
NOT_A_NUMBER = ("NaN", "nan")
"""How data frames write a text that is not there, where they do not leave the cell empty. `Nan` is a word."""

_NOT_ITEMS = ("interactions", "ratings", "reviews", "users", "train", "valid", "val", "validation", "test")
_BLOCK = 65_536


@dataclass(frozen=True)
class Items:
    """The items of a dataset folder, in the order of its table.

    Attributes:
        root: The dataset folder.
        ids: Item ids, an Arrow string array of length n, unique and not empty.
        table: The table they came from; None when they are the stems of content files.
        notes: What was guessed, one line each, for the user to read.
        limited: Whether only the first items of the dataset were kept.
    """

    root: Path
    ids: Column
    table: Table | None
    notes: tuple[str, ...] = ()
    limited: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def id_array(self) -> NDArray[np.bytes_]:
        """The ids as a fixed-length UTF-8 array, shape (n,), dtype `S<longest>`."""
        return fixed_length(self.ids)

    def keys(self) -> dict[str, Any]:
        """The columns that tell the rows apart, by their names in a feature set."""
        return {"ids": self.id_array()}

    def name_of(self, row: int) -> str:
        """What a message calls the row."""
        return str(self.ids[row].as_py())


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
        """BLAKE2b-256 of the inputs, hexadecimal, where that is cheap (texts); None for files."""


def load_items(
    root: Path, *, items_file: str | None = None, id_column: str | None = None, limit: int | None = None
) -> Items:
    """The items of the dataset folder `root`.

    Args:
        root: A folder with `items.tsv` (or .csv, .parquet, .jsonl, also .gz), or only with content files.
        items_file: The table's name inside `root`; None looks for `items.*`, then for the only table there is.
        id_column: The column of ids; None looks for the usual names.
        limit: Keep only that many items from the top.

    Raises:
        DataError: no folder, no items, an empty id, an id that occurs twice (both lines are named).
        UsageError: `items_file` or `id_column` names something that does not exist.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such dataset folder; `mmx demo --out {root}` makes one to try things with")
    notes: list[str] = []
    path = root / items_file if items_file else _find_table(root, notes)
    if path is None:
        items = _items_from_files(root)
    else:
        if items_file and not inside(root, path):
            raise UsageError(f"--items-file {items_file}: outside of the dataset folder {root}")
        table = open_table(path)
        column = table.require(id_column) if id_column else guess_id_column(table, notes)
        ids = checked_ids(table, column)
        _refuse_repetition(table, column, ids)
        items = Items(root, ids, table, tuple(notes))
    return items if limit is None else replace(items, ids=items.ids.slice(0, limit), limited=True)


def text_contents(
    items: Items,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    usual: Sequence[str] = TEXT_COLUMNS,
) -> TextContents:
    """The items' texts: the named columns, or the usual ones that the table has, joined by one blank; or as a template says.

    Raises:
        DataError: there is no table to take texts from.
        UsageError: a column that does not exist, none of the usual ones and none named, or no such template.
    """
    if items.table is None:
        raise DataError(f"{items.root}: no items table, so there is no text (expected items.tsv with a text column)")
    notes: tuple[str, ...] = ()
    filled_in = None if template is None else parse_template(template)
    if filled_in is not None:
        if columns is not None:
            raise UsageError(
                "--text-columns and --text-template: a template names its columns itself; give one of them"
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
        notes = (f"text: {' + '.join(columns)} of {items.table.path.name} (--text-columns overrides)",)
    read = items.table.read(columns)
    return TextContents(tuple(columns), notes, tuple(read[name].slice(0, len(items)) for name in columns), filled_in)


def file_contents(items: Items, modality: str, column: str | None = None) -> FileContents:
    """The items' files of one modality: where a path column says, or else `<folder>/<item_id>.<extension>`.

    Args:
        items: The items.
        modality: `visual` (folder `images`) or `audio` (folder `audio`); the dataset folder itself is searched too.
        column: The column of paths; None looks for the usual names.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    notes: list[str] = []
    found, links, unused = _match_by_name(items, modality)
    named = None
    if items.table is not None:
        column = items.table.require(column) if column else _guess_path_column(items.table, modality)
    if column is not None and items.table is not None:
        named = items.table.read([column])[column].slice(0, len(items))
        first = next((value for chunk in named.chunks for value in chunk.to_pylist() if value), b"")
        if b"://" in first:
            notes.append(f"column {column!r} holds addresses, which are not fetched; files are matched by item id")
            named, column = None, None
    if named is not None:
        blank = pc.equal(named, pa.scalar(b"", pa.binary()))
        notes.append(f"files: column {column!r} of {items.table.path.name if items.table else ''}")
        unused = 0 if not pc.any(blank).as_py() else unused
    if unused and not items.limited:
        notes.append(f"{unused:,} {modality} files belong to no item of the table")
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
        """BLAKE2b-256 over the lengths and bytes of every cell, column by column, hexadecimal."""
        state = hashlib.blake2b(digest_size=32)
        for column in self.values:
            for start in range(0, len(column), _BLOCK):
                cells = column.slice(start, _BLOCK).to_pylist()
                state.update(np.fromiter(map(len, cells), dtype="<i8", count=len(cells)).tobytes())
                state.update(b"".join(cells))
        return state.hexdigest()


@dataclass(frozen=True)
class FileContents:
    """Files of the items: see `file_contents`.

    Attributes:
        root: The dataset folder.
        folder: Where bare file names of a path column are looked for as well.
        named: Paths from the table, relative to `root`; None without a path column.
        found: Paths relative to `root` of files whose name is the item's id, null where there is none.
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
        return [self.path_of(value) if value else self._indexed(name) for value, name in zip(named, found, strict=True)]

    def digest(self) -> None:
        """None: reading every file twice would cost as much as the work itself."""

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


def _text(values: Sequence[bytes], columns: Sequence[str], template: Template | None) -> Content:
    parts = []
    for value, column in zip(values, columns, strict=True):
        try:
            part = value.decode().strip()
        except UnicodeDecodeError as error:
            return ContentError(f"{column}: not valid UTF-8 (byte {value[error.start]:#04x} at {error.start})")
        parts.append("" if part in NOT_A_NUMBER else part)
    if template is not None:
        return template.fill(dict(zip(columns, parts, strict=True)))
    return " ".join(filter(None, parts)) or None


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies in `root`."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))  # noqa: PTH118


def _find_table(root: Path, notes: list[str]) -> Path | None:
    """The items table of a folder: `items.*`, or else the only table that is not about users and interactions."""
    for suffix in SUFFIXES:
        if (root / f"items{suffix}").is_file():
            return root / f"items{suffix}"
    others = sorted(
        path for path in root.iterdir()
        if is_table(path) and path.is_file() and path.name.split(".")[0].lower() not in _NOT_ITEMS
    )  # fmt: skip
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"{root}: which table holds the items? Name one with --items-file (found {names})")
    if others:
        notes.append(f"items: {others[0].name}, the only table there is (--items-file overrides)")
        return others[0]
    return None


def guess_id_column(table: Table, notes: list[str]) -> str:
    """The column of item ids by its usual names, or else one that ends in `id`, which is noted.

    Raises:
        DataError: There is none.
    """
    for name in ID_COLUMNS:
        if name in table.columns:
            return table.require(name)
    guess = next((name for name in table.columns if name.casefold().endswith(("id", "asin"))), None)
    if guess is None or guess.casefold() in ("user_id", "userid"):
        raise DataError(
            f"{table.path.name}: no column of item ids (expected {ID_COLUMNS[0]}; got {', '.join(table.columns)}); "
            "name it with --id-column"
        )
    notes.append(f"item ids: column {guess!r} of {table.path.name} (--id-column overrides)")
    return guess


def _guess_path_column(table: Table, modality: str) -> str | None:
    return next((name for name in PATH_COLUMNS[modality] if name in table.columns), None)


def checked_ids(table: Table, column: str) -> Column:
    """An id column as strings, once it is sure that no id is empty or undecodable."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name = table.path.name
    raw = table.read([column])[column]
    if len(raw) == 0:
        raise DataError(f"{name}: no items (the table has a header and no rows)")
    empty = pc.index(raw, pa.scalar(b"", pa.binary())).as_py()
    if empty >= 0:
        raise DataError(f"{name}, line {table.lines([empty])[0]}: empty {column}; every item needs an id")
    try:
        ids = raw.cast(pa.string())
    except pa.ArrowInvalid as error:
        for row, value in enumerate(value for chunk in raw.chunks for value in chunk.to_pylist()):
            try:
                value.decode()
            except UnicodeDecodeError:
                line = table.lines([row])[0]
                raise DataError(f"{name}, line {line}: {column} {value!r} is not valid UTF-8") from error
        raise DataError(f"{name}: {column} is not valid UTF-8 ({error})") from error
    nul = pc.index(pc.match_substring(ids, "\0"), True).as_py()
    if nul >= 0:
        raise DataError(f"{name}, line {table.lines([nul])[0]}: {column} {ids[nul].as_py()!r} holds a NUL character")
    return ids


def _refuse_repetition(table: Table, column: str, ids: Column) -> None:
    """Raises a DataError that names both lines where an id is there twice."""
    import pyarrow.compute as pc

    name = table.path.name
    if _repeats(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        rows = pc.indices_nonzero(pc.equal(ids, twice[0])).to_pylist()
        first, second = table.lines(rows[:2])
        more = f", and {len(twice) - 1:,} further ids" if len(twice) > 1 else ""
        raise DataError(
            f"{name}: {column} {twice[0].as_py()!r} occurs twice (lines {first} and {second}){more}; "
            "keep one row per item"
        )


def _repeats(ids: Column) -> bool:
    """Whether an id occurs twice: by sorting, which takes a fifth of the memory of a table of all of them."""
    in_order = np.sort(fixed_length(ids))
    return bool((in_order[1:] == in_order[:-1]).any())


def fixed_length(ids: Column) -> NDArray[np.bytes_]:
    """Ids as a fixed-length UTF-8 array, shape (n,), dtype `S<longest>`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(ids)).as_py() or 1
    out = np.empty(len(ids), dtype=f"S{longest}")
    start = 0
    for chunk in ids.cast(pa.binary()).chunks:
        for offset in range(0, len(chunk), _BLOCK):  # blocks bound the memory that Python objects take
            values = chunk.slice(offset, _BLOCK).to_pylist()
            out[start : start + len(values)] = values
            start += len(values)
    return out


def _scan(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], set[str]]:
    """Names of the files in `folder` with one of `suffixes`, sorted by stem and preference; those that are links."""
    names, links = [], set()
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(tuple(suffixes)) and _is_file(entry):
                    names.append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    names.sort(key=lambda name: (_stem(name), rank[name[len(_stem(name)) :].lower()], name))
    return names, links


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one; links that lead in a circle are not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _stem(name: str) -> str:
    """The name without its last extension: `a.v1.jpg` is the file of item `a.v1`."""
    return name[: name.rindex(".")]


def _match_by_name(items: Items, modality: str) -> tuple[Column, frozenset[bytes], int]:
    """For every item the file that bears its id (null without one), which of those are links, and files left over."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stems: list[bytes] = []
    names: list[bytes] = []
    links: set[bytes] = set()
    last = None
    for folder in (FOLDERS[modality], ""):
        listed, linked = _scan(items.root / folder, FILE_SUFFIXES[modality])
        prefix = f"{folder}/" if folder else ""
        for name in listed:
            if (stem := _stem(name)) != last:  # the names are sorted: the preferred extension comes first
                stems.append(os.fsencode(stem))
                names.append(os.fsencode(prefix + name))
            last = stem
        links.update(os.fsencode(prefix + name) for name in linked)
        last = None
    keys = pa.array(stems, pa.binary())
    paths = pa.array(names, pa.binary())
    rows = pc.index_in(items.ids.cast(pa.binary()), value_set=keys)
    used = pc.count_distinct(rows).as_py()
    return pa.chunked_array(pc.take(paths, rows), pa.binary()), frozenset(links), len(set(stems)) - used


def _items_from_files(root: Path) -> Items:
    """Items named after the content files of a folder that has no table, in the order of their ids."""
    import pyarrow as pa

    stems = {
        _stem(name)
        for modality, suffixes in FILE_SUFFIXES.items()
        for folder in (FOLDERS[modality], "")
        for name in _scan(root / folder, suffixes)[0]
    }
    if not stems:
        raise DataError(f"{root}: no items (expected items.tsv, or files in images/ or audio/ named after the items)")
    try:
        ids = pa.chunked_array([pa.array(sorted(stems), pa.string())])
    except UnicodeEncodeError as error:
        raise DataError(f"{root}: a file name that is not valid UTF-8 ({error.object!r}); rename it") from error
    return Items(root, ids, None, (f"no items table: {len(ids):,} items named after the content files",))
