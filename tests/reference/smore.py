"""SMORE, plainly. Ong & Khong, WSDM 2025, 10.1145/3701551.3703561 (arXiv 2412.14978).

    g_m = Fhat_m W_m^T + b_m
    n_m = g_m (*) k_m, the circular convolution of a row with the inverse transform of spectrum_m
    n_f = d^((1 - M) / 2) g_1 (*) ... (*) g_M (*) k_f       (transforms scaled by d^-1/2 each way)
    h_v = view of the filter sigmoid(gate_v(n_v)) for every modality and f, see `contrast`
    S_f: the largest entry of the graphs that have one, at each pair
    p_v = mask_v * sigmoid(preference_v(z)) / (1 - dropout) in training
    side = (p_f h_f + sum_m p_m softmax(query_m tanh(asking_m(h_f))) h_m) / (M + 1)

Choices:
    * Masks are 0/1 tables of all users, then items, (U + I, d), one per view and step.
    * The imaginary parts of a spectrum's first and (d even) last number mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import cos, pi, sin
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common, contrast
from .common import Batch, Case, Parameters, linear

FUSED = "fused"
PRESETS: dict[str, dict[str, Any]] = {"paper": {}}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {
        "factors": 4, "n_ui_layers": 2, "n_layers": 1, "dropout": 0.3, "cl_loss": 0.1,
        "knn_k_by": {"visual": 3, "textual": 2, "acoustic": 4},
        "reg_weight": 0.01, "temperature": 0.2, "batch_size": 8,
    },
    "middle": {
        "factors": 7, "n_ui_layers": 3, "n_layers": 2, "dropout": 0.1, "cl_loss": 0.03,
        "knn_k_by": {"visual": 6, "textual": 4, "acoustic": 5},
        "reg_weight": 0.001, "temperature": 0.5, "batch_size": 16,
    },
}  # fmt: skip
GRADIENTS = {
    "paper": frozenset(
        {"user_embedding", "item_embedding", "fused_spectrum"}
        | {f"{part}.{n}" for part in ("fused_gate", "fused_preference") for n in ("weight", "bias")}
        | {f"{part}.{m}" for part in ("features", "spectrum") for m in ("visual", "textual")}
        | {
            f"{part}.{m}.{n}"
            for part in ("projection", "gate", "preference", "asking", "query")
            for m in ("visual", "textual")
            for n in ("weight", "bias")
            if (part, n) != ("query", "bias")
        }
    )
}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d = case.config["factors"]
    params = contrast.parameters(case, d, rng)
    for m in case.modalities:
        contrast.add_linear(params, f"preference.{m}", d, rng)
        contrast.add_linear(params, f"asking.{m}", d, rng)
        params[f"query.{m}.weight"] = common.linear_weight(rng, d, d)
        params[f"spectrum.{m}"] = common.standard_normal(rng, d // 2 + 1, 2)
    contrast.add_linear(params, "fused_gate", d, rng)
    contrast.add_linear(params, "fused_preference", d, rng)
    params["fused_spectrum"] = common.standard_normal(rng, d // 2 + 1, 2)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def signal(spectrum: Tensor, d: int) -> list[Tensor]:
    """The d real numbers whose unscaled transform the spectrum is."""
    numbers = []
    for t in range(d):
        total = spectrum[0, 0]
        for f in range(1, len(spectrum)):
            angle = 2 * pi * f * t / d
            wave = cos(angle) * spectrum[f, 0] - sin(angle) * spectrum[f, 1]
            total = total + (wave if 2 * f == d else 2 * wave)
        numbers.append(total / d)
    return numbers


def convolved(x: Tensor, y: Sequence[Tensor]) -> Tensor:
    """Each row of x (n, d), circularly with d columns or numbers."""
    d = x.shape[1]
    columns = [sum(x[:, s] * y[(t - s) % d] for s in range(d)) for t in range(d)]
    return torch.stack(columns, 1)  # type: ignore[arg-type]


def fused_graph(graphs: Sequence[Tensor]) -> Tensor:
    """S_f, (I, I)."""
    found = torch.stack(list(graphs))
    largest = found.masked_fill(found == 0, -float("inf")).amax(0)
    return torch.where(torch.isinf(largest), torch.zeros_like(largest), largest)


def representation(
    params: Parameters, case: Case, preset: str, masks: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """z and side of users, then items, (U + I, d) each."""
    s = case.config
    d = s["factors"]
    z = contrast.behaviour(params, case, s["n_ui_layers"])
    g = [linear(params[f"features.{m}"], params, f"projection.{m}") for m in case.modalities]
    fused = g[0]
    for other in g[1:]:
        fused = convolved(fused, other.unbind(1)) / d**0.5
    graphs = [contrast.item_graph(case, m, s["knn_k_by"][m]) for m in case.modalities]
    names = [(x, f"gate.{m}", f"spectrum.{m}") for x, m in zip(g, case.modalities, strict=True)]
    names.append((fused, "fused_gate", "fused_spectrum"))
    views = []
    for (x, gate, spectrum), graph in zip(names, [*graphs, fused_graph(graphs)], strict=True):
        kept = contrast.gate(convolved(x, signal(params[spectrum], d)), params, gate)
        views.append(contrast.view(params, case, graph, kept, s["n_layers"]))

    def preferred(view: str, name: str) -> Tensor:
        p = contrast.gate(z, params, name)
        if masks is None:
            return p
        return p * torch.as_tensor(masks[view]) / (1 - s["dropout"])

    parts = [preferred(FUSED, "fused_preference") * views[-1]]
    for m, h in zip(case.modalities, views, strict=False):
        asked = torch.tanh(linear(views[-1], params, f"asking.{m}"))
        share = torch.softmax(asked @ params[f"query.{m}.weight"].T, 1)
        parts.append(preferred(m, f"preference.{m}") * share * h)
    return z, torch.stack(parts).sum(0) / len(parts)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    e = torch.stack(representation(params, case, preset)).sum(0)
    return e[: case.n_users] @ e[case.n_users :].T


def draw_masks(
    case: Case, epochs: Sequence[Sequence[Batch]], rng: np.random.Generator
) -> list[list[dict[str, np.ndarray]]]:
    """Kept entries for each view of every batch: 1 with probability 1 - dropout."""
    shape, rate = (case.n_users + case.n_items, case.config["factors"]), case.config["dropout"]
    return [
        [{v: 1.0 * (rng.random(shape) >= rate) for v in (*case.modalities, FUSED)} for _ in epoch]
        for epoch in epochs
    ]


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, masks: Mapping[str, Any]
) -> dict[str, Tensor]:
    z, side = representation(params, case, preset, masks)
    return contrast.loss_terms(z, side, case, case.config, batch)


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
    """The rate of epoch e, from 0, is lr 0.96^(e / 50); one set of masks per batch."""
    steps = (
        (
            lambda now, batch=batch, mask=mask: loss_terms(now, case, preset, batch, masks=mask),
            lr * 0.96 ** (e / 50),
        )
        for e, (epoch, epoch_masks) in enumerate(zip(epochs, masks, strict=True))
        for batch, mask in zip(epoch, epoch_masks, strict=True)
    )
    return common.adam(params, trainable(case, preset), steps, after)
