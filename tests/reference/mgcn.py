"""MGCN, plainly. Yu et al., ACM MM 2023, 10.1145/3581783.3613915 (arXiv 2308.03588).

    g_m = Fhat_m W_m^T + b_m ;  h_m = view of the filter sigmoid(gate_m(g_m)), see `contrast`
    a = softmax over m of q . tanh(asking(h_m)) ;  c = sum_m a_m h_m
    side = (sum_m sigmoid(preference_m(z)) * (h_m - c) + c) / (M + 1)

Choices:
    * With one modality preferences, query and asking have a gradient of zero: they are there, and
      stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common, contrast
from .common import Batch, Case, Parameters, linear

PRESETS: dict[str, dict[str, Any]] = {"paper": {}}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {
        "factors": 4, "n_ui_layers": 2, "n_layers": 1, "knn_k": 3, "cl_loss": 0.1,
        "reg_weight": 0.01, "temperature": 0.2, "batch_size": 8,
    },
    "middle": {
        "factors": 8, "n_ui_layers": 3, "n_layers": 2, "knn_k": 5, "cl_loss": 0.03,
        "reg_weight": 0.001, "temperature": 0.5, "batch_size": 16,
    },
}  # fmt: skip
GRADIENTS = {
    "paper": frozenset(
        {"user_embedding", "item_embedding", "common.query"}
        | {f"common.asking.{n}" for n in ("weight", "bias")}
        | {f"features.{m}" for m in ("visual", "textual")}
        | {
            f"{part}.{m}.{n}"
            for part in ("projection", "gate", "preference")
            for m in ("visual", "textual")
            for n in ("weight", "bias")
        }
    )
}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = case.config["factors"]
    params = contrast.parameters(case, d, rng)
    contrast.add_linear(params, "common.asking", d, rng)
    params["common.query"] = common.linear_weight(rng, 1, d)
    for m in case.modalities:
        contrast.add_linear(params, f"preference.{m}", d, rng)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def representation(params: Parameters, case: Case, preset: str) -> tuple[Tensor, Tensor]:
    """z and side of users, then items, (U + I, d) each."""
    s = case.config
    z = contrast.behaviour(params, case, s["n_ui_layers"])
    views = []
    for m in case.modalities:
        kept = contrast.gate(
            linear(params[f"features.{m}"], params, f"projection.{m}"), params, f"gate.{m}"
        )
        graph = contrast.item_graph(case, m, s["knn_k"])
        views.append(contrast.view(params, case, graph, kept, s["n_layers"]))
    logits = [
        torch.tanh(linear(h, params, "common.asking")) @ params["common.query"].T for h in views
    ]
    a = torch.softmax(torch.cat(logits, 1), 1)
    c = torch.stack([a[:, n : n + 1] * h for n, h in enumerate(views)]).sum(0)
    apart = [
        contrast.gate(z, params, f"preference.{m}") * (h - c)
        for m, h in zip(case.modalities, views, strict=True)
    ]
    return z, torch.stack([*apart, c]).sum(0) / (len(views) + 1)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    e = torch.stack(representation(params, case, preset)).sum(0)
    return e[: case.n_users] @ e[case.n_users :].T


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    return contrast.loss_terms(*representation(params, case, preset), case, case.config, batch)


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
) -> dict[int, Parameters]:
    """The rate of epoch e, from 0, is lr 0.96^(e / 50)."""
    steps = (
        (lambda now, batch=batch: loss_terms(now, case, preset, batch), lr * 0.96 ** (e / 50))
        for e, epoch in enumerate(epochs)
        for batch in epoch
    )
    return common.adam(params, trainable(case, preset), steps, after)
