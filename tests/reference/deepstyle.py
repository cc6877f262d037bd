"""DeepStyle, plainly. Liu, Wu & Wang, SIGIR 2017, 10.1145/3077136.3080658.

    q_i = W [F_1 | F_2 | ...]_i - l_c(i) + Gi_i ;  s(u, i) = <Gu_u, q_i>
    L = bpr + l_w / (2 B) sum_b (|Gu_u|^2 + |Gi_i|^2 + |Gi_j|^2 + |l_c(i)|^2 + |l_c(j)|^2)
        + l_e / 2 |W|^2

Choices:
    * c(i) is i mod `n_categories` of the case.
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
    "small": {"factors": 4, "n_categories": 3, "l_w": 0.05, "l_e": 0.0},
    "middle": {"factors": 8, "n_categories": 7, "l_w": 0.01, "l_e": 0.02},
}
GRADIENTS = dict.fromkeys(
    PRESETS, frozenset({"user_factors", "item_factors", "style", "projection.weight"})
)


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d, width = case.config["factors"], sum(x.shape[1] for x in case.features.values())
    return {
        "user_factors": common.xavier_uniform(rng, case.n_users, d),
        "item_factors": common.xavier_uniform(rng, case.n_items, d),
        "style": common.xavier_uniform(rng, case.config["n_categories"], d),
        "projection.weight": common.linear_weight(rng, d, width),
    }


def trainable(case: Case, preset: str) -> list[str]:
    return ["user_factors", "item_factors", "style", "projection.weight"]


def categories(case: Case) -> Tensor:
    return torch.arange(case.n_items) % case.config["n_categories"]


def items(params: Parameters, case: Case) -> Tensor:
    x = torch.cat([case.feature(m) for m in case.modalities], 1)
    return (
        x @ params["projection.weight"].T
        - params["style"][categories(case)]
        + params["item_factors"]
    )


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    return params["user_factors"] @ items(params, case).T


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    user, q, c = params["user_factors"][u], items(params, case), categories(case)
    own = [
        user,
        *(params["item_factors"][x] for x in (i, j)),
        *(params["style"][c[x]] for x in (i, j)),
    ]
    l2 = case.config["l_w"] / (2 * len(u)) * common.sum_of_squares(*own)
    l2 = l2 + case.config["l_e"] / 2 * common.sum_of_squares(params["projection.weight"])
    return {"bpr": common.bpr((user * (q[i] - q[j])).sum(1)), "l2": l2}


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
