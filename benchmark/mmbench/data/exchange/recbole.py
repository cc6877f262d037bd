"""RecBole's atomic files: `<name>.inter` or its three parts, `<name>.item`.

    <name>.inter                       user_id:token item_id:token [rating:float] [timestamp:float]
    <name>.{train,valid,test}.inter    the same, already split (RecBole's benchmark_filename)
    <name>.item                        item_id:token and further columns, texts as token_seq

There is no place for content vectors; they stay in the feature store. RecBole takes a quote at the
beginning of a field for the beginning of a quoted one, and a few words for an absent value: a text
gets a blank before such a quote (texts are split at blanks), and an id of that kind is refused.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmbase.tables import open_table
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle
from mmbench.data.tables import read_interactions, write_tsv
from mmbench.errors import DataError

PARTS = ("train", "valid", "test")
EXAMPLE = "ml-100k/ml-100k.inter, ml-100k.item"
ABSENT = frozenset({
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
})  # fmt: skip
"""Words that RecBole, through pandas, reads as an absent value."""


def detect(folder: Path) -> bool:
    """Whether the folder looks like this layout."""
    first = next(iter(sorted(folder.glob("*.inter"))), None)
    return first is not None and ":token" in b.first_line(first)


def read(folder: Path) -> Bundle:
    """Read a folder of atomic files."""
    name, paths = _parts(folder)
    parts = {part: read_interactions(path) for part, path in paths.items()}
    item_file = folder / f"{name}.item"
    items, notes = None, []
    sequences: tuple[str, ...] = ()
    if item_file.is_file():
        items = b.all_texts(open_table(item_file, literal=True))
        sequences = tuple(
            column.partition(":")[0] for column in items.columns if column.endswith(":token_seq")
        )
        items.columns = pd.Index([str(column).partition(":")[0] for column in items.columns])
        if "item_id" not in items.columns:
            found = ", ".join(items.columns)
            raise DataError(f"{item_file}: no column item_id:token; it has: {found}")
        items = items[["item_id", *(column for column in items.columns if column != "item_id")]]
        for column in items.columns.drop("item_id"):
            items[column] = items[column].str.replace(r'^ (?=")', "", regex=True)
    others = (".user", ".kg", ".link", ".net")
    unused = sorted(path.name for path in folder.iterdir() if path.suffix in others)
    if unused:
        notes.append(f"not read: {', '.join(unused)}")
    split = "recbole" if len(parts) == 3 else ""
    return Bundle(name, parts, split, items, sequences=sequences, notes=tuple(notes))


def write(bundle: Bundle, folder: Path, missing: str) -> None:
    """Write atomic files; vectors are left out."""
    for what in ("user_ids", "item_ids"):
        for one in bundle.ids(what):
            if one.startswith('"') or one in ABSENT:
                told = "RecBole would read another id or none; rename it in the dataset"
                raise DataError(f"{what[:-1]} {one}: {told}")
    for part, table in bundle.parts.items():
        frame = pd.DataFrame({"user_id:token": table.user_ids, "item_id:token": table.item_ids})
        frame = frame.assign(**{f"{name}:float": n for name, n in table.numbers().items()})
        stem = bundle.name if part == b.WHOLE else f"{bundle.name}.{part}"
        write_tsv(folder / f"{stem}.inter", frame)
    if bundle.items is not None:
        items = bundle.items.copy()
        for column in items.columns.drop("item_id"):
            # A sequence of words: a line break is as good as a blank.
            text = items[column].str.replace(r"[\t\r\n]+", " ", regex=True)
            items[column] = text.str.replace(r'^(?=")', " ", regex=True)
        typed = {column: f"{str(column).replace(':', '_')}:token_seq" for column in items.columns}
        items = items.rename(columns={**typed, "item_id": "item_id:token"})
        write_tsv(folder / f"{bundle.name}.item", items)


def _parts(folder: Path) -> tuple[str, dict[str, Path]]:
    """Return the dataset's name, and the file of each part."""
    files = {path.name.removesuffix(".inter"): path for path in sorted(folder.glob("*.inter"))}
    named = {name.rpartition(".")[0]: name for name in files if name.rpartition(".")[2] in PARTS}
    if len(named) == 1:
        name = next(iter(named))
        absent = [part for part in PARTS if f"{name}.{part}" not in files]
        if absent:
            raise DataError(f"{folder}: no {name}.{absent[0]}.inter; a split needs all three parts")
        return name, {part: files[f"{name}.{part}"] for part in PARTS}
    if len(files) == 1:
        name, path = next(iter(files.items()))
        return name, {b.WHOLE: path}
    found = ", ".join(files) or "none"
    raise DataError(f"{folder}: expected one .inter file or one dataset's three; found: {found}")
