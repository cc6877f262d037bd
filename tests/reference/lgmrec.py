"""LGMRec, plainly. Guo et al., AAAI 2024, 10.1609/aaai.v38i8.28688 (arXiv 2312.16400).

    Ahat = D^-1/2 A D^-1/2 with 1e-7 added to the degrees ;  R = the user-item block of A
    z = mean of x, Ahat x, ..., Ahat^L x ;  x = [Gu; Gi]
    per modality with raw features F:
        f = F W^T ;  c = Ahat^C [R f / (d_u + 1e-7); f]
        a = F V^T ;  b = R a
        Hi = mask softmax((a + noise) / t) / keep ;  Hu likewise of b
        e_0 = z[items] ;  N times: s = Hi^T e, e = Hi s ;  g = [Hu s; e]
    all = z + sum_m rn(c_m) + alpha rn(sum_m g_m)
    L = bpr of <all_u, all_i - all_j>
      + cl_weight sum over m < n of the cross entropies of g_m against g_n, of the batch's users
        among all users and of its positives among all items, summed over the batch, cosines over t
      + reg_weight / B (|all_users|_F + |all_positives|_F + |all_negatives|_F)

Scores are those without noise and without masks.

Choices:
    * Noise and masks are tables of whole tables by `users:<m>` and `items:<m>`, (U, K) and (I, K);
      1 = kept. The scale 1 / keep is applied here.
    * Any two modalities are contrasted, the earlier one with the later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, rn

PRESETS: dict[str, dict[str, Any]] = {"paper": {}}
DEFAULTS = {
    "embedding_dim": 64,
    "n_ui_layers": 2,
    "n_content_layers": 2,
    "n_hyper_layers": 1,
    "n_hyperedges": 4,
    "keep_rate": 0.5,
    "alpha": 0.3,
    "cl_weight": 1e-4,
    "reg_weight": 1e-6,
    "temperature": 0.2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {  # fewer hyperedges than columns
        "embedding_dim": 4,
        "n_hyperedges": 3,
        "cl_weight": 0.01,
        "reg_weight": 0.01,
    },
    "middle": {  # more of them, and deeper
        "embedding_dim": 6,
        "n_ui_layers": 3,
        "n_content_layers": 1,
        "n_hyper_layers": 3,
        "n_hyperedges": 8,
        "keep_rate": 0.7,
        "alpha": 0.5,
        "cl_weight": 0.003,
        "reg_weight": 0.02,
        "temperature": 0.5,
    },
}
GRADIENTS = {
    "paper": frozenset(
        {"user_embedding", "item_embedding"}
        | {f"{part}.{m}" for part in ("projection", "hyperedges") for m in ("visual", "textual")}
    )
}

Draws = Mapping[str, Mapping[str, Any]]
"""`noise` and `masks`, tables by name."""


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s = settings(case, preset)
    d, edges = s["embedding_dim"], s["n_hyperedges"]
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"projection.{m}"] = common.xavier_uniform(rng, d, width)
        params[f"hyperedges.{m}"] = common.xavier_uniform(rng, edges, width)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def draw(case: Case, preset: str, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Gumbel noise and masks of one step."""
    s = settings(case, preset)
    sizes = {
        f"{side}:{m}": (n, s["n_hyperedges"])
        for side, n in (("users", case.n_users), ("items", case.n_items))
        for m in case.modalities
    }
    return {
        "noise": {name: rng.gumbel(size=size) for name, size in sizes.items()},
        "masks": {name: 1.0 * (rng.random(size) < s["keep_rate"]) for name, size in sizes.items()},
    }


def representation(
    params: Parameters, case: Case, preset: str, draws: Draws | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """All vectors, (U + I, d), and g of each modality, (U + I, d)."""
    s, n = settings(case, preset), case.n_users
    a = common.adjacency(case)
    norm, r = common.symmetric_normalised(a), a[:n, n:]
    layers = [torch.cat([params["user_embedding"], params["item_embedding"]])]
    for _ in range(s["n_ui_layers"]):
        layers.append(norm @ layers[-1])
    z = torch.stack(layers).mean(0)

    def dependence(name: str, logits: Tensor) -> Tensor:
        if draws is None:
            return torch.softmax(logits / s["temperature"], 1)
        noise, mask = (torch.as_tensor(draws[key][name]) for key in ("noise", "masks"))
        return mask * torch.softmax((logits + noise) / s["temperature"], 1) / s["keep_rate"]

    everything, spread = z, {}
    for m in case.modalities:
        f = case.feature(m) @ params[f"projection.{m}"].T
        content = torch.cat([r @ f / (r.sum(1, keepdim=True) + 1e-7), f])
        for _ in range(s["n_content_layers"]):
            content = norm @ content
        everything = everything + rn(content)
        logits = case.feature(m) @ params[f"hyperedges.{m}"].T
        items, users = dependence(f"items:{m}", logits), dependence(f"users:{m}", r @ logits)
        e = z[n:]
        for _ in range(s["n_hyper_layers"]):
            gathered = items.T @ e
            e = items @ gathered
        spread[m] = torch.cat([users @ gathered, e])
    total = torch.stack(list(spread.values())).sum(0)
    return everything + s["alpha"] * rn(total), spread


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    vectors, _ = representation(params, case, preset, None)
    return vectors[: case.n_users] @ vectors[case.n_users :].T


def cross_entropy(x: Tensor, y: Tensor, rows: Any, temperature: float) -> Tensor:
    """Sum over the rows b of -log of the share of (b, b) among all (b, c)."""
    e = torch.exp(rn(x) @ rn(y).T / temperature)
    return torch.stack([-torch.log(e[b, b] / e[b].sum()) for b in rows]).sum()


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, draws: Draws
) -> dict[str, Tensor]:
    s, n, u = settings(case, preset), case.n_users, batch["users"]
    i, j = batch["pos"], batch["neg"]
    vectors, spread = representation(params, case, preset, draws)
    users, items = vectors[:n], vectors[n:]
    terms = {"bpr": common.bpr((users[u] * (items[i] - items[j])).sum(1))}
    if len(spread) > 1:
        contrasts = [
            cross_entropy(x[side], y[side], rows, s["temperature"])
            for x, y in combinations(spread.values(), 2)
            for side, rows in ((slice(None, n), u), (slice(n, None), i))
        ]
        terms["contrast"] = s["cl_weight"] * torch.stack(contrasts).sum()
    norms = users[u].norm() + items[i].norm() + items[j].norm()
    return {**terms, "reg": s["reg_weight"] / len(u) * norms}


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    draws: Sequence[Sequence[Draws]],
) -> dict[int, Parameters]:
    """`draws` is parallel to `epochs`: noise and masks of each batch."""
    steps = (
        (lambda now, batch=batch, one=one: loss_terms(now, case, preset, batch, draws=one), lr)
        for epoch, of_epoch in zip(epochs, draws, strict=True)
        for batch, one in zip(epoch, of_epoch, strict=True)
    )
    return common.adam(params, trainable(case, preset), steps, after)
