"""SLMRec, plainly. Tao et al., IEEE TMM 2022, 10.1109/TMM.2022.3187556.

    P x = mean of x, Ahat x, ..., Ahat^L x ;  Ahat = D^-1/2 A D^-1/2
    x_0 = Gi ;  x_m = rn(F_m) W_m^T + b_m ;  z_p = P [Gu; x_p]
    e_u = [z_0 | z_m | ...] A^T + a, e_i likewise of B, b ;  S = e_u e_i^T
    C(X, Y, t) = mean over rows b of -log(exp(<X_b, Y_b> / t) / sum_c exp(<X_b, Y_c> / t))
    L = C(rn(e of users), rn(e of positives), t) + ssl_weight * ssl + weight_decay / 2 * squares
    ssl, FAC: y_0 = z_0[positives] ;  y_k = H_k y_(k-1) + h_k ;  sum_k C(y_k, V_k z_k + v_k, t')
    ssl, FD: views whose layers are D(Ahat x), own masks ; FM: views without x_p of one part p
        C(rn(view 1), rn(view 2), t') of the batch's users and of its positives

Choices:
    * Masks are tables (U + I, d) by `<part>:<path>:<layer>`, 1 = kept; hidden parts two numbers.
      Parts: 0 the ids, then the modalities. The scale 1 / (1 - dropout) is applied here.
    * `original`: a view goes on by the other path's layers; with two modalities FAC has a further
      linear map, `spare`, before the last space.
    * The biases v_k, which cancel, are there, and nothing moves them.
    * The last space of several has half the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, rn

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"exchange_layers": False, "spare_map": False},
    "original": {"exchange_layers": True, "spare_map": True},
}
DEFAULTS = {
    "embedding_dim": 64,
    "n_layers": 3,
    "temperature": 0.2,
    "ssl_task": "FAC",
    "ssl_weight": 0.1,
    "ssl_temperature": 0.2,
    "dropout": 0.3,
    "weight_decay": 1e-4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"embedding_dim": 4, "weight_decay": 0.01},
    "middle": {
        "embedding_dim": 7,
        "n_layers": 2,
        "temperature": 0.3,
        "ssl_weight": 0.5,
        "ssl_temperature": 0.4,
        "dropout": 0.5,
        "weight_decay": 0.003,
    },
}


def settings(case: Case, preset: str) -> dict[str, Any]:
    return {**DEFAULTS, **PRESETS[preset], **case.config}


def parameters(case: Case, preset: str, rng: np.random.Generator) -> Parameters:
    s = settings(case, preset)
    d, n = s["embedding_dim"], len(case.modalities)
    params = {
        "user_embedding": common.xavier_uniform(rng, case.n_users, d),
        "item_embedding": common.xavier_uniform(rng, case.n_items, d),
    }

    def layer(name: str, n_out: int, n_in: int) -> None:
        params[f"{name}.weight"] = common.xavier_uniform(rng, n_out, n_in)
        params[f"{name}.bias"] = common.linear_bias(rng, n_out, n_in)

    for m in case.modalities:
        layer(f"projection.{m}", d, case.features[m].shape[1])
    layer("fuse_users", d, (n + 1) * d)
    layer("fuse_items", d, (n + 1) * d)
    if s["ssl_task"] == "FAC":
        for k, m in enumerate(case.modalities):
            width = d // 2 if n > 1 and k == n - 1 else d
            layer(f"chain.{m}", width, d)
            params[f"entry.{m}"] = common.xavier_uniform(rng, width, d)
            params[f"entry.{m}.bias"] = common.linear_bias(rng, width, d)
        if s["spare_map"] and n == 2:
            layer("spare", d, d)
    return params


def trainable(case: Case, preset: str) -> list[str]:
    return list(parameters(case, preset, np.random.default_rng(0)))


def draw(case: Case, preset: str, rng: np.random.Generator) -> dict[str, Any]:
    """Masks and hidden parts of one step, as far as the task needs them."""
    s, n = settings(case, preset), len(case.modalities) + 1
    size = (case.n_users + case.n_items, s["embedding_dim"])
    names = [f"{p}:{k}:{l}" for p in range(n) for k in (0, 1) for l in range(1, s["n_layers"] + 1)]
    return {
        "masks": {name: 1.0 * (rng.random(size) >= s["dropout"]) for name in names}
        if "FD" in s["ssl_task"]
        else {},
        "hidden": rng.permutation(n)[:2],
    }


def graph(case: Case) -> Tensor:
    a = common.adjacency(case)
    d = a.sum(1)
    return a / torch.sqrt(d[:, None] * d[None, :])


def starts(params: Parameters, case: Case) -> list[Tensor]:
    """x of each part, (I, d)."""
    projected = [linear(rn(case.feature(m)), params, f"projection.{m}") for m in case.modalities]
    return [params["item_embedding"], *projected]


def fused(params: Parameters, case: Case, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    z, n = torch.cat(list(parts), 1), case.n_users
    return linear(z[:n], params, "fuse_users"), linear(z[n:], params, "fuse_items")


def parts_of(params: Parameters, case: Case, preset: str) -> list[Tensor]:
    """z of each part, (U + I, d)."""
    a, found = graph(case), []
    for x in starts(params, case):
        layers = [torch.cat([params["user_embedding"], x])]
        for _ in range(settings(case, preset)["n_layers"]):
            layers.append(a @ layers[-1])
        found.append(torch.stack(layers).mean(0))
    return found


def views(
    params: Parameters, case: Case, preset: str, draws: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """e of all users and items in two views."""
    s, a, user = settings(case, preset), graph(case), params["user_embedding"]
    parts: list[list[Tensor]] = [[], []]
    for p, x in enumerate(starts(params, case)):
        paths = []
        for k in (0, 1):
            gone = "FM" in s["ssl_task"] and int(draws["hidden"][k]) == p
            layers = [torch.cat([user, torch.zeros_like(x) if gone else x])]
            for l in range(1, s["n_layers"] + 1):
                layer = a @ layers[-1]
                if "FD" in s["ssl_task"]:
                    mask = torch.as_tensor(draws["masks"][f"{p}:{k}:{l}"])
                    layer = layer * mask / (1.0 - s["dropout"])
                layers.append(layer)
            paths.append(layers)
        for k in (0, 1):
            rest = paths[1 - k if s["exchange_layers"] else k][1:]
            parts[k].append(torch.stack([paths[k][0], *rest]).mean(0))
    return [fused(params, case, some) for some in parts]


def scores(params: Parameters, case: Case, preset: str) -> Tensor:
    users, items = fused(params, case, parts_of(params, case, preset))
    return users @ items.T


def contrast(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    logits = x @ y.T / temperature
    losses = [torch.logsumexp(row, 0) - row[b] for b, row in enumerate(logits)]
    return torch.stack(losses).sum() / len(losses)


def loss_terms(
    params: Parameters, case: Case, preset: str, batch: Batch, *, draws: Mapping[str, Any]
) -> dict[str, Tensor]:
    s, u, i, n = settings(case, preset), batch["users"], batch["pos"], case.n_users
    parts = parts_of(params, case, preset)
    users, items = fused(params, case, parts)
    t = s["ssl_temperature"]
    if s["ssl_task"] == "FAC":
        y, found = parts[0][n:][i], []
        for k, m in enumerate(case.modalities):
            if k and "spare.weight" in params:
                y = linear(y, params, "spare")
            y = linear(y, params, f"chain.{m}")
            other = parts[k + 1][n:][i] @ params[f"entry.{m}"].T + params[f"entry.{m}.bias"]
            found.append(contrast(y, other, t))
        ssl = torch.stack(found).sum()
    else:
        one, other_view = views(params, case, preset, draws)
        ssl = contrast(rn(one[0][u]), rn(other_view[0][u]), t)
        ssl = ssl + contrast(rn(one[1][i]), rn(other_view[1][i]), t)
    # Not the biases of `entry`: decay alone would move them, and nothing reads them.
    decayed = [value for name, value in params.items() if not is_entry_bias(name)]
    return {
        "contrast": contrast(rn(users[u]), rn(items[i]), s["temperature"]),
        "ssl": s["ssl_weight"] * ssl,
        "l2": s["weight_decay"] / 2 * common.sum_of_squares(*decayed),
    }


def is_entry_bias(name: str) -> bool:
    return name.startswith("entry.") and name.endswith(".bias")


def run(
    params: Parameters,
    case: Case,
    preset: str,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
    *,
    draws: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[int, Parameters]:
    """`draws` is parallel to `epochs`: masks and hidden parts of each batch."""
    steps = (
        (lambda now, batch=batch, one=one: loss_terms(now, case, preset, batch, draws=one), lr)
        for epoch, of_epoch in zip(epochs, draws, strict=True)
        for batch, one in zip(epoch, of_epoch, strict=True)
    )
    return common.adam(params, trainable(case, preset), steps, after)
