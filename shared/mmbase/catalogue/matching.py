"""Find the files that are named after items, in the folders where people keep them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmbase.catalogue.items import Items
from mmbase.dataset import FILE_SUFFIXES, FOLDERS, content_files, is_hidden, stem
from mmbase.tables import Column


class Matches(NamedTuple):
    """The files that are named after items.

    Attributes:
        paths: Each item's file, relative to the dataset folder; null without one.
        links: Those of them that are symbolic links.
        unused: Number of files that bear no item's id.
        doubled: For each item with several files the first one that is not taken.
        ambiguous: Number of items whose only files are several of one name in several folders.
    """

    paths: Column
    links: frozenset[bytes]
    unused: int
    doubled: list[str]
    ambiguous: int


def match_by_name(items: Items, modality: str) -> Matches:
    """Match files to items by file name.

    Files in the folder of the modality come before those in the dataset folder itself, and these
    before files in folders within (`images/00/123.jpg`). A folder that bears an item's id holds
    several files of that item and is left to `--several`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stems: list[bytes] = []
    names: list[bytes] = []
    links: set[bytes] = set()
    others: dict[bytes, str] = {}
    for folder in (FOLDERS[modality], ""):
        last = None
        for name, is_link in _files(items.root, folder, modality):
            # The names are sorted: the preferred extension comes first.
            if (name_stem := os.fsencode(stem(name))) != last:
                stems.append(name_stem)
                names.append(os.fsencode(_joined(folder, name)))
            else:
                others.setdefault(name_stem, _joined(folder, name))
            last = name_stem
            if is_link:
                links.add(os.fsencode(_joined(folder, name)))
    ids = items.ids.cast(pa.binary())
    rows = pc.index_in(ids, value_set=pa.array(stems, pa.binary()))
    unused = len(set(stems)) - pc.count_distinct(rows).as_py()
    several = ids.filter(pc.is_in(ids, value_set=pa.array(others, pa.binary()))).to_pylist()
    ambiguous = 0
    if rows.null_count:
        found: dict[bytes, list[bytes]] = {}
        for folder in _folders_within(items, FOLDERS[modality]):
            for name, is_link in _files(items.root, folder, modality):
                path = os.fsencode(_joined(folder, name))
                found.setdefault(os.fsencode(stem(name)), []).append(path)
                if is_link:
                    links.add(path)
        single = {one: paths[0] for one, paths in found.items() if len(paths) == 1}
        doubtful = pa.array([one for one in found if one not in single], pa.binary())
        unmatched = ids.filter(pc.is_null(rows))
        ambiguous = pc.sum(pc.is_in(unmatched, value_set=doubtful)).as_py() or 0
        more = pc.index_in(ids, value_set=pa.array(single, pa.binary()))
        rows = pc.coalesce(rows, pc.add(more, len(names)))
        names += single.values()
    return Matches(
        pa.chunked_array(pc.take(pa.array(names, pa.binary()), rows), pa.binary()),
        frozenset(links),
        unused,
        [others[one] for one in several],
        ambiguous,
    )


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _files(root: Path, folder: str, modality: str) -> Iterator[tuple[str, bool]]:
    names, links = content_files(root / folder, FILE_SUFFIXES[modality])
    for name in names:
        yield name, name in links


def _folders_within(items: Items, top: str) -> Iterator[str]:
    """Yield the folders in a folder of the dataset, at any depth, that bear no item's id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    level = [top]
    while level:
        below: list[str] = []
        for folder in level:
            try:
                with os.scandir(items.root / folder) as entries:
                    below += sorted(
                        _joined(folder, entry.name)
                        for entry in entries
                        if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False)
                    )
            except (FileNotFoundError, NotADirectoryError):
                continue
        own = pa.array([os.fsencode(folder.rpartition("/")[2]) for folder in below], pa.binary())
        is_item = pc.is_in(own, value_set=items.ids.cast(pa.binary()).combine_chunks()).to_pylist()
        level = [folder for folder, taken in zip(below, is_item, strict=True) if not taken]
        yield from level
