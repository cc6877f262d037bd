"""Checks of the folder, the encoding of its tables, the table of items, and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from mmbase.checks.kit import ERROR, NOTE, Found
from mmbase.checks.subject import Coded, Dataset
from mmbase.layout import counted

_NUMBER = re.compile(r"[+-]?\d+\.0|\d(\.\d+)?[eE]\+?\d+")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_MOJIBAKE = re.compile("[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u2018-\u2122]")
"""What UTF-8 of Latin letters and of quotation marks becomes."""
_SEVERAL = 3
"""Texts up to which it may be a quotation."""
_SAMPLE = 100_000
_FEW = 0.5
"""Share of a column from which a form of writing is no coincidence."""


def _told(kind: str, dataset: Dataset) -> Iterator[Found]:
    yield from dataset.troubles.get(kind, ())


def wrong_folder(dataset: Dataset) -> Iterator[Found]:
    """Yield that the folder is none of a dataset; `reading` looked at those around it."""
    return _told("wrong-folder", dataset)


def unreadable(dataset: Dataset) -> Iterator[Found]:
    """Yield what the readers refuse and no other check explains."""
    return _told("unreadable", dataset)


def empty_files(dataset: Dataset) -> Iterator[Found]:
    """Yield tables and pictures without content."""
    return _told("empty-file", dataset)


def mojibake(dataset: Dataset) -> Iterator[Found]:
    """Yield texts whose UTF-8 was once taken for Windows-1252: `Ã©` for `é`."""
    table = dataset.catalogue
    if table is None:
        return
    for name, texts in table.texts.items():
        found = [text for text in texts[:_SAMPLE].tolist() if _MOJIBAKE.search(text)]
        if len(found) > _SEVERAL:
            what = f"{counted(len(found), 'text')} of column {name} with letters such as "
            what += f"{_MOJIBAKE.search(found[0])[0]}"  # type: ignore[index]
            yield Found(table.where, what, (found[0][:40],))


def missing_header(dataset: Dataset) -> Iterator[Found]:
    """Yield a table of items whose first line is a row."""
    return _told("missing-header", dataset)


def mixed_encodings(dataset: Dataset) -> Iterator[Found]:
    """Yield tables that are partly UTF-8 and partly not, or have a byte order mark inside."""
    for where, (utf8, other, line, marks) in dataset.encodings.items():
        if utf8 and other:
            what = (
                f"{counted(utf8, 'line is', 'lines are')} UTF-8 and {other:,} are not, line {line} "
                "for one: the texts and ids of one kind are read wrongly"
            )
            yield Found(where, what)
        elif marks:
            what = f"{counted(marks, 'byte order mark')} in the middle: files were joined"
            yield Found(where, what, fix="remove the marks (U+FEFF), and headers that came along")


def repeated_items(dataset: Dataset) -> Iterator[Found]:
    """Yield that ids occur in several rows."""
    table = dataset.catalogue
    if table is None:
        return
    counts = table.ids.counts()
    twice = np.flatnonzero(counts > 1)
    if twice.size:
        what = f"{counted(twice.size, 'id occurs', 'ids occur')} in several rows"
        yield Found(table.where, what, tuple(table.ids.names[twice[:3]].tolist()))


def blanks(dataset: Dataset) -> Iterator[Found]:
    """Yield item ids with blanks around them."""
    if dataset.catalogue is not None:
        yield from blank_ids(
            dataset.catalogue.where, dataset.catalogue.column, dataset.catalogue.ids
        )


def blank_ids(where: str, column: str, ids: Coded) -> Iterator[Found]:
    """Yield that ids of a column begin or end with a blank; an error where both forms occur."""
    names = ids.names.tolist()
    found = [name for name in names if name != name.strip()]
    if not found:
        return
    both = {name.strip() for name in found} & set(names)
    what = f"{counted(len(found), 'id')} of {column} with blanks around"
    what += f", {len(both):,} of them without blanks too" if both else ""
    yield Found(where, what, tuple(map(repr, found[:3])), severity=ERROR if both else None)


def number_ids(dataset: Dataset) -> Iterator[Found]:
    """Yield item ids that a program has taken for numbers."""
    if dataset.catalogue is not None:
        table = dataset.catalogue
        yield from numeric_ids(table.where, table.column, table.ids)


def numeric_ids(where: str, column: str, ids: Coded) -> Iterator[Found]:
    """Yield that ids look like `7.0` or `1.2E+09`."""
    found = [name for name in ids.names.tolist() if _NUMBER.fullmatch(name)]
    if len(found) > _FEW * ids.names.size:
        what = f"{counted(len(found), 'id')} of {column} written as decimal numbers"
        yield Found(where, what, tuple(found[:3]))


# --- pictures


def picture_paths(dataset: Dataset) -> Iterator[Found]:
    """Yield paths of Windows, and paths that lead out of the folder."""
    table = dataset.catalogue
    if table is None or not table.pictures.size:
        return
    cells = [cell for cell in table.pictures.tolist() if cell]
    windows = [cell for cell in cells if "\\" in cell or _WINDOWS.match(cell)]
    absolute = [cell for cell in cells if cell.startswith("/")]
    for found, kind in ((windows, "of Windows"), (absolute, "absolute")):
        if found:
            yield Found(
                table.where, f"{counted(len(found), 'path')} to pictures {kind}", tuple(found[:3])
            )


def picture_case(dataset: Dataset) -> Iterator[Found]:
    """Yield names of pictures that differ from the files' in capitals alone."""
    table = dataset.catalogue
    if table is None or not dataset.files:
        return
    files = set(dataset.files)
    folded = {name.casefold(): name for name in files}
    stems = {PurePosixPath(name).stem for name in files}
    folded_stems = {stem.casefold(): stem for stem in stems}
    found = []
    if table.pictures.size:
        for cell in filter(None, table.pictures.tolist()):
            name = re.split(r"[\\/]", cell)[-1]
            if name not in files and name.casefold() in folded:
                found.append(f"{name} for {folded[name.casefold()]}")
    else:
        for name in table.ids.names.tolist():
            if name not in stems and name.casefold() in folded_stems:
                found.append(f"item {name} for {folded_stems[name.casefold()]}")
    if found:
        what = f"{counted(len(found), 'name')} of pictures in other capitals than the file"
        yield Found(table.where, what, tuple(found[:3]))


def picture_names(dataset: Dataset) -> Iterator[Found]:
    """Yield pictures that belong to no item; an error where none does."""
    table = dataset.catalogue
    if table is None or not dataset.files:
        return
    if table.pictures.size:
        named = {
            re.split(r"[\\/]", cell)[-1].casefold() for cell in table.pictures.tolist() if cell
        }
        lost = [name for name in dataset.files if name.casefold() not in named]
    else:
        ids = {name.casefold() for name in table.ids.names.tolist()}
        lost = [name for name in dataset.files if PurePosixPath(name).stem.casefold() not in ids]
    if not lost:
        return
    n = len(dataset.files)
    what = f"{len(lost):,} of {counted(n, 'picture')} bear the name of no item"
    severity = ERROR if len(lost) == n else None if len(lost) > 0.1 * n else NOTE
    fix = ""
    if table.naming:
        what += f", but stand in column {table.naming} of {table.where}"
        fix = f"call the column `image`, or say it: mmx extract --path-column {table.naming}"
    yield Found("images", what, tuple(lost[:3]), fix, severity)
