"""DRAGON, plainly. Zhou et al., ECAI 2023, arXiv 2301.12097.

    h_m, N(u) and a: as DualGNN
    y_u = [w_u,1 h_1,u | w_u,2 h_2,u | ...] ;  g_i = [h_1,i | h_2,i | ...]
    z_u = y_u + sum_v a_uv y_v ;  q_i = g_i + (S^{n_item_layers} g)_i             S: as FREEDOM
    L = mean of -log2 sigmoid(<z_u, q_i - q_j>)
        + reg [ sum_m mean square of P_m,u over the batch + mean square of w ]

Choices:
    * `original` repeats users on lists of fewer than k, as DualGNN's does.
    * With one modality y = h, and there is no w.
    * `mw` is one weight per modality, in the order of the modalities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common, dualgnn, freedom
from .common import Batch, Case, Parameters

PRESETS: dict[str, dict[str, Any]] = {"paper": {"fill_up": False}, "original": {"fill_up": True}}
DEFAULTS = {
    **dualgnn.DEFAULTS, "reg_weight": 1e-3, "neighbours": 10, "mw": (0.1, 0.9), "n_item_layers": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {**dualgnn.CONFIGS["small"], "neighbours": 3, "n_item_layers": 1, "mw": (0.1, 0.9)},
    "middle": {**dualgnn.CONFIGS["middle"], "neighbours": 5, "n_item_layers": 2, "mw": (0.3, 0.7)},
}
parameters, trainable = dualgnn.parameters, dualgnn.trainable


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def representation(
    params: Parameters, case: Case, preset: str, times: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """z of the users, q of the items."""
    s, n = settings(case, preset), case.n_users
    h = dualgnn.networks(params, case, preset)
    y, g = torch.cat([x[:n] for x in h], dim=1), torch.cat([x[n:] for x in h], dim=1)
    if len(h) > 1:
        w = params["user_weights"]
        y = torch.cat([w[:, k : k + 1] * x[:n] for k, x in enumerate(h)], dim=1)
    alike = dataclasses.replace(case, config={"top_k": s["neighbours"], "mw": s["mw"]})
    graph, propagated = freedom.item_graph(alike, "paper"), g
    for _ in range(s["n_item_layers"]):
        propagated = graph @ propagated
    return y + dualgnn.co_users(case, preset, times) @ y, g + propagated


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z, q = representation(params, case, preset)
    return z @ q.T


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, times: np.ndarray | None = None
) -> dict[str, Tensor]:
    represented = representation(params, case, preset, times)
    reg = settings(case, preset)["reg_weight"]
    return dualgnn.terms_of(params, case, batch, represented, reg)


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
