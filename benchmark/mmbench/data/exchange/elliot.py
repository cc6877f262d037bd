"""Elliot's files: three parts without a header, and one .npy per item and modality.

    train.tsv val.tsv test.tsv    user, item, rating[, timestamp]
    visual_features/<item>.npy    shape (dim,) or (1, dim); the folder's name begins with a modality
    users.tsv items.tsv           ours: number and original id, with a header

An export numbers users and items from 0, and items of training first: Elliot's multimodal models
place vectors by enumerating item numbers, and embeddings by enumerating those that occur in
training. A vector is written as (dim,), for Elliot's own loader takes the first length of the array
for the number of dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmbase.dataset import find_table
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle, Vectors
from mmbench.data.tables import read_interactions, write_tsv
from mmbench.errors import DataError

STEMS = {"train": ("train",), "valid": ("val", "validation", "valid"), "test": ("test",)}
MODALITIES = {
    "visual": "visual", "image": "visual", "textual": "textual", "text": "textual",
    "audio": "audio",
}  # fmt: skip
EXAMPLE = "train.tsv, val.tsv, test.tsv, visual_features/0.npy"


def detect(folder: Path) -> bool:
    """Whether the folder looks like this layout."""
    return bool(find_table(folder, STEMS["train"]) and find_table(folder, STEMS["test"]))


def read(folder: Path) -> Bundle:
    """Read an Elliot folder, with the original ids where `users.tsv` and `items.tsv` have them."""
    users, items = (
        b.read_mapping(folder / f"{kind}s.tsv", (f"{kind}_id",), "number")
        for kind in ("user", "item")
    )
    given = b.read_json(folder / b.SIDECAR)
    parts = {}
    for part, stems in STEMS.items():
        path = find_table(folder, stems)
        if path is None:
            names = " or ".join(stems)
            raise DataError(f"{folder}: no file {names} (.tsv, .csv); a split needs all three")
        table = b.renamed(read_interactions(path), users, items, path)
        parts[part] = table if given.get("ratings", True) else replace(table, ratings=None)
    vectors = tuple(
        _vectors(path, items, given)
        for path in sorted(folder.iterdir())
        if path.is_dir() and next(path.glob("*.npy"), None)
    )
    name, split = given.get("name", folder.resolve().name), given.get("split", "elliot")
    return Bundle(name, parts, split, None, vectors)


def write(bundle: Bundle, folder: Path, missing: str) -> None:
    """Write an Elliot folder."""
    b.require_split(bundle, "Elliot")
    user_ids, item_ids = bundle.ids("user_ids"), _training_first(bundle)
    for part, frame in b.numbered(bundle, user_ids, item_ids).items():
        if "rating" not in frame.columns:
            frame.insert(2, "rating", 1)
        write_tsv(folder / f"{STEMS[part][0]}.tsv", frame, header=False)
    for kind, ids in (("user", user_ids), ("item", item_ids)):
        mapping = pd.DataFrame({"number": range(len(ids)), f"{kind}_id": ids})
        write_tsv(folder / f"{kind}s.tsv", mapping)
    absent = {}
    for one in bundle.vectors:
        matrix, absent[one.modality] = b.filled(one, item_ids, missing)
        place = folder / f"{one.modality}_features"
        place.mkdir()
        for row, vector in enumerate(matrix):
            np.save(place / f"{row}.npy", vector)
    rated = all(table.ratings is not None for table in bundle.parts.values())
    b.write_json(folder / b.SIDECAR, {**b.sidecar(bundle, ratings=rated), "absent": absent})


def modality_of(name: str) -> str | None:
    """Return the modality that a folder's name begins with; None if it begins with none."""
    return next((one for prefix, one in MODALITIES.items() if name.startswith(prefix)), None)


def _training_first(bundle: Bundle) -> list[str]:
    known = set(bundle.parts["train"].item_ids.tolist())
    # The sort is stable: ascending in each half.
    return sorted(bundle.ids("item_ids"), key=lambda item: item not in known)


def read_folder(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the file stems and vectors of a folder of one .npy per item.

    Raises:
        DataError: A file holds no vector, or they differ in length.
    """
    files = sorted(path.glob("*.npy"))
    first = _vector(files[0])
    matrix = np.empty((len(files), first.size), np.float32)
    for row, file in enumerate(files):
        vector = _vector(file)
        if vector.size != first.size:
            wanted = f"expected {first.size}, as in {files[0].name}"
            raise DataError(f"{file}: {vector.size} numbers ({wanted})")
        matrix[row] = vector
    return [file.name.removesuffix(".npy") for file in files], matrix


def _vector(path: Path) -> np.ndarray[Any, Any]:
    vector = b.load_array(path)
    if vector.dtype.kind != "f" or vector.size == 0 or vector.size != max(vector.shape, default=0):
        found = f"{vector.shape} of {vector.dtype}"
        raise DataError(f"{path}: {found} (expected floats of shape (dim,) or (1, dim))")
    return np.asarray(vector, np.float32).reshape(-1)


def _vectors(path: Path, items: dict[str, str], given: dict[str, Any]) -> Vectors:
    modality = modality_of(path.name) or path.name.partition("_")[0]
    stems, matrix = read_folder(path)
    unknown = next((stem for stem in stems if items and stem not in items), None)
    if unknown is not None:
        raise DataError(f"{path / (unknown + '.npy')}: no item of that number in items.tsv")
    absent = {str(row) for row in given.get("absent", {}).get(modality, [])}
    name, provenance = b.restored(given, modality, "elliot", folder=path.name)
    present = np.array([stem not in absent for stem in stems])
    ids = [items.get(stem, stem) for stem in stems]
    return Vectors(modality, name, ids, matrix, present, provenance)
