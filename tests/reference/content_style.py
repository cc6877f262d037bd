"""Content-style, plainly. Deldjoo, Di Noia, Malitesta & Merra, ECIR 2022.

    colour   x = M(F * mask / (1 - p))
    shape    h_c = mean over 2 x 2 cells of relu(max over the cell of sum_k K_ck patch_k + b_c)
             x = M(h * mask / (1 - p))
    class    x = F, or F W^T
    a_m      = relu((g_u o x_m) V^T + c) A^T w^T          o: product, sum or [;]
    q        = g_i + sum_m softmax(a / T)_m x_m           or g_i * sum
    s(u,i)   = M([g_u; q] * mask / (1 - p))
    L        = sum_b sp(-D_b) + l_w / 2 (sum_b |g_u|^2 + |q_i|^2 + |q_j|^2 + sum_m |x_i|^2 + |x_j|^2
               + the squares of every weight but the two tables)

M: relu layers with bias, the last one linear without bias.

Choices:
    * The masks of a batch are one row per item and modality, and one per pair (positives first).
    * The two layers behind the attention's relu have no biases.
    * One modality: no attention, q from x alone.
    * An odd map has cells of two positions at its end, and of one in its corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isqrt, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, softplus, sum_of_squares

DEFAULTS: dict[str, Any] = {
    "attention": "product",
    "combination": "sum",
    "temperature": 10.0,
    "dropout": 0.5,
    "colour_layers": (5, 4),
    "shape_layers": (6,),
    "attention_layers": (7, 3),
    "score_layers": (6, 5),
    "channels": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {**DEFAULTS, "factors": 4, "l_w": 0.01},
    "middle": {
        **DEFAULTS,
        "factors": 6,
        "l_w": 0.001,
        "attention": "concat",
        "combination": "product",
        "temperature": 0.5,
        "dropout": 0.2,
    },
}
PRESETS: dict[str, dict[str, Any]] = {"paper": {}}
ROLES = {"colour": "colour", "shape": "shape", "class": "class"}

Masks = Mapping[str, np.ndarray]


def widths(case: Case) -> dict[str, list[tuple[str, int, int, bool]]]:
    """The linear layers of every part: name, inputs, outputs, whether it has a bias."""
    s, d = case.config, case.config["factors"]

    def perceptron(name: str, sizes: Sequence[int]) -> list[tuple[str, int, int, bool]]:
        n = len(sizes) - 1
        return [(f"{name}.layers.{k}", sizes[k], sizes[k + 1], k < n - 1) for k in range(n)]

    found = {}
    for m in case.modalities:
        k = case.features[m].shape[1]
        if ROLES[m] == "colour":
            found[m] = perceptron(f"encoders.{m}.mlp", (k, *s["colour_layers"], d))
        elif ROLES[m] == "shape":
            found[m] = perceptron(f"encoders.{m}.mlp", (s["channels"], *s["shape_layers"], d))
        else:
            found[m] = [(f"encoders.{m}", k, d, False)] if k != d else []
    found["score"] = perceptron("score", (2 * d, *s["score_layers"], 1))
    return found


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s, d = case.config, case.config["factors"]
    # Larger than N(0, 0.01), so that a few steps show everything.
    params = {
        "user_factors": common.xavier_uniform(rng, case.n_users, d),
        "item_factors": common.xavier_uniform(rng, case.n_items, d),
    }
    for layers in widths(case).values():
        for name, n_in, n_out, bias in layers:
            params[f"{name}.weight"] = common.xavier_uniform(rng, n_out, n_in)
            if bias:
                params[f"{name}.bias"] = torch.tensor(rng.uniform(-0.1, 0.3, n_out))
    for m in case.modalities:
        if ROLES[m] == "shape":
            bound = sqrt(6 / (9 + 9 * s["channels"]))
            kernels = rng.uniform(-bound, bound, (s["channels"], 9))
            params[f"encoders.{m}.kernels"] = torch.tensor(kernels)
            params[f"encoders.{m}.bias"] = torch.tensor(rng.uniform(-0.1, 0.1, s["channels"]))
    if len(case.modalities) > 1:
        h, h2 = s["attention_layers"]
        width = 2 * d if s["attention"] == "concat" else d
        params["attention.inner.weight"] = common.xavier_uniform(rng, h, width)
        params["attention.inner.bias"] = torch.tensor(rng.uniform(-0.5, 0.5, h))
        params["attention.middle"] = common.xavier_uniform(rng, h2, h)
        params["attention.outer"] = common.xavier_uniform(rng, 1, h2)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return sorted(parameters(case, preset, np.random.default_rng(0)))


def perceptron(x: Tensor, params: Parameters, name: str, n: int) -> Tensor:
    for k in range(n):
        x = linear(x, params, f"{name}.layers.{k}")
        if k < n - 1:
            x = x.clamp_min(0)
    return x


def pooled(maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """The convolution's positions one by one, (n, channels)."""
    n, side = len(maps), isqrt(maps.shape[1])
    padded = torch.zeros((n, side + 2, side + 2), dtype=torch.float64)
    padded[:, 1:-1, 1:-1] = maps.view(n, side, side)
    cells = []
    for y in range(0, side, 2):
        for x in range(0, side, 2):
            here = [
                padded[:, v : v + 3, h : h + 3].reshape(n, 9) @ kernels.T + bias
                for v in range(y, min(y + 2, side))
                for h in range(x, min(x + 2, side))
            ]
            largest = here[0]
            for other in here[1:]:
                largest = torch.where(other > largest, other, largest)
            cells.append(largest.clamp_min(0))
    return torch.stack(cells).sum(0) / len(cells)


