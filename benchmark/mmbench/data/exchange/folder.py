"""Read and write our own dataset folder as a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmbase.choices import COLUMNS, TEXTS
from mmbase.dataset import find_table
from mmbench.data.exchange import bundle as b
from mmbench.data.exchange.bundle import Bundle, Vectors
from mmbench.data.files import SEQUENCES, available_splits, new_folder, read_items, read_split
from mmbench.data.tables import read_interactions, write_interactions, write_tsv
from mmbench.errors import DataError
from mmstore import FeatureSetWriter, FeatureStore

Names = Mapping[str, str]


def read_dataset(
    data: Path, split: str | None, wanted: Names, columns: Names | None = None
) -> Bundle:
    """Read a dataset folder, with one split and some feature sets.

    Args:
        data: The folder.
        split: As for `load_split`; None: the only split, or the whole interactions.
        wanted: Feature sets, modality to name.
        columns: Column roles of the interaction files.

    Raises:
        DataError: Something is absent or unreadable.
        UsageError: There is no such split or set.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such dataset folder")
    whole = find_table(data, ("interactions",))
    if split is None and not available_splits(data) and whole is not None:
        name, parts = "", {b.WHOLE: read_interactions(whole, columns, ask=True)}
    else:
        tables = read_split(data, split, columns)
        name, parts = tables.name, {**tables.parts}
    items = read_items(data, (columns or {}).get("item_id"))
    store = FeatureStore(data / "features")
    vectors = []
    for modality, set_name in wanted.items():
        with store.open(modality, set_name) as features:
            if features.source != "item" or features.layout != "dense":
                kind = f"{features.source} / {features.layout}"
                raise DataError(f"{features.path}: {kind} features cannot be exported")
            ids = features.ids.tolist()
            matrix, present = features.matrix(ids, dtype=features.dtype)
            vectors.append(Vectors(modality, set_name, ids, matrix, present, features.provenance))
    return Bundle(data.resolve().name, parts, name, items, tuple(vectors))


def write_dataset(bundle: Bundle, out: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write a dataset folder: interactions or a split, `items.tsv`, `features/`, `dataset.json`.

    `more` goes into `dataset.json`, and so do the columns of texts, where no name tells them.

    Raises:
        DataError: `out` exists or cannot be written, or a vector is not finite.
    """
    with new_folder(out) as partial:
        if set(bundle.parts) == {b.WHOLE}:
            write_interactions(partial / "interactions.tsv", bundle.parts[b.WHOLE])
        elif bundle.parts:
            place = partial / "splits" / bundle.split
            place.mkdir(parents=True)
            for part, table in bundle.parts.items():
                write_interactions(place / f"{part}.tsv", table)
        if bundle.items is not None:
            _write_items(partial, bundle.items)
        write_features(bundle, partial)
        counts = {part: len(table) for part, table in bundle.parts.items()}
        described: dict[str, Any] = {"name": bundle.name, "counts": counts, **(more or {})}
        if bundle.sequences:
            described[SEQUENCES] = list(bundle.sequences)
        if texts := [] if bundle.items is None else b.texts_of(bundle.items):
            described[COLUMNS] = {"items": {TEXTS: texts}}
        b.write_json(partial / "dataset.json", described)


def _write_items(folder: Path, items: pd.DataFrame) -> None:
    """Write `items.tsv`, line breaks and tabs of texts, ids apart, as one blank each.

    Where cells are lists, it is `items.jsonl`.
    """
    others = items.columns.drop("item_id")
    if any(isinstance(cell, list) for name in others for cell in items[name]):
        with (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for row in items.to_dict("records"):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    texts = {name: items[name].str.replace(r"\s*[\t\r\n]\s*", " ", regex=True) for name in others}
    write_tsv(folder / "items.tsv", items.assign(**texts), quoted=True)


def write_features(bundle: Bundle, data: Path) -> None:
    """Write the vectors into the store of a dataset folder.

    Raises:
        DataError: A vector holds NaN or infinity.
        StoreError: Another set of that name exists.
    """
    for one in bundle.vectors:
        matrix = np.asarray(one.matrix)
        bad = np.flatnonzero(one.present & ~np.isfinite(matrix).all(1))
        if bad.size:
            told = f"the vector of {one.ids[bad[0]]} holds NaN or infinity ({bad.size} such)"
            raise DataError(f"{one.modality}/{one.name}: {told}")
        path = data / "features" / one.modality / f"{one.name}.h5"
        provenance = {key: value for key, value in one.provenance.items() if key != "created"}
        dtype = "float16" if matrix.dtype == np.float16 else "float32"
        what = {"modality": one.modality, "dim": matrix.shape[1], "ids": list(one.ids)}
        what |= {"dtype": dtype, "restart": not path.exists()}  # a killed one's half is not used
        with FeatureSetWriter(path, **what, provenance=provenance) as writer:
            rows, absent = np.flatnonzero(one.present), np.flatnonzero(~one.present)
            for start in range(0, rows.size, 4096):
                part = rows[start : start + 4096]
                writer.write(part, matrix[part])
            if absent.size:
                writer.mark_missing(absent)
            writer.finish()
