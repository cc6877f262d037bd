"""FREEDOM, plainly. Zhou & Shen, ACM MM 2023, 10.1145/3581783.3611943 (arXiv 2211.06924).

    S_m: row i has 1 / (k + 1e-7) on each of the k nearest items by cosine of the raw features,
        itself included
    S = sum_m mw_m S_m                                          frozen
    per epoch: floor(E (1.0 - drop)) edges, drawn without replacement with probability prop. to (d_u
    d_i)^-1/2
    Ap: those edges, normalised with their own degrees, 1 / sqrt((d'_u + 1e-7) (d'_i + 1e-7))
    z = mean of x0, Ap x0, ..., x0 = [Gu; Gi] ;  user z_u ;  item q_i = z_i + (S^{n_layers} Gi)_i
    L = bpr(<z_u, q_i - q_j>) + l_w sum_m bpr(<z_u, g_{m,i} - g_{m,j}>),   g_m = Fhat_m W_m^T + b_m
Inference: the full graph in place of the pruned one.

The three presets are one model.

Choices:
    * The bias b_m cancels in g_{m,i} - g_{m,j}: its gradient is identically zero, so it is not in
      GRADIENTS but in
      ZERO_GRADIENTS. It stays a parameter and keeps its initial value up to rounding.
    * `mw` is one weight per modality, in the order of the modalities.
    * Kept edges are indices into the sorted train edges; their order has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "original": {}, "corrected": {}}
DEFAULTS = {
    "factors": 64,
    "n_layers": 1,
    "n_ui_layers": 2,
    "top_k": 10,
    "mw": (0.1, 0.9),
    "drop": 0.8,
    "l_w": 0.01,
}

_ALL = frozenset(
    {"user_embedding", "item_embedding"}
    | {f"{n}.{m}" for m in ("visual", "textual") for n in ("features",)}
    | {f"projection.{m}.weight" for m in ("visual", "textual")}
)
GRADIENTS = {"paper": _ALL, "original": _ALL, "corrected": _ALL}
ZERO_GRADIENTS = frozenset({"projection.visual.bias", "projection.textual.bias"})


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = settings(case, preset)["factors"]
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"features.{m}"] = case.feature(m)
        params[f"projection.{m}.weight"] = common.linear_weight(rng, d, width)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, d, width)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def item_graph(case: Case, preset: str) -> Tensor:
    """S, (I, I), from the raw features; rows sum to k / (k + 1e-7) times the sum of `mw`."""
    s = settings(case, preset)
    graph = torch.zeros((case.n_items, case.n_items), dtype=torch.float64)
    for weight, m in zip(s["mw"], case.modalities, strict=True):
        for i, neighbours in enumerate(common.nearest(common.cosines(case.feature(m)), s["top_k"])):
            for j in neighbours:
                graph[i, j] += weight / (s["top_k"] + 1e-7)
    return graph


def n_kept(case: Case, preset: str) -> int:
    """Edges of an epoch's graph."""
    return floor(case.n_edges * (1.0 - settings(case, preset)["drop"]))


def edge_weights(case: Case) -> np.ndarray:
    """(d_u d_i)^-1/2 for every train edge: the law of the draw, up to a factor."""
    d_u = np.bincount(case.train_users, minlength=case.n_users)
    d_i = np.bincount(case.train_items, minlength=case.n_items)
    return np.asarray((d_u[case.train_users] * d_i[case.train_items]) ** -0.5)


def draw_kept(case: Case, preset: str, rng: np.random.Generator) -> np.ndarray:
    """The edges of one epoch, drawn one after the other."""
    left, weights, kept = list(range(case.n_edges)), edge_weights(case), []
    for _ in range(n_kept(case, preset)):
        w = weights[left]
        kept.append(left.pop(int(rng.choice(len(left), p=w / w.sum()))))
    return np.sort(np.array(kept, dtype=np.int64))


def representation(
    params: Parameters, case: Case, preset: str, kept: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """z of the users (U, d) and q of the items (I, d) on the given edges (default: all)."""
    s = settings(case, preset)
    a = common.symmetric_normalised(common.adjacency(case, kept))
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    layers = [x]
    for _ in range(s["n_ui_layers"]):
        x = a @ x
        layers.append(x)
    z = torch.stack(layers).mean(0)
    h, graph = params["item_embedding"], item_graph(case, preset)
    for _ in range(s["n_layers"]):
        h = graph @ h
    return z[: case.n_users], z[case.n_users :] + h


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z, q = representation(params, case, preset)
    return z @ q.T


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, kept: np.ndarray
) -> dict[str, Tensor]:
    """Terms of one batch on the epoch's graph `kept`."""
    s = settings(case, preset)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    z, q = representation(params, case, preset, kept)
    terms = {"bpr": common.bpr((z[u] * (q[i] - q[j])).sum(1))}
    for m in case.modalities:
        g = linear(params[f"features.{m}"], params, f"projection.{m}")
        terms[f"bpr_{m}"] = s["l_w"] * common.bpr((z[u] * (g[i] - g[j])).sum(1))
    return terms


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
