"""MMRec's folder: `<name>.inter` with `x_label`, `image_feat.npy`, `text_feat.npy`, id mappings.

<name>.inter        header userID itemID [rating] [timestamp] x_label: 0 train, 1 valid, 2 test
i_id_mapping.csv    optional, tab-separated: original id (asin), itemID
u_id_mapping.csv    optional, tab-separated: original id (user_id), userID
image_feat.npy      row k belongs to itemID k; likewise text_feat.npy, audio_feat.npy
missed_image.csv    optional, ours: items whose row stands in for an absent vector;
                    missed_img_itemIDs.csv in MMRec's own preprocessing
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmbase.tables import open_table, strings
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle, Vectors
from mmbench.data.tables import read_interactions, write_tsv
from mmbench.errors import DataError

LABELS = ("train", "valid", "test")
FILES = {"visual": "image_feat.npy", "textual": "text_feat.npy", "audio": "audio_feat.npy"}
THEIR_MISSED = "missed_img_itemIDs.csv"
EXAMPLE = "baby/baby.inter, image_feat.npy, text_feat.npy"


def detect(folder: Path) -> bool:
    """Whether the folder looks like this layout."""
    path = _interactions(folder)
    return path is not None and b.first_line(path).rstrip("\n").endswith("x_label")


def read(folder: Path) -> Bundle:
    """Read an MMRec folder, with the original ids where there are mappings."""
    path = _interactions(folder)
    if path is None:
        raise DataError(f"{folder}: expected exactly one .inter file with a column x_label")
    raw = open_table(path, literal=True)
    if "x_label" not in raw.columns:
        raise DataError(f"{path}: no column x_label; for a RecBole file use --format recbole")
    labels = strings(raw.read(["x_label"])["x_label"])
    wrong = sorted(set(labels.tolist()) - {"0", "1", "2"})
    if wrong:
        raise DataError(f"{path}: x_label {wrong[0]!r} (expected 0, 1 or 2)")
    roles = {"user_id": "userID", "item_id": "itemID"}
    roles = {role: name for role, name in roles.items() if name in raw.columns}
    table = read_interactions(path, roles)
    user_names, item_names = ("user_id", "reviewerid", "original"), ("asin", "item_id", "original")
    users = b.read_mapping(folder / "u_id_mapping.csv", user_names, "userid")
    items = b.read_mapping(folder / "i_id_mapping.csv", item_names, "itemid")
    given = b.read_json(folder / b.SIDECAR)
    numbers = table.item_ids
    table = b.renamed(table, users, items, path)
    parts = {part: table.take(labels == str(label)) for label, part in enumerate(LABELS)}
    vectors = tuple(
        _vectors(folder, modality, items, numbers, given)
        for modality, file in FILES.items()
        if (folder / file).is_file()
    )
    notes = () if items else ("no i_id_mapping.csv: the item numbers are taken as ids",)
    name, split = given.get("name", folder.resolve().name), given.get("split", "mmrec")
    return Bundle(name, parts, split, None, vectors, notes=notes)


def write(bundle: Bundle, folder: Path, missing: str) -> None:
    """Write an MMRec folder."""
    b.require_split(bundle, "MMRec")
    user_ids, item_ids = bundle.ids("user_ids"), bundle.ids("item_ids")
    frames = b.numbered(bundle, user_ids, item_ids)
    labelled = [frames[part].assign(x_label=label) for label, part in enumerate(LABELS)]
    rows = pd.concat(labelled, ignore_index=True)
    rows = rows.rename(columns={"user": "userID", "item": "itemID"})
    write_tsv(folder / f"{bundle.name}.inter", rows)
    for kind, name, ids in (("user", "user_id", user_ids), ("item", "asin", item_ids)):
        mapping = pd.DataFrame({name: ids, f"{kind}ID": range(len(ids))})
        write_tsv(folder / f"{kind[0]}_id_mapping.csv", mapping)
    for one in bundle.vectors:
        if one.modality not in FILES:
            fix = f"it has: {', '.join(FILES)}"
            raise DataError(f"{one.modality}/{one.name}: no such modality in MMRec ({fix})")
        matrix, absent = b.filled(one, item_ids, missing)
        np.save(folder / FILES[one.modality], matrix)
        if absent:
            text = "".join(f"{row}\n" for row in absent)
            _missed(folder, one.modality).write_text(text, encoding="utf-8")
    b.write_json(folder / b.SIDECAR, b.sidecar(bundle))


def _interactions(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.inter"))
    return found[0] if len(found) == 1 else None


def _missed(folder: Path, modality: str) -> Path:
    return folder / f"missed_{FILES[modality].removesuffix('_feat.npy')}.csv"


def _vectors(
    folder: Path, modality: str, items: dict[str, str], numbers: Any, given: dict[str, Any]
) -> Vectors:
    file = FILES[modality]
    matrix = b.load_matrix(folder / file, len(items) or None)
    _numbers(folder / file, numbers.tolist(), len(matrix))
    present = np.ones(len(matrix), bool)
    for missed in (_missed(folder, modality), folder / THEIR_MISSED):
        if missed.is_file() and (modality == "visual" or missed.name != THEIR_MISSED):
            texts = missed.read_text(encoding="utf-8").split()
            present[_numbers(missed, texts, len(matrix))] = False
    ids = [items.get(str(row), str(row)) for row in range(len(matrix))]
    name, provenance = b.restored(given, modality, "mmrec", file=file)
    return Vectors(modality, name, ids, matrix, present, provenance)


def _numbers(where: Path, texts: Sequence[str], n: int) -> list[int]:
    """Return item numbers below n; a DataError for anything else."""
    for text in texts:
        if not (text.isascii() and text.isdigit() and int(text) < n):
            raise DataError(f"{where}: item {text} occurs, but the vectors are of 0 to {n - 1}")
    return [int(text) for text in texts]
