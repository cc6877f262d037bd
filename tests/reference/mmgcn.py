"""MMGCN, plainly. Wei et al., ACM MM 2019, 10.1145/3343031.3351034.

Per modality m, with Abar = D^-1 A (mean over neighbours) and Z = [Gu; Gi]:
    X0 = rn([P_m ; F_m Wp^T + bp])                             without projection: rn([P_m ; F_m])
    H  = LR(Abar (X C_l)) ;  Xh = LR(X Lin_l^T + lin_b) + Z
    X' = LR(H Mix_l^T + mix_b + Xh)            concatenation: LR([H | Xh] Mix_l^T + mix_b)
    R  = mean over m of the last X ;  s(u,i) = <R_u, R_i>
    L = bpr(D) + l_w [ 1/(d B) sum |Gu_u|^2 + 1/(2 d B) sum (|Gi_i|^2 + |Gi_j|^2) + 1/(U kappa_1)
    |P_1|_F^2 ]

`original`: concatenation on, id table and preference tables frozen at their random start.

Choices:
    * Layers are numbered from 0: `conv.<m>.0` is kappa x kappa, `conv.<m>.1` and later d x d.
      `conv` is the matrix C
      of X C (not transposed); `linear` and `mix` are weights of y = x W^T + b.
    * `original` draws one xn table of U + I rows for the ids, xn for preferences, C, Lin and the
      first Mix; the other
      Mix, all biases and the projection are lin. Its penalties are kept in the loss: they are
      constants there.
    * `corrected` equals `paper` in everything stated here: a stable log-sigmoid and fresh inference
      are always used.
      Stale inference is `scores` of the parameters before the last step.
    * The denominators 64 and 128 are read as d and 2 d, and the batch size as that of the batch at
      hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, leaky_relu, linear, rn, sum_of_squares

_PAPER = {
    "concatenation": False,
    "train_id": True,
    "train_preference": True,
    "init": "xavier_uniform",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**_PAPER, "num_layers": 3},
    "original": {
        "concatenation": True,
        "train_id": False,
        "train_preference": False,
        "init": "xavier_normal",
        "num_layers": 3,
    },
    "corrected": {**_PAPER, "num_layers": 3},
}
DEFAULTS = {"factors": 64, "factors_multimod": (256, None), "has_id": True, "l_w": 0.01}

_LAYERS = {
    f"{kind}.{m}.{l}{part}"
    for m in ("visual", "textual")
    for l in range(3)
    for kind, part in (
        ("conv", ""),
        ("linear", ".weight"),
        ("linear", ".bias"),
        ("mix", ".weight"),
        ("mix", ".bias"),
    )
}
_ORIGINAL = frozenset(_LAYERS | {"projection.visual.weight", "projection.visual.bias"})
_ALL = _ORIGINAL | {"user_embedding", "item_embedding", "preference.visual", "preference.textual"}
GRADIENTS = {"paper": _ALL, "original": _ORIGINAL, "corrected": _ALL}


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s, d = settings(case, preset), settings(case, preset)["factors"]
    normal = s["init"] == "xavier_normal"
    matrix = common.xavier_normal if normal else common.xavier_uniform
    if normal:
        ids = matrix(rng, case.n_users + case.n_items, d)
        params = {"user_embedding": ids[: case.n_users], "item_embedding": ids[case.n_users :]}
    else:
        params = {
            "user_embedding": matrix(rng, case.n_users, d),
            "item_embedding": matrix(rng, case.n_items, d),
        }
    for m, kappa in zip(case.modalities, s["factors_multimod"], strict=True):
        width = case.features[m].shape[1]
        if kappa is not None:
            params[f"projection.{m}.weight"] = common.linear_weight(rng, kappa, width)
            params[f"projection.{m}.bias"] = common.linear_bias(rng, kappa, width)
        kappa = kappa or width
        params[f"preference.{m}"] = matrix(rng, case.n_users, kappa)
        for l in range(s["num_layers"]):
            n_in = kappa if l == 0 else d
            n_mix = n_in + d if s["concatenation"] else n_in
            params[f"conv.{m}.{l}"] = matrix(rng, n_in, n_in)
            params[f"linear.{m}.{l}.weight"] = matrix(rng, d, n_in)
            params[f"linear.{m}.{l}.bias"] = common.linear_bias(rng, d, n_in)
            mix = common.linear_weight if normal and l > 0 else matrix
            params[f"mix.{m}.{l}.weight"] = mix(rng, d, n_mix)
            params[f"mix.{m}.{l}.bias"] = common.linear_bias(rng, d, n_mix)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    s = settings(case, preset)
    names = parameters(case, preset, np.random.default_rng(0))
    frozen = () if s["train_id"] else ("user_embedding", "item_embedding")
    return [
        n
        for n in names
        if n not in frozen and (s["train_preference"] or not n.startswith("preference."))
    ]


def representation(params: Parameters, case: Case, preset: str) -> Tensor:
    """R: users, then items, (U + I, d)."""
    s = settings(case, preset)
    a = common.adjacency(case)
    mean = a / a.sum(1, keepdim=True).clamp_min(1.0)
    z = torch.cat([params["user_embedding"], params["item_embedding"]])
    outputs = []
    for m in case.modalities:
        f = case.feature(m)
        if f"projection.{m}.weight" in params:
            f = linear(f, params, f"projection.{m}")
        x = rn(torch.cat([params[f"preference.{m}"], f]))
        for l in range(s["num_layers"]):
            h = leaky_relu(mean @ (x @ params[f"conv.{m}.{l}"]))
            xh = leaky_relu(linear(x, params, f"linear.{m}.{l}"))
            if s["has_id"]:
                xh = xh + z
            if s["concatenation"]:
                x = leaky_relu(linear(torch.cat([h, xh], dim=1), params, f"mix.{m}.{l}"))
            else:
                x = leaky_relu(linear(h, params, f"mix.{m}.{l}") + xh)
        outputs.append(x)
    return torch.stack(outputs).mean(0)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    r = representation(params, case, preset)
    return r[: case.n_users] @ r[case.n_users :].T


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    s = settings(case, preset)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    all_scores = scores(params, case, preset)
    gu, gi, first = (
        params["user_embedding"],
        params["item_embedding"],
        params[f"preference.{case.modalities[0]}"],
    )
    d, size = s["factors"], len(u)
    return {
        "bpr": common.bpr(all_scores[u, i] - all_scores[u, j]),
        "id_l2": s["l_w"]
        * (sum_of_squares(gu[u]) / (d * size) + sum_of_squares(gi[i], gi[j]) / (2 * d * size)),
        "preference_l2": s["l_w"] * sum_of_squares(first) / first.numel(),
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
