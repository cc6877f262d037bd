"""BM3, plainly. Zhou et al., WWW 2023, 10.1145/3543507.3583251.

    x0 = [Gu; Gi] ;  x_{l+1} = Ahat x_l ;  hu = mean_l x_l[users] ;  hi = mean_l x_l[items] + Gi
    g_m = Fhat_m W_m^T + b_m ;  pred(x) = x Q^T + q
    tu = drop(hu), ti = drop(hi), tm = drop(g_m)        targets, no gradient, inverted dropout
    c(a, b) = batch mean of the cosine similarity, norms clamped at 1e-8
    L = [1 - c(pred(hu)_u, ti_i)] + [1 - c(pred(hi)_i, tu_u)]
      + cl_weight sum_m {[1 - c(pred(g_m)_i, ti_i)] + [1 - c(pred(g_m)_i, tm_i)]}
      + reg_weight (|hu|_F + |hi|_F) / I
    Ahat = D^-1/2 A D^-1/2 with 1e-7 added to the degrees ;  S = pred(hu) pred(hi)^T

The three presets are one model.

Choices:
    * Masks are 0/1 tables of whole tables, `user` (U, d), `item` (I, d) and one (I, d) per
      modality, 1 = kept. The
      scale 1 / (1 - dropout) is applied here.
    * Each of the two norms of a cosine is clamped by itself.
    * `norm` is part of the loss of every batch, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "original": {}, "corrected": {}}
DEFAULTS = {"factors": 64, "n_layers": 1, "cl_weight": 2.0, "reg_weight": 0.01, "dropout": 0.1}

_ALL = frozenset(
    {"user_embedding", "item_embedding", "predictor.weight", "predictor.bias"}
    | {f"features.{m}" for m in ("visual", "textual")}
    | {f"projection.{m}.{n}" for m in ("visual", "textual") for n in ("weight", "bias")}
)
GRADIENTS = {"paper": _ALL, "original": _ALL, "corrected": _ALL}
MODALITY_GRADIENTS = _ALL - {
    "user_embedding",
    "item_embedding",
}  # of all the modality losses together


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = settings(case, preset)["factors"]
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"features.{m}"] = case.feature(m)
        params[f"projection.{m}.weight"] = common.xavier_normal(rng, d, width)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, d, width)
    params["predictor.weight"] = common.xavier_normal(rng, d, d)
    params["predictor.bias"] = common.linear_bias(rng, d, d)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def propagated(params: Parameters, case: Case, preset: str) -> tuple[Tensor, Tensor]:
    """hu (U, d) and hi (I, d)."""
    a = common.symmetric_normalised(common.adjacency(case))
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    layers = [x]
    for _ in range(settings(case, preset)["n_layers"]):
        x = a @ x
        layers.append(x)
    h = torch.stack(layers).mean(0)
    return h[: case.n_users], h[case.n_users :] + params["item_embedding"]


def projected(params: Parameters, modality: str) -> Tensor:
    """g_m, (I, d)."""
    return linear(params[f"features.{modality}"], params, f"projection.{modality}")


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    hu, hi = propagated(params, case, preset)
    return linear(hu, params, "predictor") @ linear(hi, params, "predictor").T


def targets(
    params: Parameters, case: Case, preset: str, masks: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The dropped-out views `user`, `item` and one per modality, without gradient."""
    dropout = settings(case, preset)["dropout"]
    hu, hi = propagated(params, case, preset)
    views = {"user": hu, "item": hi, **{m: projected(params, m) for m in case.modalities}}
    return {
        name: torch.as_tensor(masks[name], dtype=torch.float64) * view.detach() / (1.0 - dropout)
        for name, view in views.items()
    }


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - c(a, b)."""
    norms = a.norm(dim=1).clamp_min(1e-8) * b.norm(dim=1).clamp_min(1e-8)
    return 1.0 - ((a * b).sum(1) / norms).sum() / len(a)


def loss_terms(
    params: Parameters,
    case: Case,
    preset: str,
    batch: Batch,
    *,
    masks: Mapping[str, Any],
    fixed_targets: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Terms of one batch; targets follow from parameters and masks unless given."""
    s = settings(case, preset)
    u, i = batch["users"], batch["pos"]
    hu, hi = propagated(params, case, preset)
    t = targets(params, case, preset, masks) if fixed_targets is None else fixed_targets
    terms = {
        "user_alignment": distance(linear(hu, params, "predictor")[u], t["item"][i]),
        "item_alignment": distance(linear(hi, params, "predictor")[i], t["user"][u]),
    }
    for m in case.modalities:
        view = linear(projected(params, m), params, "predictor")[i]
        terms[f"{m}_inter"] = s["cl_weight"] * distance(view, t["item"][i])
        terms[f"{m}_intra"] = s["cl_weight"] * distance(view, t[m][i])
    terms["norm"] = s["reg_weight"] * (hu.norm() + hi.norm()) / case.n_items
    return terms


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    masks: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[int, Parameters]:
    """`masks` is parallel to `epochs`: one set of masks per batch."""
    steps = (
        (lambda now, batch=batch, mask=mask: loss_terms(now, case, preset, batch, masks=mask), lr)
        for epoch, epoch_masks in zip(epochs, masks, strict=True)
        for batch, mask in zip(epoch, epoch_masks, strict=True)
    )
    return common.adam(params, trainable(case, preset), steps, after)
