"""DualGNN, plainly. Wang et al., IEEE TMM 2023, 10.1109/TMM.2021.3138298.

    A^ = D^-1/2 A D^-1/2                                              no self loops, no epsilon
    x_m = rn([P_m ; LR(F_m H_m^T + c_m) W_m^T + b_m]) ;  h_m = x_m + A^ x_m + ... + A^^L x_m
    y_u = sum_m w_u,m h_m,u                        preset `original`: y_u = w_u,1 sum_m h_m,u
                                                                     + sum_(m>1) w_u,m h_m,u
    N(u): the k users with the most common items, ties to the smaller row, nobody with none
    z_u = y_u + sum_v softmax_v(common items of u and v) y_v ;  q_i = sum_m h_m,i
    L = mean of -log2 sigmoid(<z_u, q_i - q_j>)
        + reg [ sum_m mean square of P_m,u over the batch + mean square of w ]

Choices:
    * `original` repeats users on lists of fewer than k until there are k; the softmax runs over the
      k places, so that a user counts as often. How often is given, (U, U) per epoch; inference
      counts every user of a list once.
    * With one modality y = h, and there is no w.
    * MMRec's and the authors' weights of items stand in the penalty alone: left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, leaky_relu, linear, rn, sum_of_squares

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"fill_up": False, "first_is_sum": False},
    "original": {"fill_up": True, "first_is_sum": True},
}
DEFAULTS = {
    "embedding_dim": 64, "n_layers": 2, "n_co_users": 40, "user_weighting": "softmax",
    "reg_weight": 0.1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"embedding_dim": 4, "n_layers": 2, "n_co_users": 5, "reg_weight": 0.1},
    "middle": {"embedding_dim": 8, "n_layers": 3, "n_co_users": 30, "reg_weight": 0.01},
}


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = settings(case, preset)["embedding_dim"]
    params = {}
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"preference.{m}"] = common.xavier_normal(rng, case.n_users, d)
        params[f"hidden.{m}.weight"] = common.linear_weight(rng, 4 * d, width)
        params[f"hidden.{m}.bias"] = common.linear_bias(rng, 4 * d, width)
        params[f"projection.{m}.weight"] = common.linear_weight(rng, d, 4 * d)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, d, 4 * d)
    if len(case.modalities) > 1:
        w = common.xavier_normal(rng, case.n_users, len(case.modalities))
        params["user_weights"] = torch.exp(w) / torch.exp(w).sum(1, keepdim=True)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def common_items(case: Case) -> np.ndarray:
    """How many items two users share, (U, U); 0 of a user with itself."""
    counts = np.zeros((case.n_users, case.n_users), dtype=np.int64)
    for u, of_u in enumerate(case.positives):
        for v, of_v in enumerate(case.positives):
            counts[u, v] = len(of_u & of_v) * (u != v)
    return counts


def listed(case: Case, preset: str) -> list[list[int]]:
    """N(u) of each user, best first."""
    counts, k = common_items(case), settings(case, preset)["n_co_users"]
    everyone = range(case.n_users)
    lists = []
    for u in everyone:
        best = sorted(everyone, key=lambda v, u=u: (-counts[u, v], v))  # type: ignore[misc]
        lists.append([v for v in best if counts[u, v] > 0][:k])
    return lists


def draw_times(case: Case, preset: str, rng: np.random.Generator) -> np.ndarray:
    """How often a list that is filled up holds each user, (U, U): place by place."""
    times = np.zeros((case.n_users, case.n_users), dtype=np.int64)
    for u, places in enumerate(listed(case, preset)):
        while places and len(places) < settings(case, preset)["n_co_users"]:
            places.append(places[int(rng.integers(len(places)))])
        for v in places:
            times[u, v] += 1
    return times


def co_users(case: Case, preset: str, times: np.ndarray | None = None) -> Tensor:
    """a, (U, U); `times`: how often each user stands on each list, once if it is None."""
    s, counts = settings(case, preset), common_items(case)
    a = torch.zeros((case.n_users, case.n_users), dtype=torch.float64)
    for u, near in enumerate(listed(case, preset)):
        for v in near:
            weight = float(np.exp(counts[u, v])) if s["user_weighting"] == "softmax" else 1.0
            a[u, v] = weight * (1 if times is None else int(times[u, v]))
        if near:
            a[u] = a[u] / a[u].sum()
    return a


def networks(params: Parameters, case: Case, preset: str) -> list[Tensor]:
    """h of each modality, users, then items, (U + I, d)."""
    a = common.adjacency(case)
    degree = a.sum(1)
    a = a / torch.sqrt(degree[:, None] * degree[None, :])
    found = []
    for m in case.modalities:
        hidden = leaky_relu(linear(case.feature(m), params, f"hidden.{m}"))
        content = linear(hidden, params, f"projection.{m}")
        x = rn(torch.cat([params[f"preference.{m}"], content]))
        h = x
        for _ in range(settings(case, preset)["n_layers"]):
            x = a @ x
            h = h + x
        found.append(h)
    return found


def representation(
    params: Parameters, case: Case, preset: str, times: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """z of the users, q of the items."""
    h = networks(params, case, preset)
    of_users, of_items = [x[: case.n_users] for x in h], [x[case.n_users :] for x in h]
    q = torch.stack(of_items).sum(0)
    if len(h) == 1:
        y = of_users[0]
    else:
        if settings(case, preset)["first_is_sum"]:
            of_users = [torch.stack(of_users).sum(0), *of_users[1:]]
        w = params["user_weights"]
        y = torch.stack([w[:, k : k + 1] * x for k, x in enumerate(of_users)]).sum(0)
    return y + co_users(case, preset, times) @ y, q


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z, q = representation(params, case, preset)
    return z @ q.T


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, times: np.ndarray | None = None
) -> dict[str, Tensor]:
    represented = representation(params, case, preset, times)
    return terms_of(params, case, batch, represented, settings(case, preset)["reg_weight"])


def terms_of(
    params: Parameters, case: Case, batch: Batch, represented: tuple[Tensor, Tensor], reg: float
) -> dict[str, Tensor]:
    """The terms of a batch, from z and q."""
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    z, q = represented
    rows = [params[f"preference.{m}"][u] for m in case.modalities]
    terms = {
        "bpr": common.bpr((z[u] * (q[i] - q[j])).sum(1)) / log(2),
        "preference_l2": reg * sum_of_squares(*rows) / rows[0].numel(),
    }
    if "user_weights" in params:
        w = params["user_weights"]
        terms["weight_l2"] = reg * sum_of_squares(w) / w.numel()
    return terms


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    times: Sequence[np.ndarray | None] | None = None,
) -> dict[int, Parameters]:
    """`times` has one matrix per epoch."""
    steps = (
        (lambda now, b=batch, t=drawn: loss_terms(now, case, preset, b, times=t), lr)
        for epoch, drawn in zip(epochs, times or [None] * len(epochs), strict=True)
        for batch in epoch
    )
    return common.adam(params, trainable(case, preset), steps, after)
