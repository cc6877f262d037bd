"""What the references of sequence models share: histories, batches, masks, items, losses.

A model file has `encode(params, case, preset, x, mask)`: from the vectors of a sequence's items,
(n, d), to a vector after each of them, (n, d), for one sequence at a time. Everything is said in
the settings' names of the package.

Choices:
    * A history is a user's items in a drawn order; every third user comes back to the first item.
    * Of a history the last max_len + 1 items are trained on, the last max_len are scored with.
    * A batch lists its sequences by length, longest first; the loss is a mean over all its steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from math import sqrt
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, softplus

Mask = Callable[[str, int, float], Tensor | None]
"""Purpose, width and rate to the factors of a sequence's steps, (n, width): 0 or 1 / (1 - rate)."""

N_EPOCHS, N_STEPS = 6, 5


def histories(case: Case) -> list[list[int]]:
    """Each user's items in order, some of them twice."""
    rng = np.random.default_rng(23)
    found = []
    for user, items in enumerate(case.positives):
        own = [int(i) for i in rng.permutation(sorted(items))]
        found.append([*own, own[0]] if user % 3 == 0 else own)
    return found


def epochs(case: Case) -> list[list[Batch]]:
    """Batches of users with two items or more, the last one of an epoch of one user."""
    rng, all_of = np.random.default_rng(29), histories(case)
    most = case.config["max_len"] + 1
    usable = [user for user, items in enumerate(all_of) if len(items) > 1]
    found = []
    for epoch in range(1, N_EPOCHS + 1):
        steps: list[Batch] = []
        for step in range(N_STEPS):
            size = 1 if step == N_STEPS - 1 else min(len(usable), 7 + step)
            users = rng.choice(usable, size, replace=False)
            users = sorted(users, key=lambda user: -min(len(all_of[user]), most))
            sequences = [all_of[user][-most:] for user in users]
            negatives = [
                [
                    int(rng.choice([i for i in range(case.n_items) if i not in case.positives[u]]))
                    for _ in sequence[1:]
                ]
                for u, sequence in zip(users, sequences, strict=True)
            ]
            steps.append(
                {"sequences": sequences, "negatives": negatives, "epoch": epoch, "step": step}
            )
        found.append(steps)
    return found


def longest(case: Case) -> int:
    """Most steps of a sequence in training."""
    return min(case.config["max_len"], max(map(len, histories(case))) - 1)


def kept(case: Case, batch: Batch, purpose: str, width: int, rate: float) -> np.ndarray:
    """Which numbers a dropout keeps, for each sequence and step, (B, longest, width)."""
    rng = np.random.default_rng([batch["epoch"], batch["step"], zlib.crc32(purpose.encode())])
    return rng.random((len(batch["sequences"]), longest(case), width)) >= rate


# ------------------------------------------------------------------------------------------- items


def n_parts(case: Case) -> int:
    kind = case.config.get("items", "ids")
    return (kind != "content") + (kind != "ids") * len(case.modalities)


def item_parameters(
    case: Case, rng: np.random.Generator, table: Callable[[int, int], Tensor]
) -> Parameters:
    """Fresh tensors of the items' representation; `table` draws the ids'."""
    d, kind = case.config["embedding_dim"], case.config.get("items", "ids")
    operator, n = case.config.get("operator", "sum"), n_parts(case)
    params: Parameters = {}

    def layer(name: str, n_in: int) -> None:
        params[f"{name}.weight"] = common.linear_weight(rng, d, n_in)
        params[f"{name}.bias"] = common.linear_bias(rng, d, n_in)

    if kind != "content":
        params["item_embedding"] = table(case.n_items, d)
    for m in case.modalities if kind != "ids" else ():
        layer(f"projection.{m}", case.feature(m).shape[1])
    if n > 1:
        if operator == "concat":
            layer("joined", n * d)
        if operator == "weighted":
            params["fusion.logits"] = torch.tensor(rng.normal(size=n))
        if operator == "attention":
            params["fusion.query"] = common.xavier_uniform(rng, 1, d)
            layer("fusion.asking", d)
        for k in range(n) if operator == "gate" else ():
            layer(f"fusion.gates.{k}", d)
    return params


