"""GRCN, plainly. Wei et al., ACM MM 2020, 10.1145/3394171.3413556.

Per modality m (index dropped), edges e = (u_e, i_e) sorted by (user, item):
    p = rn(P) ;  f = rn(LR(F W^T + b))
    T times:  a_e = softmax over the edges of u of <p_u, f_i> ;  p_u <- rn(p_u + sum_i a_ui f_i)
    s_e = <p_u, f_i> ;  alphaU = softmax of s over a user's edges ;  alphaI = softmax of s over an
    item's edges r_u = p_u + sum_i alphaU_ui f_i ;  r_i = f_i + sum_u alphaI_ui p_u
Then over the modalities, c being the confidence of a node per modality:
    wU_e = relu(max_m alphaU_m,e c_{u_e,m}) ;  wI_e = relu(max_m alphaI_m,e c_{i_e,m})
    x0 = rn([Gu; Gi]) ;  y_u = sum_i wU x_i ;  y_i = sum_u wI x_u ;  x_{l+1} = rn(y) ;  xs = x0 + x1
    + ... rep = [xs | r_1 | r_2 | ...] ;  s(u,i) = <rep_u, rep_i>
    L = bpr(D) + l_w [ 1/(d B) sum |Gu_u|^2 + 1/(2 d B) sum (|Gi_i|^2 + |Gi_j|^2) ] + sum_m 1/(kappa
    B) sum |P_m,u|^2
softmax is exp(s - max) / (sum + 1e-16).

Edge order `elliot`: the item side is stored in (item, user) order, permutation pi, but filled with
values in (user, item) order. Slot k carries the edge pi(k) with the score s_k and the confidence of
the item (or, for confidence `sender`, the user) of the user-sorted edge k; its softmax runs over
the slots of the item of pi(k).

Choices:
    * `corrected` is `paper` with aligned edges and the preference penalty times l_w. Routing is on
      there already;
      the receiver's confidence and the normalisation of every layer stay as in `paper`.
    * `original` takes the authors' penalty (times l_w, rows of the batch), not MMRec's additional
      term; xn for the id
      table (one of U + I rows), preferences and confidence; the projection stays lin.
    * The denominators 64 and 128 of the id penalty are read as d and 2 d, the 128 of the preference
      penalty as kappa.
    * In order `elliot` with confidence `sender` (no preset) the user of the user-sorted edge lends
      its confidence.
    * `weight_mode` mean averages and max maximises the alphas without confidence; `pruning` is the
      relu.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, leaky_relu, linear, rn, sum_of_squares

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "edge_order": "elliot",
        "confidence": "receiver",
        "content_reg_scaled": False,
        "layer_norm": True,
        "routing": True,
        "init": "xavier_uniform",
        "factors_multimod": 128,
    },
    "original": {
        "edge_order": "aligned",
        "confidence": "sender",
        "content_reg_scaled": True,
        "layer_norm": False,
        "routing": False,
        "init": "xavier_normal",
        "factors_multimod": 64,
    },
    "corrected": {
        "edge_order": "aligned",
        "confidence": "receiver",
        "content_reg_scaled": True,
        "layer_norm": True,
        "routing": True,
        "init": "xavier_uniform",
        "factors_multimod": 128,
    },
}
DEFAULTS = {
    "factors": 64,
    "num_layers": 2,
    "num_routings": 3,
    "weight_mode": "confid",
    "pruning": True,
    "fusion_mode": "concat",
    "l_w": 0.01,
}

_ALL = frozenset(
    {"user_embedding", "item_embedding", "confidence"}
    | {f"{n}.{m}" for m in ("visual", "textual") for n in ("preference",)}
    | {f"projection.{m}.{n}" for m in ("visual", "textual") for n in ("weight", "bias")}
)
GRADIENTS = {"paper": _ALL, "original": _ALL, "corrected": _ALL}


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s = settings(case, preset)
    d, kappa, n = s["factors"], s["factors_multimod"], case.n_users + case.n_items
    if s["init"] == "xavier_normal":
        matrix = common.xavier_normal
        ids = matrix(rng, n, d)
        params = {"user_embedding": ids[: case.n_users], "item_embedding": ids[case.n_users :]}
    else:
        matrix = common.xavier_uniform
        params = {
            "user_embedding": matrix(rng, case.n_users, d),
            "item_embedding": matrix(rng, case.n_items, d),
        }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"preference.{m}"] = matrix(rng, case.n_users, kappa)
        params[f"projection.{m}.weight"] = common.linear_weight(rng, kappa, width)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, kappa, width)
    params["confidence"] = matrix(rng, n, len(case.modalities))
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def one_hot(index: np.ndarray, n: int) -> Tensor:
    """(n, len(index)): row r marks the edges whose node is r."""
    return (torch.arange(n)[:, None] == torch.as_tensor(index)[None, :]).double()


def edge_softmax(s: Tensor, segments: Tensor) -> Tensor:
    """Softmax of the edge scores (E,) within each row of the one-hot `segments` (n, E)."""
    # The subtracted maximum is a constant: it cancels but for the 1e-16.
    top = torch.where(segments > 0, s.detach()[None, :], -torch.inf).max(1).values
    e = torch.exp(s - segments.T @ top)
    return e / (segments.T @ (segments @ e) + 1e-16)


def representation(params: Parameters, case: Case, preset: str) -> tuple[Tensor, Tensor]:
    """Representations of the users (U, width) and of the items (I, width)."""
    s = settings(case, preset)
    users, items = torch.as_tensor(case.train_users), torch.as_tensor(case.train_items)
    of_user, of_item = (
        one_hot(case.train_users, case.n_users),
        one_hot(case.train_items, case.n_items),
    )
    # The item side: the edge that each slot stands for. Values always come in (user, item) order.
    if s["edge_order"] == "elliot":
        slots = torch.as_tensor(np.lexsort((case.train_users, case.train_items)))
    else:
        slots = torch.arange(case.n_edges)
    slot_item, slot_user = of_item[:, slots], users[slots]

    contents_u, contents_i, alphas_u, alphas_i = [], [], [], []
    for m in case.modalities:
        p = rn(params[f"preference.{m}"])
        f = rn(leaky_relu(linear(case.feature(m), params, f"projection.{m}")))
        if s["routing"]:
            for _ in range(s["num_routings"]):
                a = edge_softmax((p[users] * f[items]).sum(1), of_user)
                p = rn(p + of_user @ (a[:, None] * f[items]))
        score = (p[users] * f[items]).sum(1)
        alpha_u = edge_softmax(score, of_user)
        alpha_i = edge_softmax(score, slot_item)
        contents_u.append(p + of_user @ (alpha_u[:, None] * f[items]))
        contents_i.append(f + slot_item @ (alpha_i[:, None] * p[slot_user]))
        alphas_u.append(alpha_u)
        alphas_i.append(alpha_i)

    c_user, c_item = (
        params["confidence"][: case.n_users][users],
        params["confidence"][case.n_users :][items],
    )
    receiver = s["confidence"] == "receiver"
    w_u = fuse(torch.stack(alphas_u, dim=1), c_user if receiver else c_item, s)
    w_i = fuse(torch.stack(alphas_i, dim=1), c_item if receiver else c_user, s)

    x_u, x_i = rn(params["user_embedding"]), rn(params["item_embedding"])
    sum_u, sum_i = x_u, x_i
    for _ in range(s["num_layers"]):
        y_u = of_user @ (w_u[:, None] * x_i[items])
        y_i = slot_item @ (w_i[:, None] * x_u[slot_user])
        x_u, x_i = (rn(y_u), rn(y_i)) if s["layer_norm"] else (y_u, y_i)
        sum_u, sum_i = sum_u + x_u, sum_i + x_i

    if s["fusion_mode"] == "id":
        return sum_u, sum_i
    if s["fusion_mode"] == "mean":
        return torch.stack([sum_u, *contents_u]).mean(0), torch.stack([sum_i, *contents_i]).mean(0)
    return torch.cat([sum_u, *contents_u], dim=1), torch.cat([sum_i, *contents_i], dim=1)


def fuse(alpha: Tensor, confidence: Tensor, s: dict[str, Any]) -> Tensor:
    """One weight per edge from (E, M) attention and (E, M) confidence."""
    if s["weight_mode"] == "mean":
        w = alpha.mean(1)
    elif s["weight_mode"] == "max":
        w = alpha.max(1).values
    else:
        w = (alpha * confidence).max(1).values
    return torch.relu(w) if s["pruning"] else w


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    users, items = representation(params, case, preset)
    return users @ items.T


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    s = settings(case, preset)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    d, kappa, size = s["factors"], s["factors_multimod"], len(u)
    all_scores = scores(params, case, preset)
    gu, gi = params["user_embedding"], params["item_embedding"]
    preferences = sum_of_squares(*(params[f"preference.{m}"][u] for m in case.modalities)) / (
        kappa * size
    )
    return {
        "bpr": common.bpr(all_scores[u, i] - all_scores[u, j]),
        "id_l2": s["l_w"]
        * (sum_of_squares(gu[u]) / (d * size) + sum_of_squares(gi[i], gi[j]) / (2 * d * size)),
        "preference_l2": (s["l_w"] if s["content_reg_scaled"] else 1.0) * preferences,
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
