"""Lists of items per user: the files of LightGCN, NGCF, KGAT and their successors.

    train.txt test.txt [valid.txt]    user, then the user's items, separated by blanks
    user_list.txt item_list.txt       optional, header `org_id remap_id`: the original ids

Gowalla, Yelp2018 and Amazon-book are published so. There is no validation part as a rule.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from mmbase.dataset import ROLES
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle
from mmbench.data.tables import InteractionTable
from mmbench.errors import DataError

STEMS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
EXAMPLE = "train.txt, test.txt with a user and items on each line"
_LOOKED_AT = 1000


def detect(folder: Path) -> bool:
    """Whether there are lists: numbers and blanks, more or not as many as a row of a table has."""
    paths = [folder / f"{part}.txt" for part in ("train", "test")]
    if not all(path.is_file() for path in paths):
        return False
    with paths[0].open(encoding="utf-8-sig", errors="replace") as file:
        lines = [line.rstrip("\r\n").split(" ") for line in islice(file, _LOOKED_AT)]
    cells = {cell for line in lines for cell in line if cell}
    widths = {len(line) for line in lines}
    no_rows = len(widths) > 1 or max(widths, default=0) > len(ROLES)
    return no_rows and all(cell.isdigit() for cell in cells)


def read(folder: Path) -> Bundle:
    """Read a folder of lists; `valid` is among the parts only if it has a file."""
    users, items = (_mapping(folder / f"{kind}_list.txt") for kind in ("user", "item"))
    parts = {}
    for part, stems in STEMS.items():
        found = [folder / f"{stem}.txt" for stem in stems if (folder / f"{stem}.txt").is_file()]
        if found:
            parts[part] = b.renamed(_lists(found[0]), users, items, found[0])
        elif part != "valid":
            raise DataError(f"{folder}: no {part}.txt; expected {EXAMPLE}")
    notes = () if items else ("no item_list.txt: the item numbers are taken as ids",)
    return Bundle(folder.resolve().name, parts, "lightgcn", notes=notes)


def _lists(path: Path) -> InteractionTable:
    users: list[str] = []
    items: list[str] = []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            wrong = next((cell for cell in cells if not cell.isdigit()), None)
            if wrong is not None:
                told = f"{wrong!r} is no number (expected a user and the user's items)"
                raise DataError(f"{path}, line {number}: {told}")
            users += cells[:1] * len(cells[1:])
            items += cells[1:]
    if not items:
        raise DataError(f"{path}: no items; expected a user and the user's items on each line")
    return InteractionTable(np.array(users, object), np.array(items, object), None, None)


def _mapping(path: Path) -> dict[str, str]:
    """Return the original id of each number; empty where there is no such file."""
    if not path.is_file():
        return {}
    header, *lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    pairs = [line.rsplit(maxsplit=1) for line in lines if line.strip()]
    if header.split()[-1:] != ["remap_id"] and not header.split()[1:2] == ["remap_id"]:
        raise DataError(f"{path}: header {header!r} (expected org_id remap_id)")
    if header.split()[-1:] != ["remap_id"]:  # KGAT has a third column
        pairs = [line.split()[:2] for line in lines if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise DataError(f"{path}: {' '.join(wrong)!r} (expected an id and its number)")
    names = {number: original for original, number in pairs}
    if len(names) != len(pairs) or len(set(names.values())) != len(pairs):
        raise DataError(f"{path}: an id or a number occurs twice")
    return names