def items(params: Parameters, case: Case) -> Tensor:
    """Z of all items, (n_items, d)."""
    kind, operator = case.config.get("items", "ids"), case.config.get("operator", "sum")
    parts = [] if kind == "content" else [params["item_embedding"]]
    if kind != "ids":
        parts += [linear(case.feature(m), params, f"projection.{m}") for m in case.modalities]
    if len(parts) == 1:
        return parts[0]
    p = torch.stack(parts)  # (K, n_items, d)
    if operator == "concat":
        return linear(torch.cat(parts, 1), params, "joined")
    if operator == "weighted":
        e = torch.exp(params["fusion.logits"])
        return (p * (e / e.sum())[:, None, None]).sum(0)
    if operator == "attention":
        asked = torch.stack([torch.tanh(linear(x, params, "fusion.asking")) for x in parts])
        e = torch.exp(asked @ params["fusion.query"][0])  # (K, n_items)
        return (p * (e / e.sum(0))[:, :, None]).sum(0)
    if operator == "gate":
        opened = [linear(x, params, f"fusion.gates.{k}") for k, x in enumerate(parts)]
        return sum(x / (1 + torch.exp(-g)) for x, g in zip(parts, opened, strict=True))  # type: ignore[return-value]
    return {"sum": p.sum(0), "mean": p.mean(0), "product": p.prod(0), "max": p.amax(0)}[operator]


# ------------------------------------------------------------------------------------------ losses


def loss_terms(
    model: ModuleType, params: Parameters, case: Case, preset: str, batch: Batch
) -> dict[str, Tensor]:
    z, loss = items(params, case), model.loss_of(case, preset)
    terms = []
    for row, (sequence, negatives) in enumerate(
        zip(batch["sequences"], batch["negatives"], strict=True)
    ):

        def mask(purpose: str, width: int, rate: float, row: int = row) -> Tensor:
            factors = kept(case, batch, purpose, width, rate)[row] / (1 - rate)
            return torch.tensor(factors)

        h = model.encode(params, case, preset, z[sequence[:-1]], mask)
        for t, (i, j) in enumerate(zip(sequence[1:], negatives, strict=True)):
            if loss == "softmax":
                logits = h[t] @ z.T
                best = logits.max()
                terms.append(best + torch.log(torch.exp(logits - best).sum()) - logits[i])
            else:
                terms.append(softplus(-(h[t] @ z[i])) + softplus(h[t] @ z[j]))
    return {loss: torch.stack(terms).mean()}


def scores(model: ModuleType, params: Parameters, case: Case, preset: str) -> Tensor:
    z, most = items(params, case), case.config["max_len"]

    def no_mask(purpose: str, width: int, rate: float) -> None:
        return None

    return torch.stack(
        [
            model.encode(params, case, preset, z[own[-most:]], no_mask)[-1] @ z.T
            for own in histories(case)
        ]
    )


def run(
    model: ModuleType,
    params: Parameters,
    case: Case,
    preset: str,
    steps: Sequence[Sequence[Batch]],
    lr: float,
    after: Sequence[int] = (1, 2, 30),
) -> dict[int, Parameters]:
    def terms(batch: Batch) -> Callable[[Parameters], dict[str, Tensor]]:
        return lambda now: loss_terms(model, now, case, preset, batch)

    every = ((terms(batch), lr) for epoch in steps for batch in epoch)
    return common.adam(params, sorted(params), every, after)


def lost(x: Tensor, mask: Mask, purpose: str, rate: float) -> Tensor:
    """X after a dropout."""
    factors = mask(purpose, x.shape[1], rate) if rate else None
    return x if factors is None else x * factors[: len(x)]


def small_normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """N(0, 0.02²)."""
    return torch.tensor(rng.normal(0.0, 0.02, shape))


def xavier(rng: np.random.Generator, *shape: int) -> Tensor:
    """xn."""
    return torch.tensor(rng.normal(0.0, sqrt(2.0 / sum(shape)), shape))


def config(**changes: Any) -> dict[str, Any]:
    """Settings of the small case; the middle one is wider."""
    return {"embedding_dim": 4, "max_len": 5, **changes}
