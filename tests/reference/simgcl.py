"""SimGCL, plainly. Yu et al., SIGIR 2022 (arXiv 2112.08679).

    h_0 = x = [Gu; Gi] ;  h_k = A h_{k-1} ;  z = (h_1 + ... + h_L) / L          A: D^-1/2 A D^-1/2
    view: h'_k = A h'_{k-1} + eps sign(A h'_{k-1}) u / |u|, row by row
    L = bpr + cl (C(users) + C(positives)) + penalty, C over the distinct ones of the batch

Choices:
    * The noise u is given: for each step one matrix for each view and layer. Where every node has
      a row, row r is node r's; that of the last layer has a row for each distinct user, then for
      each distinct positive, in ascending order.
    * Noise is a constant: the sign has no derivative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"norms": False},
    "original": {"norms": True},
    "corrected": {"norms": False},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"factors": 4, "n_layers": 1, "cl": 0.3, "eps": 0.2, "tau": 0.4, "l_w": 0.02},
    "middle": {"factors": 8, "n_layers": 3, "cl": 0.5, "eps": 0.1, "tau": 0.2, "l_w": 0.01},
}
GRADIENTS = dict.fromkeys(PRESETS, frozenset({"user_embedding", "item_embedding"}))
Noise = dict[tuple[int, int], np.ndarray]  # by view and layer


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = case.config["factors"]
    return {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }


def trainable(case: Case, preset: str) -> list[str]:
    return ["user_embedding", "item_embedding"]


def contrasted_nodes(case: Case, batch: Batch) -> np.ndarray:
    """Distinct users, then distinct positives as nodes."""
    return np.concatenate([np.unique(batch["users"]), np.unique(batch["pos"]) + case.n_users])


def draw(case: Case, batch: Batch, rng: np.random.Generator) -> Noise:
    """The noise of one step."""
    n_nodes, n_layers = case.n_users + case.n_items, case.config["n_layers"]
    rows = {k: n_nodes for k in range(1, n_layers)}
    rows[n_layers] = len(contrasted_nodes(case, batch))
    return {
        (view, k): rng.random((rows[k], case.config["factors"]))
        for view in (0, 1)
        for k in range(1, n_layers + 1)
    }


def graph(case: Case) -> Tensor:
    a = common.adjacency(case)
    d = a.sum(1)
    return a / torch.sqrt(d[:, None] * d[None, :])


def representation(params: Parameters, case: Case) -> Tensor:
    """z of users, then items."""
    a, h = graph(case), torch.cat([params["user_embedding"], params["item_embedding"]])
    layers = []
    for _ in range(case.config["n_layers"]):
        h = a @ h
        layers.append(h)
    return torch.stack(layers).mean(0)


def view(params: Parameters, case: Case, batch: Batch, noise: Noise, number: int) -> Tensor:
    """z' at the contrasted nodes."""
    a, h = graph(case), torch.cat([params["user_embedding"], params["item_embedding"]])
    n_layers, layers, nodes = case.config["n_layers"], [], contrasted_nodes(case, batch)
    for k in range(1, n_layers + 1):
        h = a @ h
        u = torch.zeros_like(h)  # elsewhere the last layer is not looked at
        given = torch.from_numpy(noise[number, k])
        u[torch.arange(len(h)) if k < n_layers else torch.from_numpy(nodes)] = given
        h = h + case.config["eps"] * torch.sign(h.detach()) * common.rn(u)
        layers.append(h)
    return torch.stack(layers).mean(0)[nodes]


def contrast(a: Tensor, b: Tensor, tau: float) -> Tensor:
    e = torch.exp(common.rn(a) @ common.rn(b).T / tau)
    return -torch.log(torch.diagonal(e) / e.sum(1)).mean()


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z = representation(params, case)
    return z[: case.n_users] @ z[case.n_users :].T


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, noise: Noise
) -> dict[str, Tensor]:
    """Terms of one batch with the step's noise."""
    c = case.config
    u, i, j = batch["users"], batch["pos"] + case.n_users, batch["neg"] + case.n_users
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    z = representation(params, case)
    n = len(np.unique(u))
    first, second = (view(params, case, batch, noise, number) for number in (0, 1))
    both = contrast(first[:n], second[:n], c["tau"]) + contrast(first[n:], second[n:], c["tau"])
    if PRESETS[preset]["norms"]:
        l2 = c["l_w"] * (torch.sqrt((z[u] ** 2).sum()) + torch.sqrt((z[i] ** 2).sum()))
    else:
        l2 = c["l_w"] / (2 * len(u)) * common.sum_of_squares(x[u], x[i], x[j])
    return {"bpr": common.bpr((z[u] * (z[i] - z[j])).sum(1)), "contrast": c["cl"] * both, "l2": l2}


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    noise: Sequence[Sequence[Noise]],
) -> dict[int, Parameters]:
    """`noise` is parallel to the batches of `epochs`."""
    steps = (
        (lambda now, batch=batch, own=own: loss_terms(now, case, preset, batch, noise=own), lr)
        for epoch, drawn in zip(epochs, noise, strict=True)
        for batch, own in zip(epoch, drawn, strict=True)
    )
    return common.adam(params, trainable(case, preset), steps, after)
