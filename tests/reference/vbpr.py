"""VBPR, plainly. He & McAuley, AAAI 2016, arXiv 1510.01784.

    X = [F_1 | F_2 | ...]                                      frozen
    e_i = X_i W^T + b ;  p_i = rn(e_i) ;  s(u,i) = <Gu_u, Gi_i> + <Tu_u, p_i>
    L = bpr(D) + l_w / (2 B_b) sum_b (|Gu_u|^2 + |Gi_i|^2 + |Gi_j|^2 + |Tu_u|^2 + |p_i|^2 + |p_j|^2)

`original` (the paper of 2016):
    s(u,i) = b_i + beta'^T f_i + <Gu_u, Gi_i> + <Tu_u, E f_i>
    L = sum_b sp(-D_b) + lambda_w/2 (|Gu_u|^2 + |Gi_i|^2 + |Gi_j|^2 + |Tu_u|^2)
        + lambda_b/2 |b_i|^2 + lambda_b/20 |b_j|^2 + lambda_e/2 (|E|^2 + |beta'|^2)

Choices:
    * D is clamped to [-80, 1e8] in `paper` and `corrected` only; beyond the clamp the gradient is
      zero.
    * `original` has no tensor `projection.bias`; `content_bias` has shape (sum of k_m,),
      `item_bias` (n_items,).
    * `original` initialises E (n_factors x K) and beta' (as a K x 1 matrix) with xu, and b_i with
      zeros.
    * The squares of `original` carry the factor 1/2 and are summed over the batch rows, duplicates
      counted; |E|^2 and
      |beta'|^2 enter once per batch.
    * lambda_w, lambda_b and lambda_e default to 0.01, 0.01 and 0; l_w is not read by `original`.
    * Tu has as many factors as Gu.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, rn, softplus, sum_of_squares

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "init_theta": "normal",
        "normalise": True,
        "biases": False,
        "reduction": "mean",
        "clamp": True,
    },
    "original": {
        "init_theta": "xavier",
        "normalise": False,
        "biases": True,
        "reduction": "sum",
        "clamp": False,
    },
    "corrected": {
        "init_theta": "xavier",
        "normalise": True,
        "biases": False,
        "reduction": "mean",
        "clamp": True,
    },
}
DEFAULTS = {"factors": 64, "l_w": 0.1, "lambda_w": 0.01, "lambda_b": 0.01, "lambda_e": 0.0}

_SHARED = {"user_factors", "item_factors", "user_content_factors", "projection.weight"}
GRADIENTS = {
    "paper": frozenset(_SHARED | {"projection.bias"}),
    "original": frozenset(_SHARED | {"item_bias", "content_bias"}),
    "corrected": frozenset(_SHARED | {"projection.bias"}),
}


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s, d = settings(case, preset), settings(case, preset)["factors"]
    width = content(case).shape[1]
    theta = common.standard_normal if s["init_theta"] == "normal" else common.xavier_uniform
    params = {
        "user_factors": common.xavier_uniform(rng, case.n_users, d),
        "item_factors": common.xavier_uniform(rng, case.n_items, d),
        "user_content_factors": theta(rng, case.n_users, d),
    }
    if s["biases"]:
        params["projection.weight"] = common.xavier_uniform(rng, d, width)
        params["item_bias"] = torch.zeros(case.n_items, dtype=torch.float64)
        params["content_bias"] = common.xavier_uniform(rng, width, 1)[:, 0]
    else:
        params["projection.weight"] = common.linear_weight(rng, d, width)
        params["projection.bias"] = common.linear_bias(rng, d, width)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return sorted(GRADIENTS[preset])


def content(case: Case) -> Tensor:
    """X: the features side by side, (n_items, sum of k_m)."""
    return torch.cat([case.feature(m) for m in case.modalities], dim=1)


def projected(params: Parameters, case: Case, preset: str) -> Tensor:
    """p: projected content of every item, (n_items, d)."""
    e = linear(content(case), params, "projection")
    return rn(e) if settings(case, preset)["normalise"] else e


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    p = projected(params, case, preset)
    s = params["user_factors"] @ params["item_factors"].T + params["user_content_factors"] @ p.T
    if settings(case, preset)["biases"]:
        s = s + (params["item_bias"] + content(case) @ params["content_bias"])[None, :]
    return s


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    s = settings(case, preset)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    all_scores = scores(params, case, preset)
    d = all_scores[u, i] - all_scores[u, j]
    if s["clamp"]:
        d = d.clamp(-80.0, 1e8)
    gu, gi, tu = params["user_factors"], params["item_factors"], params["user_content_factors"]
    if s["reduction"] == "mean":
        p = projected(params, case, preset)
        squares = sum_of_squares(gu[u], gi[i], gi[j], tu[u], p[i], p[j])
        return {"bpr": common.bpr(d), "l2": s["l_w"] / (2 * len(u)) * squares}
    b = params["item_bias"]
    l2 = (
        s["lambda_w"] / 2 * sum_of_squares(gu[u], gi[i], gi[j], tu[u])
        + s["lambda_b"] / 2 * sum_of_squares(b[i])
        + s["lambda_b"] / 20 * sum_of_squares(b[j])
        + s["lambda_e"] / 2 * sum_of_squares(params["projection.weight"], params["content_bias"])
    )
    return {"bpr": softplus(-d).sum(), "l2": l2}


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
