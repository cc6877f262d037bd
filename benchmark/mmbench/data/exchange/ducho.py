"""Ducho's output tree: one .npy per item, named by the item, in folders of modality and model.

    visual_embeddings/<library>/<model>/<layer>/<item>.npy

Features alone; the sets are named `<model>-<layer>`. A folder of several modalities fused, which
Ducho names after both and how (`visual_embeddings_textual_embeddings_concat`), is of the modality
`fused`, its sets `<model>-<layer>-<how>`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mmbench.data.exchange.bundle import Bundle, Vectors
from mmbench.data.exchange.elliot import modality_of, read_folder
from mmbench.errors import DataError

EXAMPLE = "visual_embeddings/torch/ResNet50/avgpool/B0001.npy"
_FUSED = re.compile(r"^(?:visual|image).*_(?:textual|text).*_(concat|sum|mul|mean)$")


def detect(folder: Path) -> bool:
    """Whether the folder looks like this layout."""
    return any(
        path.is_dir() and _modality(path.name) and next(path.glob("*/**/*.npy"), None)
        for path in folder.iterdir()
    )


def read(folder: Path) -> Bundle:
    """Read the feature sets of a tree."""
    vectors = []
    for top in sorted(path for path in folder.iterdir() if path.is_dir()):
        modality = _modality(top.name)
        if modality is None:
            continue
        for leaf in sorted({path.parent for path in top.rglob("*.npy")}):
            ids, matrix = read_folder(leaf)
            levels = leaf.relative_to(top).parts
            fused = _FUSED.search(top.name.casefold())
            names = [*levels[-2:], *(fused.groups() if fused else ())]
            name = re.sub(r"[^a-z0-9._-]+", "-", "-".join(names).casefold()).strip("-.") or "ducho"
            provenance = {"extractor": "import-ducho", "levels": list(levels)}
            present = np.ones(len(ids), bool)
            vectors.append(Vectors(modality, name, ids, matrix, present, provenance))
    if not vectors:
        raise DataError(f"{folder}: no .npy file below a folder of a modality, e.g. {EXAMPLE}")
    names = [f"{one.modality}/{one.name}" for one in vectors]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{folder}: two sets would be named {repeated}; use `mmx store import`")
    return Bundle(folder.resolve().name, {}, vectors=tuple(vectors))


def _modality(name: str) -> str | None:
    if _FUSED.search(name.casefold()):
        return "fused"
    return modality_of(name.casefold())
