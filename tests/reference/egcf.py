"""EGCF, plainly. Anelli et al., DL4SR at CIKM 2022, https://ceur-ws.org/Vol-3317/Paper7.pdf.

    x_(l+1) = D^-1/2 A D^-1/2 x_l
    w_ui    = sigmoid(cos(y_l,u * p_ui, y_l,i * p_ui)),  p_ui = W e_ui + b
    y_(l+1) = D^-1/2 (A * w + I) D^-1/2 y_l                      D: degrees of A, without loops
    x, y    = sum_l x_l / (l + 1), y_l / (l + 1)
    s(u, i) = <x_u, x_i> + <y_u, y_i>
    L       = sum of -log sigmoid(s(u, i) - s(u, j)) + l_w * (|x_0,U| + |x_0,I| + |y_0,U| + |y_0,I|)

`original`: the k-th entry of A by item, then user, has the weight of the k-th pair by user, then
item; the entries by user have their own.

Choices:
    * e_ui is the concatenation of the modalities' vectors of a pair.
    * A case has vectors of items alone; those of its pairs are drawn here, see `reviews`: the first
      pair's are zeros.
    * The score's difference is not clamped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters

PRESETS: dict[str, dict[str, Any]] = {"paper": {"aligned": True}, "original": {"aligned": False}}
DEFAULTS = {"factors": 64, "n_layers": 2, "l_w": 0.01}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"factors": 4, "n_layers": 1, "l_w": 0.05},
    "middle": {"factors": 8, "n_layers": 3, "l_w": 0.01},
}
TABLES = ("user_embedding", "item_embedding", "user_review_embedding", "item_review_embedding")


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def reviews(case: Case) -> dict[str, Tensor]:
    """Vectors of the train pairs by modality, (n_edges, k_m), of the widths of the items'."""
    rng = np.random.default_rng(31)
    found = {}
    for m in case.modalities:
        rows = rng.normal(size=(case.n_edges, case.features[m].shape[1])).astype(np.float32)
        rows[0] = 0
        found[m] = torch.tensor(rows, dtype=torch.float64)
    return found


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = settings(case, preset)["factors"]
    width = sum(case.features[m].shape[1] for m in case.modalities)
    rows = {"user": case.n_users, "item": case.n_items}
    params = {name: common.xavier_normal(rng, rows[name.partition("_")[0]], d) for name in TABLES}
    params["projection.weight"] = common.linear_weight(rng, d, width)
    params["projection.bias"] = common.linear_bias(rng, d, width)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def edge_weights(y: Tensor, p: Tensor, case: Case) -> Tensor:
    """The weight of each train pair, (n_edges,)."""
    a, b = y[case.train_users] * p, y[case.n_users + case.train_items] * p
    norms = a.norm(dim=1).clamp_min(1e-8) * b.norm(dim=1).clamp_min(1e-8)
    return 1 / (1 + torch.exp(-(a * b).sum(1) / norms))


def weighted_adjacency(w: Tensor, case: Case, preset: str) -> Tensor:
    """A * w, dense."""
    n = case.n_users + case.n_items
    by_item = sorted(range(case.n_edges), key=lambda e: (case.train_items[e], case.train_users[e]))
    users = torch.tensor(case.train_users)
    items = torch.tensor(case.n_users + case.train_items)
    other = w[by_item] if settings(case, preset)["aligned"] else w
    # The second direction in the order of items.
    places = torch.cat([users, items[by_item]]), torch.cat([items, users[by_item]])
    return torch.zeros((n, n), dtype=torch.float64).index_put(places, torch.cat([w, other]))


def representation(params: Parameters, case: Case, preset: str) -> tuple[Tensor, Tensor]:
    """[x | y] of the users and of the items."""
    s = settings(case, preset)
    a = common.adjacency(case)
    root = a.sum(1) ** -0.5
    e = torch.cat(list(reviews(case).values()), 1)
    p = common.linear(e, params, "projection")
    x, y = (torch.cat([params[u], params[i]]) for u, i in (TABLES[:2], TABLES[2:]))
    sums = [x, y]
    for layer in range(1, s["n_layers"] + 1):
        x = (root[:, None] * a * root[None, :]) @ x
        w = weighted_adjacency(edge_weights(y, p, case), case, preset)
        y = (root[:, None] * (w + torch.eye(len(w), dtype=torch.float64)) * root[None, :]) @ y
        sums = [sums[0] + x / (layer + 1), sums[1] + y / (layer + 1)]
    z = torch.cat(sums, 1)
    return z[: case.n_users], z[case.n_users :]


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    users, items = representation(params, case, preset)
    return users @ items.T


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    users, items = representation(params, case, preset)
    difference = (users[u] * (items[i] - items[j])).sum(1)
    norms = [(params[name] ** 2).sum().sqrt() for name in TABLES]
    return {
        "bpr": common.softplus(-difference).sum(),
        "norm": settings(case, preset)["l_w"] * torch.stack(norms).sum(),
    }


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
) -> dict[int, Parameters]:
    steps = (
        (lambda now, batch=batch: loss_terms(now, case, preset, batch), lr)
        for epoch in epochs
        for batch in epoch
    )
    return common.adam(params, trainable(case, preset), steps, after)


GRADIENTS = {
    preset: frozenset((*TABLES, "projection.weight", "projection.bias")) for preset in PRESETS
}
