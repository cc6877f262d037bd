"""LATTICE, plainly. Zhang et al., ACM MM 2021, 10.1145/3474085.3475259.

    kNN(X, k)   per row the k largest cosines (itself included) as values, zero elsewhere
    lap(W)      diagonal set to 1 (`force_diagonal`), then W_ij / sqrt(s_i s_j) with s the row sums
    S0_m = lap(kNN(F_m, k))                                     raw features, constant for ever
    w = softmax(omega)
    S = (1 - l_m) lap(sum_m w_m kNN(Fhat_m W_m^T + b_m, k)) + l_m sum_m w_m S0_m
    h = S^{n_layers} Gi
    x0 = [Gu; Gi] ;  x_{l+1} = rn(Dt^-1 (A + I) Dt^-1 x_l), Dt = D + I ;  z = mean of x_0 .. x_L
    user z_u ;  item q_i = z_i + rn(h)_i ;  s(u,i) = <z_u, q_i>
    L = bpr(D) + l_w / (2 B) sum_b (|z_u|^2 + |q_i|^2 + |q_j|^2)
S is rebuilt, with gradient, in the first batch of an epoch only; it is a constant for the others.
Inference rebuilds.

`original` and `corrected`: x_{l+1} = Dt^-1 (A + I) x_l without rn, diagonal left alone, k = 10, l_m
= 0.9.

Choices:
    * s^-1/2 is 0 where s <= 0 (the peers would give infinity or NaN).
    * A zero row has cosine 1 to itself and 0 to the others, among which the smallest indices are
      its neighbours.
    * The size B of the batch at hand divides the penalty in every preset.
    * Where the gradients of features, projections and omega are missing: with `legacy_zero_grad`
      they count as zeros
      (Adam keeps moving, its step counter advances), without it these tensors and their counters
      stand still.
    * The optimiser gets lr 0.96^(epoch / 50), epoch from 0, in every preset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, rn, sum_of_squares

_ORIGINAL = {
    "column_normalised": False,
    "layer_norm": False,
    "force_diagonal": False,
    "top_k": 10,
    "l_m": 0.9,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "column_normalised": True,
        "layer_norm": True,
        "force_diagonal": True,
        "top_k": 20,
        "l_m": 0.7,
        "legacy_zero_grad": True,
    },
    "original": {**_ORIGINAL, "legacy_zero_grad": True},
    "corrected": {**_ORIGINAL, "legacy_zero_grad": False},
}
DEFAULTS = {
    "factors": 64,
    "factors_multimod": 64,
    "n_layers": 1,
    "n_ui_layers": 2,
    "l_w": 0.01,
    "lr_sched": (0.96, 50),
}

_ALL = frozenset(
    {"user_embedding", "item_embedding", "modality_weights"}
    | {f"features.{m}" for m in ("visual", "textual")}
    | {f"projection.{m}.{n}" for m in ("visual", "textual") for n in ("weight", "bias")}
)
GRADIENTS = {"paper": _ALL, "original": _ALL, "corrected": _ALL}
BETWEEN_REBUILDS = frozenset(
    {"user_embedding", "item_embedding"}
)  # the batches that do not rebuild


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s = settings(case, preset)
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, s["factors"]),
        "item_embedding": common.xavier_uniform(rng, case.n_items, s["factors"]),
    }
    for m in case.modalities:
        width = case.features[m].shape[1]
        params[f"features.{m}"] = case.feature(m)
        params[f"projection.{m}.weight"] = common.linear_weight(rng, s["factors_multimod"], width)
        params[f"projection.{m}.bias"] = common.linear_bias(rng, s["factors_multimod"], width)
    n = len(case.modalities)
    params["modality_weights"] = torch.full((n,), 1.0 / n, dtype=torch.float64)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def knn(x: Tensor, k: int) -> Tensor:
    """(I, I): the cosines of the k nearest rows, zero elsewhere; differentiable in the cosines."""
    c = common.cosines(x)
    selected = torch.zeros_like(c)
    for i, neighbours in enumerate(common.nearest(c, k)):
        selected[i, neighbours] = 1.0
    return c * selected


def laplacian(w: Tensor, *, force_diagonal: bool) -> Tensor:
    """w_ij / sqrt(s_i s_j), s the row sums; rows and columns with s <= 0 become zero."""
    if force_diagonal:
        eye = torch.eye(len(w), dtype=w.dtype)
        w = w * (1 - eye) + eye
    s = w.sum(1)
    positive = s > 0
    inverse_root = torch.where(
        positive, torch.where(positive, s, torch.ones_like(s)) ** -0.5, torch.zeros_like(s)
    )
    return inverse_root[:, None] * w * inverse_root[None, :]


def raw_graph(case: Case, preset: str, modality: str) -> Tensor:
    """S0_m, (I, I)."""
    s = settings(case, preset)
    return laplacian(knn(case.feature(modality), s["top_k"]), force_diagonal=s["force_diagonal"])


def item_graph(params: Parameters, case: Case, preset: str) -> Tensor:
    """S, (I, I), differentiable in features, projections and modality weights."""
    s = settings(case, preset)
    e = torch.exp(params["modality_weights"] - params["modality_weights"].detach().max())
    w = e / e.sum()
    learned = torch.zeros((case.n_items, case.n_items), dtype=torch.float64)
    raw = torch.zeros_like(learned)
    for weight, m in zip(w, case.modalities, strict=True):
        learned = learned + weight * knn(
            linear(params[f"features.{m}"], params, f"projection.{m}"), s["top_k"]
        )
        raw = raw + weight * raw_graph(case, preset, m)
    return (1 - s["l_m"]) * laplacian(learned, force_diagonal=s["force_diagonal"]) + s["l_m"] * raw


def representation(
    params: Parameters, case: Case, preset: str, graph: Tensor
) -> tuple[Tensor, Tensor]:
    """z of the users (U, d) and q of the items (I, d), given S."""
    s = settings(case, preset)
    h = params["item_embedding"]
    for _ in range(s["n_layers"]):
        h = graph @ h
    a = common.adjacency(case)
    degree = a.sum(1) + 1.0
    a = (a + torch.eye(len(a), dtype=a.dtype)) / degree[:, None]
    if s["column_normalised"]:
        a = a / degree[None, :]
    x = torch.cat([params["user_embedding"], params["item_embedding"]])
    layers = [x]
    for _ in range(s["n_ui_layers"]):
        x = rn(a @ x) if s["layer_norm"] else a @ x
        layers.append(x)
    z = torch.stack(layers).mean(0)
    return z[: case.n_users], z[case.n_users :] + rn(h)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    z, q = representation(params, case, preset, item_graph(params, case, preset))
    return z @ q.T


def loss_terms(
    params: Parameters,
    case: Case,
    preset: str,
    batch: Batch,
    *,
    rebuild: bool = True,
    graph: Tensor | None = None,
) -> dict[str, Tensor]:
    """Terms of one batch; S is built from the parameters (`rebuild`) or given as `graph`."""
    s = settings(case, preset)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    if rebuild:
        graph = item_graph(params, case, preset)
    elif graph is None:
        raise ValueError("loss_terms: without rebuild the current graph must be given")
    z, q = representation(params, case, preset, graph)
    return {
        "bpr": common.bpr((z[u] * (q[i] - q[j])).sum(1)),
        "l2": s["l_w"] / (2 * len(u)) * sum_of_squares(z[u], q[i], q[j]),
    }


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
) -> dict[int, Parameters]:
    s = settings(case, preset)
    factor, period = s["lr_sched"]

    def steps() -> Iterator[Any]:
        graph: Tensor | None = None

        def first(now: Parameters, batch: Batch) -> dict[str, Tensor]:
            nonlocal graph
            graph = item_graph({name: value.detach() for name, value in now.items()}, case, preset)
            return loss_terms(now, case, preset, batch, rebuild=True)

        def later(now: Parameters, batch: Batch) -> dict[str, Tensor]:
            return loss_terms(now, case, preset, batch, rebuild=False, graph=graph)

        for e, epoch in enumerate(epochs):
            for b, batch in enumerate(epoch):
                terms = first if b == 0 else later
                yield (
                    (lambda now, terms=terms, batch=batch: terms(now, batch)),
                    lr * factor ** (e / period),
                )

    return common.adam(
        params, trainable(case, preset), steps(), after, zero_for_missing=s["legacy_zero_grad"]
    )
