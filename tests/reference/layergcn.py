"""LayerGCN, plainly. Zhou, Lin, Liu & Miao, ICDE 2023 (arXiv 2207.11088).

    A'  the epoch's edges, normalised with their own degrees, 1 / sqrt((d_u + 1e-7) (d_i + 1e-7))
    y_0 = x0 = [Gu; Gi] ;  h_k = A' y_{k-1} ;  y_k = cos(h_k, x0) h_k ;  z = y_1 + ... + y_L
    L   = sum of softplus(-<z_u, z_i - z_j>) + l_w / 2 sum of the squares of the batch's rows of x0
Inference: the full graph in place of the pruned one.

Choices:
    * A cosine divides by max(norm, 1e-8) of either vector, as torch's cosine_similarity.
    * `paper` draws every epoch's edges by their degrees, `original` every second epoch's uniformly;
      the golden tests inject the edges, so that the loss of both is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "original": {}, "corrected": {}}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"factors": 4, "n_layers": 3, "drop": 0.4, "l_w": 0.05},
    "middle": {"factors": 8, "n_layers": 4, "drop": 0.2, "l_w": 0.01},
}
GRADIENTS = dict.fromkeys(PRESETS, frozenset({"user_embedding", "item_embedding"}))


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = case.config["factors"]
    return {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }


def trainable(case: Case, preset: str) -> list[str]:
    return ["user_embedding", "item_embedding"]


def n_kept(case: Case) -> int:
    """Edges of an epoch's graph."""
    return int(case.n_edges * (1.0 - case.config["drop"]))


def representation(params: Parameters, case: Case, kept: np.ndarray | None = None) -> Tensor:
    """z of users, then items, on the given edges (default: all)."""
    a = common.symmetric_normalised(common.adjacency(case, kept))
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    y, total = x, torch.zeros_like(x)
    for _ in range(case.config["n_layers"]):
        h = a @ y
        bounded = h.norm(dim=1).clamp_min(1e-8) * x.norm(dim=1).clamp_min(1e-8)
        y = ((h * x).sum(1) / bounded)[:, None] * h
        total = total + y
    return total


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z = representation(params, case)
    return z[: case.n_users] @ z[case.n_users :].T


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, kept: np.ndarray
) -> dict[str, Tensor]:
    """Terms of one batch on the epoch's graph `kept`."""
    u, i, j = batch["users"], batch["pos"] + case.n_users, batch["neg"] + case.n_users
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    z = representation(params, case, kept)
    return {
        "bpr": common.softplus(-(z[u] * (z[i] - z[j])).sum(1)).sum(),
        "l2": case.config["l_w"] / 2 * common.sum_of_squares(x[u], x[i], x[j]),
    }


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    kept: Sequence[np.ndarray],
) -> dict[int, Parameters]:
    """`kept` is parallel to `epochs`: one set of edges per epoch."""
    steps = (
        (lambda now, batch=batch, edges=edges: loss_terms(now, case, preset, batch, kept=edges), lr)
        for epoch, edges in zip(epochs, kept, strict=True)
        for batch in epoch
    )
    return common.adam(params, trainable(case, preset), steps, after)
