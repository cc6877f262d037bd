"""What the references of MGCN and SMORE share, plainly: the item graphs, both views, the loss.

    S_m: row i has the cosines of its k nearest items by the raw features, itself included; every
        entry divided by sqrt(s_i s_j), s the row sums of the cosines
    A^ = D^-1/2 A D^-1/2, no epsilon ;  R its block of user rows and item columns
    z = mean of x0, A^ x0, ..., A^^L x0, x0 = [Gu; Gi]
    view of a filter F (I, d):  items h = S^n (Gi * F), users R h
    e = z + side
    L = bpr(<e_u, e_i - e_j>) + reg_weight / 2 (|e_u|^2 + |e_i|^2 + |e_j|^2 summed) / batch_size
      + cl_loss [nce(side_u, z_u) + nce(side_i, z_i)], rows as often as the batch has them
    nce(x, y) = mean_b -log(exp(cos(x_b, y_b) / tau) / sum_c exp(cos(x_b, y_c) / tau))

Choices:
    * `batch_size` is a hyper-parameter: the norms of a smaller last batch are divided by it too.
    * A row sum that is not positive makes its row and column of S zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters


def item_graph(case: Case, modality: str, k: int) -> Tensor:
    """S_m, (I, I)."""
    c = common.cosines(case.feature(modality))
    graph = torch.zeros_like(c)
    for i, neighbours in enumerate(common.nearest(c, k)):
        for j in neighbours:
            graph[i, j] = c[i, j]
    sums = graph.sum(1)
    scale = torch.tensor([float(s) ** -0.5 if s > 0 else 0.0 for s in sums], dtype=torch.float64)
    return graph * scale[:, None] * scale[None, :]


def adjacency(case: Case) -> Tensor:
    """A^, (U + I, U + I)."""
    a = common.adjacency(case)
    d = a.sum(1)
    scale = torch.where(d > 0, d.clamp_min(1e-300) ** -0.5, torch.zeros_like(d))
    return a * scale[:, None] * scale[None, :]


def behaviour(params: Parameters, case: Case, n_layers: int) -> Tensor:
    """z, (U + I, d)."""
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    layers, a = [x], adjacency(case)
    for _ in range(n_layers):
        layers.append(a @ layers[-1])
    return torch.stack(layers).mean(0)


def view(params: Parameters, case: Case, graph: Tensor, kept: Tensor, n_layers: int) -> Tensor:
    """h of users, then items, (U + I, d), for a filter (I, d)."""
    h = params["item_embedding"] * kept
    for _ in range(n_layers):
        h = graph @ h
    return torch.cat([adjacency(case)[: case.n_users, case.n_users :] @ h, h])


def gate(x: Tensor, params: Parameters, name: str) -> Tensor:
    return torch.sigmoid(common.linear(x, params, name))


def nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    similar = torch.exp(common.rn(x) @ common.rn(y).T / temperature)
    return -torch.log(similar.diagonal() / similar.sum(1)).sum() / len(x)


def loss_terms(
    z: Tensor, side: Tensor, case: Case, s: dict[str, Any], batch: Batch
) -> dict[str, Tensor]:
    """Terms of one batch from z and side of all nodes."""
    u, i, j = (
        torch.as_tensor(np.asarray(batch[name]) + shift)
        for name, shift in (("users", 0), ("pos", case.n_users), ("neg", case.n_users))
    )
    e = z + side
    norms = common.sum_of_squares(e[u], e[i], e[j]) / 2
    return {
        "bpr": common.bpr((e[u] * (e[i] - e[j])).sum(1)),
        "l2": s["reg_weight"] * norms / s["batch_size"],
        "user_contrast": s["cl_loss"] * nce(side[u], z[u], s["temperature"]),
        "item_contrast": s["cl_loss"] * nce(side[i], z[i], s["temperature"]),
    }


def parameters(case: Case, d: int, rng: np.random.Generator) -> Parameters:
    """Those that both models have."""
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"features.{m}"] = case.feature(m)
        params[f"projection.{m}.weight"] = common.linear_weight(rng, d, width)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, d, width)
        add_linear(params, f"gate.{m}", d, rng)
    return params


def add_linear(params: Parameters, name: str, d: int, rng: np.random.Generator) -> None:
    params[f"{name}.weight"] = common.linear_weight(rng, d, d)
    params[f"{name}.bias"] = common.linear_bias(rng, d, d)
