"""What a page shows of items: their titles, pictures and sounds, found as mmx finds them.

Titles, ids and names of files are whatever a stranger wrote: pages escape them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from mmbase.catalogue.files import FileContents, file_contents
from mmbase.catalogue.items import Items, load_items
from mmbase.catalogue.paths import Absent
from mmbase.choices import recall_texts
from mmbase.dataset import FOLDERS, TEXT_COLUMNS
from mmbase.errors import ToolError, unknown_name
from mmbase.tables import strings

LONGEST_TITLE = 90
_GROUPS = ("category", "categories", "genre", "genres", "brand")
_NOT_A_TEXT = ("", "NaN", "nan")


@dataclass(frozen=True)
class Exhibit:
    """What there is to show of one item.

    Attributes:
        id: Its id.
        title: Its title, cut to `LONGEST_TITLE` characters; empty where there is none.
        files: Its file by modality, `visual` and `audio`.
        problems: Why a modality has none although one is named, in words.
    """

    id: str
    title: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The title, or else the id."""
        return self.title or self.id


@dataclass(frozen=True)
class Showcase:
    """The items of a dataset folder, to be shown.

    Attributes:
        items: The items; None where the folder names none, so that there are only ids.
        columns: The column that names the files of a modality, where one was given.
        notes: What is missing, one line each.
        title: The column of titles; None: the first of those that texts are made of.
    """

    items: Items | None
    columns: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    title: str | None = None

    @classmethod
    def open(
        cls, root: Path, columns: Mapping[str, str] | None = None, title: str | None = None
    ) -> Self:
        """Open the items of a dataset folder; what can't be read becomes a note.

        Args:
            root: The dataset folder.
            columns: The columns of paths that feature sets were extracted from, by modality.
            title: The column of titles, see above.

        Raises:
            UsageError: There is no column of that name.
        """
        try:
            items = load_items(root)
        except ToolError as error:
            return cls(None, {}, (f"ids alone, without titles, pictures and sounds: {error}",))
        known = () if items.table is None else items.table.columns
        if title is not None and title not in known:
            raise unknown_name("column of the items table", title, known)
        of_files = {kind: one for kind, one in (columns or {}).items() if one in known}
        return cls(items, of_files, title=title)

    @cached_property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of texts: the titles, then others in the order in which mmx joins them."""
        if self.items is None or self.items.table is None:
            return ()
        columns = self.items.table.columns
        usual = [name for name in columns if name.casefold() in TEXT_COLUMNS]
        usual.sort(key=lambda name: TEXT_COLUMNS.index(name.casefold()))
        known = recall_texts(self.items.root, "items")
        found = usual or [name for name in known if name in columns]
        return tuple(dict.fromkeys([self.title, *found] if self.title else found))

    @cached_property
    def group_column(self) -> str | None:
        """The column of categories, if there is one of a usual name."""
        if self.items is None or self.items.table is None:
            return None
        by_name = {name.casefold(): name for name in self.items.table.columns}
        return next((by_name[name] for name in _GROUPS if name in by_name), None)

    def of(self, ids: Sequence[str]) -> list[Exhibit]:
        """Return what there is to show of each item; of an unknown one its id alone."""
        rows = self._rows(ids)
        known = np.flatnonzero(rows >= 0)
        titles = self.texts(ids, self.text_columns[:1])
        files: list[dict[str, Path]] = [{} for _ in ids]
        problems: list[dict[str, str]] = [{} for _ in ids]
        for modality, contents in self._files.items():
            found = contents.take(rows[known]).fetch(0, known.size)
            for place, content in zip(known.tolist(), found, strict=True):
                if isinstance(content, Path):
                    files[place][modality] = content
                elif isinstance(content, Absent):
                    problems[place][modality] = f"{content.name}: no such file"
                elif content is not None:
                    problems[place][modality] = str(content)
        shown = zip(ids, titles, files, problems, strict=True)
        return [Exhibit(one, _cut(title), file, why) for one, title, file, why in shown]

    def texts(self, ids: Sequence[str], columns: Iterable[str]) -> list[str]:
        """Return the items' cells of some columns, joined by one blank; empty where unknown."""
        import pyarrow as pa

        joined = [""] * len(ids)
        names = list(columns)
        if self.items is None or self.items.table is None or not names:
            return joined
        rows = self._rows(ids)
        known = np.flatnonzero(rows >= 0)
        for name in names:
            cells = strings(self._cells(name).take(pa.array(rows[known])))
            for place, cell in zip(known.tolist(), cells.tolist(), strict=True):
                if (text := " ".join(str(cell).split())) not in _NOT_A_TEXT:
                    joined[place] = f"{joined[place]} {text}".lstrip()
        return joined

    def unknown(self, ids: Sequence[str]) -> int:
        """Return how many of the ids are no items of the folder."""
        return int((self._rows(ids) < 0).sum())

    @property
    def has_files(self) -> bool:
        """Whether there is a picture or a sound of any item."""
        return any(_any(found) for found in self._files.values())

    @cached_property
    def _files(self) -> dict[str, FileContents]:
        if self.items is None:
            return {}
        return {
            modality: file_contents(self.items, modality, self.columns.get(modality), several=True)
            for modality in FOLDERS
        }

    @cached_property
    def _columns_read(self) -> dict[str, Any]:
        return {}

    def _cells(self, name: str) -> Any:
        assert self.items is not None and self.items.table is not None
        if name not in self._columns_read:
            read = self.items.table.read([name])[name]
            self._columns_read[name] = read.slice(0, len(self.items))
        return self._columns_read[name]

    def _rows(self, ids: Sequence[str]) -> Any:
        """Row of each id, -1 where there is no such item, shape (len(ids),)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.items is None or not len(ids):
            return np.full(len(ids), -1, np.int64)
        known = self.items.ids.combine_chunks()
        found = pc.index_in(pa.array(list(ids), pa.string()), value_set=known)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _any(contents: FileContents) -> bool:
    return contents.named is not None or contents.found.null_count < len(contents.found)


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TITLE:
        return text
    return text[: LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;.") + "…"


def columns_of(provenances: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Return the column of paths that each modality was extracted from, as its provenance has it.

    Args:
        provenances: Modality and provenance of feature sets; the first of a modality decides.
    """
    found: dict[str, str] = {}
    for modality, provenance in provenances:
        source = provenance.get("input")
        columns = source.get("columns") if isinstance(source, Mapping) else None
        if modality in FOLDERS and isinstance(columns, list) and len(columns) == 1:
            found.setdefault(modality, str(columns[0]))
    return found
