"""SASRec, plainly. Kang & McAuley, ICDM 2018 (arXiv 1808.09781), section III.

    S_i = x_i + Dropout(SA(LN(x))_i),  F_i = S_i + Dropout(FFN(LN(S_i)))             (`paper`)
    S_i = LN(x_i + Dropout(SA(x)_i)),  F_i = LN(S_i + Dropout(FFN(S_i)))           (`recbole`)
    SA: heads of softmax(q_t . k_s / sqrt(d / heads)) over s <= t, times v_s

Choices:
    * Keys have no bias: it is the same for all s and cancels in the softmax.
    * `paper` ends with a layer normalisation, as the authors' code does.
    * The dropout of attention has its own masks, head by head, (longest,) each.
"""

from __future__ import annotations

import sys
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import sequences
from .common import Batch, Case, Parameters, linear
from .sequences import Mask, lost

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"loss": "bce", "n_heads": 1, "inner": 1, "pre": True, "eps": 1e-8},
    "recbole": {"loss": "softmax", "n_heads": 2, "inner": 4, "pre": False, "eps": 1e-12},
}
CONFIGS = {
    "small": sequences.config(n_layers=2, dropout=0.5, attention_dropout=0.25),
    "middle": sequences.config(embedding_dim=8, max_len=9, n_layers=1, dropout=0.2),
}


def settings(case: Case, preset: str) -> dict[str, Any]:
    given = {name: value for name, value in case.config.items() if value is not None}
    merged = {"attention_dropout": given.get("dropout"), **PRESETS[preset], **given}
    return merged


def loss_of(case: Case, preset: str) -> str:
    return str(settings(case, preset)["loss"])


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s, d = settings(case, preset), case.config["embedding_dim"]

    def normal(*shape: int) -> Tensor:
        return sequences.small_normal(rng, *shape)

    params = sequences.item_parameters(case, rng, normal)
    params["position_embedding"] = normal(case.config["max_len"], d)
    for k in range(s["n_layers"]):
        wide = s["inner"] * d
        shapes = {"query": (d, d), "key": (d, d), "value": (d, d)}
        shapes |= {"inner": (wide, d), "outer": (d, wide)}
        if not s["pre"]:
            shapes["output"] = (d, d)
        for name, shape in shapes.items():
            # Larger than the start, so that attention is far from uniform.
            params[f"blocks.{k}.{name}.weight"] = 20 * normal(*shape)
            if name in ("inner", "outer", "output") or (name != "key" and not s["pre"]):
                params[f"blocks.{k}.{name}.bias"] = normal(shape[0])
        for n in range(2):
            params[f"blocks.{k}.norms.{n}.weight"] = 1 + normal(d)
            params[f"blocks.{k}.norms.{n}.bias"] = normal(d)
    params["norm.weight"], params["norm.bias"] = 1 + normal(d), normal(d)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return sorted(parameters(case, preset, np.random.default_rng(0)))


def layer_norm(x: Tensor, params: Parameters, name: str, eps: float) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    scaled = centred / torch.sqrt(variance + eps)
    return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(
    x: Tensor, params: Parameters, name: str, s: dict[str, Any], mask: Mask, purpose: str, most: int
) -> Tensor:
    n, d = x.shape
    q, k, v = (linear(x, params, f"{name}.{what}") for what in ("query", "key", "value"))
    width, rate = d // s["n_heads"], s["attention_dropout"]
    factors = mask(f"{purpose} weights", s["n_heads"] * most, rate) if rate else None
    rows = []
    for t in range(n):
        heads = []
        for head in range(s["n_heads"]):
            part = slice(head * width, (head + 1) * width)
            logits = torch.stack([q[t, part] @ k[e, part] for e in range(t + 1)]) / sqrt(width)
            e = torch.exp(logits - logits.max())
            shares = e / e.sum()
            if factors is not None:
                shares = shares * factors[t, head * most : head * most + t + 1]
            heads.append(shares @ v[: t + 1, part])
        rows.append(torch.cat(heads))
    attended = torch.stack(rows)
    return attended if s["pre"] else linear(attended, params, f"{name}.output")


def feed_forward(x: Tensor, params: Parameters, name: str, s: dict[str, Any]) -> Tensor:
    hidden = linear(x, params, f"{name}.inner")
    if s["pre"]:
        hidden = torch.where(hidden > 0, hidden, 0.0 * hidden)
    else:
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / sqrt(2.0)))
    return linear(hidden, params, f"{name}.outer")


def encode(params: Parameters, case: Case, preset: str, x: Tensor, mask: Mask) -> Tensor:
    s, n, most = settings(case, preset), len(x), sequences.longest(case)
    first = case.config["max_len"] - n if s["pre"] else 0
    x = x + params["position_embedding"][first : first + n]
    if not s["pre"]:
        x = layer_norm(x, params, "norm", s["eps"])
    x = lost(x, mask, "dropout", s["dropout"])
    for k in range(s["n_layers"]):
        name, purpose = f"blocks.{k}", f"dropout {k}"
        norms = [f"{name}.norms.{i}" for i in range(2)]
        y = layer_norm(x, params, norms[0], s["eps"]) if s["pre"] else x
        y = attention(y, params, name, s, mask, purpose, most)
        x = x + lost(y, mask, f"{purpose} attended", s["dropout"])
        x = x if s["pre"] else layer_norm(x, params, norms[0], s["eps"])
        y = layer_norm(x, params, norms[1], s["eps"]) if s["pre"] else x
        y = feed_forward(y, params, name, s)
        x = x + lost(y, mask, f"{purpose} fed", s["dropout"])
        x = x if s["pre"] else layer_norm(x, params, norms[1], s["eps"])
    return layer_norm(x, params, "norm", s["eps"]) if s["pre"] else x


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    return sequences.loss_terms(sys.modules[__name__], params, case, preset, batch)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    return sequences.scores(sys.modules[__name__], params, case, preset)


def run(params: Parameters, case: Case, preset: str, steps: Any, lr: float) -> Any:
    return sequences.run(sys.modules[__name__], params, case, preset, steps, lr)
