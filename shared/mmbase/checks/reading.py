"""Reads what checks look at: the one place of them that opens files."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmbase import dialects
from mmbase.checks.kit import Found, attempted
from mmbase.checks.subject import Catalogue, Coded, Dataset, Vectors
from mmbase.choices import recall_column
from mmbase.dataset import (
    FILE_SUFFIXES,
    FOLDERS,
    ITEM_ID_COLUMNS,
    PATH_COLUMNS,
    TEXT_COLUMNS,
    columns_of,
    content_files,
    find_table,
    is_table_file,
    item_id_column,
)
from mmbase.layout import counted
from mmbase.tables import Table, is_table, open_table, strings
from mmstore.spec import DENSE, ITEM

if TYPE_CHECKING:
    from mmstore.reader import FeatureSet

SKETCH = 64
"""Dimensions to which vectors are projected; distances keep within about an eighth."""
MOST = 200_000
"""Vectors of a set, and texts of a catalogue, that take part in the test of alignment."""
PAIRS = 20_000
"""Related pairs of items that are drawn."""
PICTURES = PATH_COLUMNS["visual"]
_MARKS = ("interactions", "items", "train", "test", "ratings")
_ARRAYS = (".npy", ".npz", ".pt", ".pkl")
_WORD = re.compile(r"\w{3,}")


def read_dataset(folder: Path, *, tables: Sequence[str] = ("items",)) -> Dataset:
    """Read a dataset folder's table of items, the names of its pictures, and its feature sets.

    Args:
        folder: The folder.
        tables: Stems of the tables whose encoding is examined.
    """
    dataset = Dataset(folder)
    if not _is_dataset(dataset):
        return dataset
    for path in _tables(folder, tables):
        _look_at_bytes(path, path.relative_to(folder).as_posix(), dataset)
    images = folder / FOLDERS["visual"]
    dataset.files = content_files(images, FILE_SUFFIXES["visual"])[0]
    _read_items(dataset)
    _look_for_empty(images, dataset)
    if dataset.catalogue is not None:
        dataset.known = set(dataset.catalogue.ids.names.tolist())
        pairs = by_words(dataset.catalogue)
        if pairs:
            dataset.related["texts"] = pairs
    dataset.vectors = sorted(one.name for one in folder.iterdir() if one.suffix in _ARRAYS)
    _read_sets(dataset)
    return dataset


# --- the folder


def _is_dataset(dataset: Dataset) -> bool:
    """Whether the folder holds anything of a dataset; tells where one is if it is not here."""
    folder = dataset.folder
    if folder.is_file():
        what, near = "a file, not a folder", folder.parent
    elif not folder.is_dir():
        what, near = "no such folder", folder.parent
    elif _holds(folder):
        return True
    else:
        within = sorted(one for one in folder.iterdir() if one.is_dir() and _holds(one))
        if within:
            names = ", ".join(one.name for one in within[:3])
            what = f"holds no dataset itself; {counted(len(within), 'folder')} in it"
            what += " does" if len(within) == 1 else " do"
            fix = f"take {within[0].as_posix()}" if len(within) == 1 else ""
            told = Found(folder.as_posix(), what, (names,), fix)
            dataset.trouble("wrong-folder").append(told)
            return False
        what, near = "holds neither items.* nor interactions.* nor features/", folder.parent
    above = [one for one in (near, near.parent) if one.is_dir() and _holds(one, tables=True)]
    fix = f"take {above[0].as_posix()}" if above and folder.exists() else ""
    if folder.is_dir() and any(is_table_file(one) for one in folder.iterdir()):
        fix = "`mmbench data import` makes a dataset of it (tables of your own, MMRec, RecBole, …)"
    dataset.trouble("wrong-folder").append(Found(folder.as_posix(), what, fix=fix))
    return False


def _holds(folder: Path, *, tables: bool = False) -> bool:
    """Whether a folder is a dataset: by a table of a known name, or pictures or sets alone."""
    if folder.name == "splits" or folder.parent.name == "splits":
        return False
    names = [one for one in folder.iterdir() if is_table_file(one)]
    if any(one.name.split(".")[0].casefold() in _MARKS for one in names):
        return True
    if tables or folder.name in ("features", *FOLDERS.values()) or folder.parent.name == "features":
        return False
    inside = ("features", "splits", *FOLDERS.values())
    # The only table of a folder may be one of items, under any name.
    return any((folder / name).is_dir() for name in inside) or sum(map(is_table, names)) == 1


def _tables(folder: Path, stems: Sequence[str]) -> Iterator[Path]:
    places = [folder, *sorted((folder / "splits").glob("*/"))]
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if is_table_file(path) and path.name.split(".")[0] in stems:
                yield path


def _look_for_empty(folder: Path, dataset: Dataset) -> None:
    empty = [name for name in dataset.files if (folder / name).stat().st_size == 0]
    if empty:
        what = f"{counted(len(empty), 'picture has', 'pictures have')} no bytes"
        fix = "copy these files again: a download or a copy was cut off"
        dataset.trouble("empty-file").append(Found(folder.name, what, tuple(empty[:3]), fix))


# --- bytes


def _look_at_bytes(path: Path, where: str, dataset: Dataset) -> None:
    """Count the lines of a text table that are UTF-8, and those that are not."""
    name = dialects.plain_name(path)
    if path.is_dir() or not name.endswith((".tsv", ".csv", ".jsonl", ".txt", ".inter")):
        return
    if path.stat().st_size == 0:
        dataset.trouble("empty-file").append(Found(where, "the file has no bytes"))
        return

    def look() -> None:
        utf8 = other = first = marks = 0
        with dialects.opened(path) as file:
            start = file.read(4)
            wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start
        if wide:
            return  # told by the reader's note
        with dialects.opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.isascii():
                    continue
                marks += codecs.BOM_UTF8 in (line if number > 1 else line[3:])
                try:
                    line.decode()
                    utf8 += line.removeprefix(codecs.BOM_UTF8).isascii() is False
                except UnicodeDecodeError:
                    other += 1
                    first = first or number
        dataset.encodings[where] = (utf8, other, first, marks)

    attempted(look, where, dataset.trouble("unreadable"))


# --- items


def _read_items(dataset: Dataset) -> None:
    folder, troubles = dataset.folder, dataset.trouble("unreadable")
    path = attempted(lambda: find_table(folder, ("items",)), "items.*", troubles)
    if path is None or any(one.where == path.name for one in dataset.trouble("empty-file")):
        return
    table: Table | None = attempted(lambda: open_table(path), path.name, troubles)
    if table is None:
        return
    notes: list[str] = []
    column = recall_column(folder, ("items", "interactions"), "item_id", table.columns, notes)
    if column is None and looks_like_a_row(table):
        what = f"the first line, {', '.join(table.columns)[:60]}, is a row and no header"
        dataset.trouble("missing-header").append(Found(path.name, what))
        return
    column = column or attempted(lambda: item_id_column(table), path.name, troubles)
    if column is None:
        return
    texts = [name for name in table.columns if name.casefold() in TEXT_COLUMNS]
    pictures = next((name for name in PICTURES if name in table.columns), None)
    wanted = list(dict.fromkeys([column, *texts, *([pictures] if pictures else [])]))
    cells = attempted(lambda: table.read(wanted, ids=[column]), path.name, troubles)
    if cells is None:
        return
    if len(cells[column]) == 0:
        dataset.trouble("empty-file").append(Found(path.name, "a header and no rows"))
        return
    texts_of = {name: strings(cells[name]) for name in texts}
    named = strings(cells[pictures]) if pictures else np.empty(0, object)
    ids = Coded.of(cells[column])
    naming = ""
    if not pictures and dataset.files:
        naming = _that_names(
            dataset.files, table, [name for name in table.columns if name != column]
        )
    dataset.catalogue = Catalogue(path.name, table.columns, column, ids, texts_of, named, naming)
    if (ids.names == "").any():
        n = int(ids.counts()[ids.names == ""].sum())
        what = f"{counted(n, 'row')} without an id in {column}"
        troubles.append(Found(path.name, what, fix="give every row an id, or remove it"))


def _that_names(files: Sequence[str], table: Table, columns: Sequence[str]) -> str:
    """Return the column that names most of the files; empty if none does."""
    names = set(files)
    for column in columns:
        if table.columns.count(column) == 1 and table.kind != "json":
            cells = {re.split(r"[\\/]", str(cell))[-1] for cell in table.values([column])[column]}
            if 2 * len(names & cells) > len(names):
                return column
    return ""


def looks_like_a_row(table: Table) -> bool:
    """Whether the first line of a text table of items is a row: no known name, and the look of one.

    Names of columns are words; a row has numbers, or long texts, or an id with digits in it.
    """
    names = [name.casefold() for name in table.columns]
    known = {name.casefold() for name in ITEM_ID_COLUMNS} | set(TEXT_COLUMNS) | set(PICTURES)
    if table.kind != "text" or known & set(names) or columns_of("item_id", table.columns):
        return False
    if any(name.endswith(("id", "asin")) and name.isalpha() for name in names):
        return False
    return any(
        re.search(r"\d", name) or " " in name.strip() or len(name) > 40 for name in table.columns
    )


def by_words(catalogue: Catalogue, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs of items whose texts share a rare word, at most `PAIRS`.

    A word says something that several items have and few of all: 2 to a hundredth.
    """
    n = min(catalogue.ids.codes.size, MOST)
    if not catalogue.texts or n < 50:
        return []
    rows: dict[str, list[int]] = {}
    most = max(20, n // 100)
    counts: Counter[str] = Counter()
    columns = list(catalogue.texts.values())
    for row in range(n):
        words = {word for one in columns for word in _WORD.findall(str(one[row]).casefold())}
        counts.update(words)
        for word in words:
            if counts[word] <= most + 1:
                rows.setdefault(word, []).append(row)
    draws = np.random.default_rng(seed)
    groups = [own for word, own in sorted(rows.items()) if 2 <= counts[word] <= most]
    names = catalogue.ids.names[catalogue.ids.codes[:n]]
    return _pairs_within(groups, names, draws)


def _pairs_within(
    groups: Sequence[Sequence[int]], names: NDArray[np.object_], draws: np.random.Generator
) -> list[tuple[str, str]]:
    """Return pairs of members of a group, each group as often as another, at most `PAIRS`."""
    if not groups:
        return []
    each = max(1, min(20, -(-PAIRS // len(groups))))
    order = draws.permutation(len(groups))[:PAIRS].tolist()
    pairs = set()
    for number in order:
        own = groups[number]
        for _ in range(min(each, len(own) - 1)):
            a, b = draws.choice(len(own), 2, replace=False).tolist()
            pairs.add((own[min(a, b)], own[max(a, b)]))
    drawn = sorted(pairs)[:]
    draws.shuffle(drawn)
    return [(str(names[a]), str(names[b])) for a, b in drawn[:PAIRS]]


# --- feature sets


def _read_sets(dataset: Dataset) -> None:
    from mmstore.store import FeatureStore

    root = dataset.folder / "features"
    if not root.is_dir():
        return
    store = FeatureStore(root)
    for modality, name in store.sets():
        where, troubles = f"{modality}/{name}", dataset.trouble("damaged-set")

        def read(modality: str = modality, name: str = name) -> Vectors | None:
            with store.open(modality, name) as features:
                dense = features.source == ITEM and features.layout == DENSE
                return read_vectors(features, f"{modality}/{name}") if dense else None

        found = attempted(read, where, troubles)
        if found is not None:
            dataset.sets.append(found)


def read_vectors(features: FeatureSet, where: str) -> Vectors:
    """Return what checks want to know of a dense set of items, in one pass.

    Memory: the ids, 8 bytes a row for a hash of its vector, and `SKETCH` numbers for the first
    `MOST` rows.
    """
    n, dim = len(features), features.dim
    project = np.random.default_rng(0).standard_normal((dim, SKETCH)).astype(np.float32)
    ids, ok = np.empty(n, object), np.zeros(n, bool)
    hashes = np.zeros(n, np.int64)
    zeros: list[NDArray[np.int64]] = []
    sketch = np.zeros((min(n, MOST), SKETCH), np.float32)
    rows_at_once = max(1, min(8192, (1 << 24) // (4 * dim)))
    start = 0
    for names, block, status in features.iter_batches(rows_at_once):
        stop = start + len(names)
        ids[start:stop] = names.tolist()
        here = np.isin(status, (1,))
        ok[start:stop] = here
        vectors = np.asarray(block, np.float32)
        zeros.append(start + np.flatnonzero(here & ~vectors.any(1)))
        hashes[start:stop] = [hash(row.tobytes()) for row in vectors]
        if start < len(sketch):
            part = vectors[: len(sketch) - start]
            sketch[start : start + len(part)] = np.nan_to_num(part) @ project
        start = stop
    own, first, counts = np.unique(hashes[ok], return_index=True, return_counts=True)
    most = int(counts.argmax()) if own.size else -1
    rows = np.flatnonzero(ok)
    repeated = (int(counts[most]), int(rows[first[most]])) if own.size else (0, -1)
    return Vectors(
        where, ids, ok, features.errors(), np.concatenate([*zeros, np.empty(0, np.int64)]),
        repeated, own.size, _of_length_one(sketch, ok[: len(sketch)]),
    )  # fmt: skip


def _of_length_one(sketch: NDArray[np.float32], there: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Centre the rows that are there, and scale them to length 1; all others are 0."""
    out = np.zeros_like(sketch)
    if not there.any():
        return out
    centred = sketch[there] - sketch[there].mean(0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    out[there] = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    return out


def pairs_of_users(
    users: NDArray[np.int32], items: NDArray[np.int32], names: NDArray[Any], seed: int = 0
) -> list[tuple[str, str]]:
    """Return pairs of items that one user has, at most `PAIRS`; of users drawn at random.

    Args:
        users: Number of the user of each row, shape (n,).
        items: Number of its item, shape (n,).
        names: Ids of the items by number.
        seed: Of the draws.
    """
    draws = np.random.default_rng(seed)
    n_users = int(users.max()) + 1 if users.size else 0
    chosen = np.zeros(n_users, bool)
    chosen[draws.permutation(n_users)[:PAIRS]] = True
    rows = np.flatnonzero(chosen[users])
    rows = rows[np.argsort(users[rows], kind="stable")]
    bounds = np.flatnonzero(np.diff(users[rows])) + 1
    groups: Iterable[NDArray[np.int32]] = np.split(items[rows], bounds)
    distinct = [np.unique(own).tolist() for own in groups]
    return _pairs_within([own for own in distinct if 2 <= len(own) <= 100], names, draws)