def encoded(params: Parameters, case: Case, masks: Masks | None) -> dict[str, Tensor]:
    """x_i^m of every item, (n_items, d)."""
    keep = 1 - case.config["dropout"]

    def dropped(x: Tensor, m: str) -> Tensor:
        return x if masks is None else x * torch.tensor(masks[m]) / keep

    found = {}
    for m in case.modalities:
        x, n = case.feature(m), len(widths(case)[m])
        if ROLES[m] == "colour":
            found[m] = perceptron(dropped(x, m), params, f"encoders.{m}.mlp", n)
        elif ROLES[m] == "shape":
            h = pooled(x, params[f"encoders.{m}.kernels"], params[f"encoders.{m}.bias"])
            found[m] = perceptron(dropped(h, m), params, f"encoders.{m}.mlp", n)
        else:
            found[m] = linear(x, params, f"encoders.{m}") if n else x
    return found


def of_pair(
    params: Parameters, case: Case, content: Mapping[str, Tensor], u: int, i: int
) -> tuple[Tensor, Tensor]:
    """g_u and q of one user and one item."""
    s, g_u, g_i = case.config, params["user_factors"][u], params["item_factors"][i]
    x = [content[m][i] for m in case.modalities]
    if len(x) == 1:
        attended = x[0]
    else:
        meets = {"product": lambda v: g_u * v, "sum": lambda v: g_u + v}
        meets["concat"] = lambda v: torch.cat([g_u, v])
        logits = []
        for v in x:
            inner = params["attention.inner.weight"] @ meets[s["attention"]](v)
            hidden = (inner + params["attention.inner.bias"]).clamp_min(0)
            logits.append(params["attention.outer"][0] @ (params["attention.middle"] @ hidden))
        shares = torch.softmax(torch.stack(logits) / s["temperature"], 0)
        attended = torch.stack([a * v for a, v in zip(shares, x, strict=True)]).sum(0)
    return g_u, g_i + attended if s["combination"] == "sum" else g_i * attended


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    content, n = encoded(params, case, None), len(case.config["score_layers"]) + 1
    rows = [
        torch.stack([torch.cat(of_pair(params, case, content, u, i)) for i in range(case.n_items)])
        for u in range(case.n_users)
    ]
    return torch.stack([perceptron(row, params, "score", n)[:, 0] for row in rows])


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, masks: Masks | None = None
) -> dict[str, Tensor]:
    content, n = encoded(params, case, masks), len(case.config["score_layers"]) + 1
    size = len(batch["users"])
    triples = [(u, i) for u, i in zip(batch["users"], batch["pos"], strict=True)]
    triples += [(u, j) for u, j in zip(batch["users"], batch["neg"], strict=True)]
    pairs = [of_pair(params, case, content, int(u), int(i)) for u, i in triples]
    inputs = torch.stack([torch.cat(pair) for pair in pairs])
    if masks is not None:
        inputs = inputs * torch.tensor(masks["score"]) / (1 - case.config["dropout"])
    s = perceptron(inputs, params, "score", n)[:, 0]
    squares = sum_of_squares(*(g_u for g_u, _ in pairs[:size]), *(q for _, q in pairs))
    for x in content.values():
        squares = squares + sum_of_squares(*(x[int(i)] for _, i in triples))
    weights = [v for k, v in params.items() if k not in ("user_factors", "item_factors")]
    squares = squares + sum_of_squares(*weights)
    return {
        "bpr": softplus(-(s[:size] - s[size:])).sum(),
        "l2": case.config["l_w"] / 2 * squares,
    }


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    masks: Sequence[Sequence[Masks]] = (),
) -> dict[int, Parameters]:
    steps = (
        (
            lambda now, batch=batch, mask=masks[e][k]: loss_terms(now, case, preset, batch, mask),
            lr,
        )
        for e, epoch in enumerate(epochs)
        for k, batch in enumerate(epoch)
    )
    return common.adam(params, trainable(case, preset), steps, after)
