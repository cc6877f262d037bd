"""GRU4Rec, plainly. Hidasi et al., ICLR 2016 (arXiv 1511.06939); Tan et al., DLRS 2016.

    r = sigmoid(W_r x + U_r h),  u = sigmoid(W_u x + U_u h),  c = tanh(W_c x + r * (U_c h))
    h <- (1 - u) * c + u * h,  from zero;  after each item W_o h + b_o

Choices:
    * Rows of the two tensors of a layer: reset, update, candidate. No biases.
    * Dropout is on the first layer's input alone.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common, sequences
from .common import Batch, Case, Parameters, linear
from .sequences import Mask, lost

PRESETS: dict[str, dict[str, Any]] = {"paper": {}}
CONFIGS = {
    "small": sequences.config(n_layers=2, hidden_dim=6, dropout=0.4),
    "middle": sequences.config(embedding_dim=8, max_len=9, n_layers=1, hidden_dim=5, dropout=0.2),
}


def loss_of(case: Case, preset: str) -> str:
    return str(case.config.get("loss", "softmax"))


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    d, h = case.config["embedding_dim"], case.config["hidden_dim"]
    params = sequences.item_parameters(case, rng, lambda *shape: sequences.xavier(rng, *shape))
    for k in range(case.config["n_layers"]):
        params[f"layers.{k}.input"] = common.xavier_uniform(rng, 3 * h, h if k else d)
        params[f"layers.{k}.state"] = common.xavier_uniform(rng, 3 * h, h)
    params["output.weight"] = common.linear_weight(rng, d, h)
    params["output.bias"] = common.linear_bias(rng, d, h)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return sorted(parameters(case, preset, np.random.default_rng(0)))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def encode(params: Parameters, case: Case, preset: str, x: Tensor, mask: Mask) -> Tensor:
    h = case.config["hidden_dim"]
    x = lost(x, mask, "dropout", case.config["dropout"])
    for k in range(case.config["n_layers"]):
        w, u = params[f"layers.{k}.input"], params[f"layers.{k}.state"]
        state, states = torch.zeros(h, dtype=x.dtype), []
        for row in x:
            reset = sigmoid(w[:h] @ row + u[:h] @ state)
            update = sigmoid(w[h : 2 * h] @ row + u[h : 2 * h] @ state)
            candidate = torch.tanh(w[2 * h :] @ row + reset * (u[2 * h :] @ state))
            state = (1 - update) * candidate + update * state
            states.append(state)
        x = torch.stack(states)
    return linear(x, params, "output")


def loss_terms(params: Parameters, case: Case, preset: str, batch: Batch) -> dict[str, Tensor]:
    return sequences.loss_terms(sys.modules[__name__], params, case, preset, batch)


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    return sequences.scores(sys.modules[__name__], params, case, preset)


def run(params: Parameters, case: Case, preset: str, steps: Any, lr: float) -> Any:
    return sequences.run(sys.modules[__name__], params, case, preset, steps, lr)
