"""Approximate nearest neighbours by cosine through faiss (extra `ann`), and their recall.

Exact search compares every row with every other. Here rows are put into about 4 sqrt(n) cells by
k-means, and each row is compared with those of the nearest 1/64 of the cells: an inverted file.
Who is found gets the cosine of exact search; who isn't is missing, and `recall` says how many are.

Source: Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search (TPAMI 2011), section
4.1, without the quantization; Douze et al.: The Faiss library, arXiv 2401.08281.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmbase.errors import install_extra
from mmbench.errors import UsageError
from mmbench.ops.knn import MARGIN, by_cosine, cosine_knn, exact_cosines, squared_norms, unit_rows

VERSION = "faiss-ivf 1"
"""Changes whenever the same faiss may give other neighbours for the same vectors."""
EXACT_BELOW = 20_000  # rows; exact search takes some seconds there
SAMPLE = 1_000  # rows whose exact neighbours are looked up
_CELLS, _PROBED = 4, 64  # cells per root of the rows; one of so many cells is looked into
_PER_CELL = 40  # rows that k-means sees of each cell, on average


def faiss() -> Any:
    """The library.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import faiss as library
    except ImportError as error:
        raise UsageError(
            f"--approximate ann: faiss is not installed; {install_extra('ann')}, or search exactly"
        ) from error
    return library


def approximate_knn(
    features: Tensor, k: int, *, exact_below: int = EXACT_BELOW
) -> tuple[Tensor, Tensor]:
    """As `cosine_knn`, with some neighbours missed: the next nearest that were found follow.

    Args:
        features: Shape (n, d), finite; n >= k.
        k: Neighbours of each row, itself included, which is never missed.
        exact_below: Fewer rows are searched exactly.

    Raises:
        UsageError: faiss is not installed.
        ShapeError: There are fewer than k rows, or not a matrix.
        DataError: A feature is NaN or infinite.
    """
    library, n = faiss(), len(features)
    if n < max(exact_below, k) or not torch.isfinite(features).all():
        return cosine_knn(features, k)  # which says what is wrong with features
    x = features.detach().cpu().contiguous()
    squares = squared_norms(x)
    unit, wanted = unit_rows(x, squares).float().numpy(), min(n, k + MARGIN)
    cells = _cells(n)
    library.omp_set_num_threads(torch.get_num_threads())
    quantizer = library.IndexFlatIP(unit.shape[1])
    index = library.IndexIVFFlat(quantizer, unit.shape[1], cells, library.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # small data in tests: nothing to warn of
    index.nprobe = -(-cells // _PROBED)
    index.train(unit[_some(n, _PER_CELL * cells)])
    index.add(unit)
    found = np.empty((n, wanted), np.int64)
    for start in range(0, n, 1 << 14):  # bounds what is needed beside the result
        part = slice(start, start + (1 << 14))
        found[part] = index.search(unit[part], wanted)[1]
    few = (found < 0).any(1)  # the cells looked into hold too few rows
    if few.any():
        found[few] = _exactly(library, unit, few, wanted)
    own = np.arange(n)
    lost = ~(found == own[:, None]).any(1)  # among copies of itself, or zero
    found[lost, -1] = own[lost]
    near = torch.from_numpy(found)
    indices, cosines = by_cosine(near, exact_cosines(x, squares, near).to(x.dtype), k)
    return indices.to(features.device), cosines.to(features.device)


def recall(features: Tensor, neighbours: Tensor) -> dict[str, Any]:
    """How many of the exact neighbours are on the lists (n, k): for `run.json`.

    Returns:
        `recall`, in [0, 1], over `sample` rows, drawn alike for all data of one size; `k`, `cells`
        and how many are `probed`, 0 for exact search; the version of `faiss`.
    """
    library, (n, k) = faiss(), neighbours.shape
    x = features.detach().cpu().contiguous()
    unit, rows = unit_rows(x, squared_norms(x)).float().numpy(), _some(n, SAMPLE)
    exact = _exactly(library, unit, rows, k)
    lists = neighbours.cpu().numpy()[rows]
    hits = (lists[:, :, None] == exact[:, None, :]).any(2).sum()
    cells = _cells(n) if n >= EXACT_BELOW else 0
    return {
        "k": k,
        "recall": float(hits) / exact.size,
        "sample": len(rows),
        "cells": cells,
        "probed": -(-cells // _PROBED),
        "faiss": library.__version__,
    }


def _cells(n: int) -> int:
    return max(1, int(_CELLS * math.sqrt(n)))


def _some(n: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows at random, ascending, the same in every run."""
    return np.sort(np.random.default_rng(n).permutation(n)[:size])


def _exactly(library: Any, unit: Any, rows: Any, k: int) -> Any:
    """The k best of some rows by brute force, in faiss's blocks."""
    return library.knn(unit[rows], unit, k, metric=library.METRIC_INNER_PRODUCT)[1]
