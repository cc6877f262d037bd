"""Pictures and sounds of items: files that a column of paths names, or that bear an item's id.

No id is ever used as a path, and no path column leads out of the dataset folder unless that is
allowed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmbase.catalogue.items import Items
from mmbase.catalogue.matching import match_by_name
from mmbase.catalogue.paths import BETWEEN, Absent, Place, is_address, names_in
from mmbase.dataset import FOLDERS, PATH_COLUMNS
from mmbase.errors import ContentError
from mmbase.layout import counted
from mmbase.tables import Column

File: TypeAlias = Path | Absent | ContentError
Content: TypeAlias = str | File | tuple[File, ...] | None
"""One item's content: a text, a file or several, one that is named and not there, nothing, or the
error that made it useless."""

Rows: TypeAlias = NDArray[np.int64]

_BLOCK = 65_536


def file_contents(
    items: Items,
    modality: str,
    column: str | None = None,
    *,
    several: bool = False,
    anywhere: bool = False,
) -> FileContents:
    """Return the items' files of one modality: from a path column, or else named by item id.

    Args:
        items: The items.
        modality: `visual` (folder `images`) or `audio` (folder `audio`); the dataset folder itself
            is searched too, and folders in the former.
        column: The column of paths; None looks for the usual names.
        several: Whether the caller takes all files of an item.
        anywhere: Whether paths and links may lead out of the dataset folder.
    """
    notes: list[str] = []
    files, folder = match_by_name(items, modality), FOLDERS[modality]
    if (items.root / folder).is_file():
        notes.append(f"{folder} is a file, not a folder; was a link copied as text?")
    named = addresses = None
    table = items.table
    if table is not None and column is None:
        column = next((name for name in PATH_COLUMNS[modality] if name in table.columns), None)
    if table is not None and column is not None:
        named = table.read([column], between=BETWEEN)[column].slice(0, len(items))
        first = next((value for chunk in named.chunks for value in chunk.to_pylist() if value), b"")
        if is_address(first):
            notes.append(
                f"column {column!r} holds addresses, which are not fetched; files are matched by "
                "item id"
            )
            named, addresses, column = None, named, None
    if table is not None and named is not None:
        notes.append(f"files: column {column!r} of {table.path.name}")
        if not several and (n_lists := _count_of_lists(named)):
            notes.append(
                f"{counted(n_lists, 'cell names', 'cells name')} several files; only the first is "
                "used (--several uses all)"
            )
    elif files.unused and not items.limited:
        belong = counted(files.unused, f"{modality} file belongs", f"{modality} files belong")
        notes.append(f"{belong} to no item of the table")
    if named is None and files.doubled:
        notes.append(
            f"{counted(len(files.doubled), 'item has', 'items have')} files of several extensions; "
            f"only one is used (not {files.doubled[0]}); what lies in {folder}/<item_id>/ is taken "
            "together, with --several"
        )
    if files.ambiguous:
        notes.append(
            f"{counted(files.ambiguous, 'item has', 'items have')} files of one name in several "
            f"folders of {folder}; none is used; name them in a column of paths"
        )
    return FileContents(
        (column,) if column else (),
        tuple(notes),
        Place(items.root, folder, anywhere),
        named,
        files.paths,
        files.links,
        addresses,
    )


def _taken(rows: Any, column: Column) -> Column:
    return column.take(rows)


def _count_of_lists(named: Column) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.match_substring(named, BETWEEN)).as_py() or 0)


@dataclass(frozen=True)
class FileContents:
    """Files of the items: see `file_contents`.

    Attributes:
        place: Where files are looked for.
        named: Paths from the table, relative to the dataset folder; None without a path column.
        found: Paths relative to it of files named by the item's id; null where there is none.
        links: Those of `found` that are symbolic links, which must not lead out of the folder.
        addresses: Cells of a column that is left aside, because it holds addresses.
    """

    columns: tuple[str, ...]
    notes: tuple[str, ...]
    place: Place
    named: Column | None
    found: Column
    links: frozenset[bytes] = field(default_factory=frozenset)
    addresses: Column | None = None

    _BY_ITEM: ClassVar[tuple[str, ...]] = ("named", "found", "addresses")

    def fetch(self, start: int, stop: int) -> list[Content]:
        """Return files; None where none is named and none bears the item's id."""
        return self._of_rows(lambda column: column.slice(start, stop - start), self.named)

    def take(self, rows: Rows) -> Self:
        """Return the files of some items alone."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in self._BY_ITEM}
        taken: Any = {name: one if one is None else one.take(rows) for name, one in columns.items()}
        return replace(self, **taken)

    def absent(self, rows: Iterable[int]) -> Iterator[tuple[int, Absent]]:
        """Yield which of some rows name a file that is not there, and the first such file."""
        import pyarrow as pa

        cells, wanted = self.addresses if self.named is None else self.named, list(rows)
        for first in range(0, len(wanted) if cells is not None else 0, _BLOCK):
            block = wanted[first : first + _BLOCK]
            contents = self._of_rows(partial(_taken, pa.array(block, pa.int64())), cells)
            for row, content in zip(block, contents, strict=True):
                files = content if isinstance(content, tuple) else (content,)
                lost = next((file for file in files if isinstance(file, Absent)), None)
                if lost is not None:
                    yield row, lost

    def _of_rows(self, pick: Callable[[Column], Column], cells: Column | None) -> list[Content]:
        """Return what the cells of some rows name, or else the files that bear the items' ids.

        A cell that holds an address is treated like an empty one.
        """
        by_id = self._by_id(pick)
        if cells is None:
            return by_id
        contents = []
        for cell, own in zip(pick(cells).to_pylist(), by_id, strict=True):
            named = self._of_cell(cell) if cell else None
            contents.append(own or named if named is None or is_address(cell) else named)
        return contents

    def _by_id(self, pick: Callable[[Column], Column]) -> list[Content]:
        return [self._indexed(name) for name in pick(self.found).to_pylist()]

    def digest(self) -> str | None:
        """Return the BLAKE2b-256 of the path column's cells; None without one.

        The files are left out: reading each twice would cost as much as the work itself.
        """
        return None if self.named is None else digest_of([self.named])

    def _indexed(self, name: bytes | None) -> Content:
        if name is None:
            return None
        path = self.place.root / os.fsdecode(name)
        if name in self.links and not self.place.allows(path):
            return ContentError(
                f"{os.fsdecode(name)}: a link that leads out of the dataset folder "
                "(--allow-outside lets it)"
            )
        return path

    def _of_cell(self, cell: bytes) -> Content:
        """Return the file that a cell names, the first of several."""
        names = names_in(cell)
        if isinstance(names, ContentError):
            return names
        return self.place.file(names[0]) if names else None


def digest_of(columns: Sequence[Column]) -> str:
    """Return the BLAKE2b-256 of the lengths and bytes of all cells, column by column."""
    state = hashlib.blake2b(digest_size=32)
    for column in columns:
        for start in range(0, len(column), _BLOCK):
            cells = column.slice(start, _BLOCK).to_pylist()
            state.update(np.fromiter(map(len, cells), dtype="<i8", count=len(cells)).tobytes())
            state.update(b"".join(cells))
    return state.hexdigest()
