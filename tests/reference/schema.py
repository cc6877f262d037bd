"""The schema, plainly: every cell in dense matrices. arXiv 2309.05273, as docs/models/schema.md.

    C_u = mean over the training items of u of C_i
    c = rn(C W^T + b), or C W^T                                   joint: C the features side by side
    parts of x: [id] + [content, or a table in place of it where parts meet one by one]
    early: S = z_u z_i^T, z = rho(gamma(parts)); intermediate: z = gamma(rho(part), ...);
    late: gamma_l of z_u^p z_i^pT over p
    L = bpr(D) + reg_weight / (2 B) sum over b and parts of |u|^2 + |i|^2 + |j|^2 + alignment

Choices:
    * Tables in place of content exist for fusion other than early, and for concat. With ids = users
      such tables are the ids, and there is no further one.
    * lightgcn: (I + S + ... + S^L) / (L + 1) with S = D^-1/2 A D^-1/2, nothing added to degrees.
    * mlp: n_layers matrices with relu between them, square, biases in all but the last.
    * One vector is never fused; its operator has no parameters.
    * alignment: over ordered pairs of modalities and rows b of the batch: rows of the same item are
      no negatives of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common
from .common import Batch, Case, Parameters, linear, rn

DEFAULTS: dict[str, Any] = {
    "representation": "coordinate",
    "fusion": "early",
    "operator": "concat",
    "query": "shared",
    "side": "item",
    "ids": "both",
    "backbone": "dot",
    "n_layers": 2,
    "normalise": True,
    "embedding_dim": 4,
    "reg_weight": 0.02,
    "alignment_weight": 0.0,
    "temperature": 0.2,
}


def settings(case: Case) -> dict[str, Any]:
    return {**DEFAULTS, **case.config}


def _stored(case: Case) -> dict[str, Tensor]:
    """C_i by content part."""
    each = {m: case.feature(m) for m in case.modalities}
    if settings(case)["representation"] == "joint":
        return {"joint": torch.cat(list(each.values()), 1)}
    return each


def _history(case: Case) -> Tensor:
    """R, (n_users, n_items): 1 / |N(u)| at the items of u."""
    r = torch.zeros((case.n_users, case.n_items), dtype=torch.float64)
    for u, i in zip(case.train_users, case.train_items, strict=True):
        r[int(u), int(i)] = 1.0
    return r / r.sum(1, keepdim=True)


def _one_by_one(s: dict[str, Any]) -> bool:
    return s["fusion"] != "early" or s["operator"] == "concat"


def names(case: Case, who: str) -> list[tuple[str, str]]:
    """The parts of a user or an item: (`table`, parameter) or (`content`, part)."""
    s = settings(case)
    content = s["side"] in (who, "both")
    has_id = s["ids"] == "both" or (s["ids"] == "users" and who == "user")
    tables = [] if content or not _one_by_one(s) else [f"{who}_part.{p}" for p in _stored(case)]
    if has_id and not (tables and s["ids"] == "users"):
        tables = [f"{who}_id", *tables]
    found = [("table", name) for name in tables]
    return found + [("content", p) for p in _stored(case)] if content else found


def parameters(case: Case, rng: np.random.Generator) -> Parameters:
    s, d = settings(case), settings(case)["embedding_dim"]
    sizes = {"user": case.n_users, "item": case.n_items}
    params: Parameters = {}
    n_parts = {who: len(names(case, who)) for who in sizes}
    asked = s["query"] == "user" and s["fusion"] != "late" and n_parts["item"] > 1

    def layer(name: str, width: int, out: int, bias: bool = True) -> None:
        params[f"{name}.weight"] = common.linear_weight(rng, out, width)
        if bias:
            params[f"{name}.bias"] = common.linear_bias(rng, out, width)

    for part, x in _stored(case).items():
        layer(f"projection.{part}", x.shape[1], d, s["normalise"])
    for who, n in sizes.items():
        for kind, name in names(case, who):
            if kind == "table":
                params[name] = torch.tensor(rng.normal(0.0, 0.5, (n, d)))
        if s["fusion"] == "late":
            gamma = who == ("user" if s["query"] == "user" else "item")
        else:
            gamma = not (asked and who == "item")
        if gamma and n_parts[who] > 1:
            if s["operator"] == "weighted":
                params[f"fusion.{who}.logits"] = torch.tensor(rng.normal(0.0, 0.3, n_parts[who]))
            if s["operator"] == "attention":
                params[f"fusion.{who}.query"] = torch.tensor(rng.normal(0.0, 1.0, (1, d)))
                layer(f"fusion.{who}.asking", d, d)
            if s["operator"] == "gate":
                for k in range(n_parts[who]):
                    layer(f"fusion.{who}.gates.{k}", d, d)
        if s["backbone"] == "mlp":
            early = s["fusion"] == "early"
            width = d * n_parts[who] if early and s["operator"] == "concat" else d
            for p in range(1 if early else n_parts[who]):
                for k in range(s["n_layers"]):
                    layer(f"tower.{who}.{p}.{k}", width, width, k < s["n_layers"] - 1)
    if asked:
        params["question"] = torch.tensor(rng.normal(0.0, 0.5, (d, d)))
    return params


def content(params: Parameters, case: Case, who: str, part: str) -> Tensor:
    x = _stored(case)[part]
    y = linear(_history(case) @ x if who == "user" else x, params, f"projection.{part}")
    return rn(y) if settings(case)["normalise"] else y


def parts(params: Parameters, case: Case, who: str) -> list[Tensor]:
    return [
        params[name] if kind == "table" else content(params, case, who, name)
        for kind, name in names(case, who)
    ]


def shares(params: Parameters, case: Case, who: str, vectors: list[Tensor]) -> Tensor:
    """What each part counts, (n, number of parts)."""
    if settings(case)["operator"] == "weighted":
        e = torch.exp(params[f"fusion.{who}.logits"])
        return (e / e.sum())[None, :].repeat(len(vectors[0]), 1)
    query = params[f"fusion.{who}.query"][0]
    logits = [torch.tanh(linear(v, params, f"fusion.{who}.asking")) @ query for v in vectors]
    e = torch.exp(torch.stack(logits, 1))
    return e / e.sum(1, keepdim=True)


def gamma(params: Parameters, case: Case, who: str, vectors: list[Tensor]) -> Tensor:
    operator = settings(case)["operator"]
    if len(vectors) == 1:
        return vectors[0]
    if operator == "concat":
        return torch.cat(vectors, 1)
    if operator in ("weighted", "attention"):
        a = shares(params, case, who, vectors)
        return torch.stack([a[:, k : k + 1] * v for k, v in enumerate(vectors)]).sum(0)
    if operator == "gate":
        return torch.stack(
            [v / (1 + torch.exp(-linear(v, params, f"fusion.{who}.gates.{k}")))
             for k, v in enumerate(vectors)]
        ).sum(0)  # fmt: skip
    stack = torch.stack(vectors)
    if operator == "max":
        return stack.max(0).values
    return {"sum": stack.sum(0), "mean": stack.mean(0), "product": stack.prod(0)}[operator]


def rho(
    params: Parameters, case: Case, users: list[Tensor], items: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    s = settings(case)
    if s["backbone"] == "dot":
        return users, items
    if s["backbone"] == "lightgcn":
        a = common.adjacency(case)
        d = a.sum(1)
        step = a / torch.sqrt(d[:, None] * d[None, :])
        matrix = power = torch.eye(len(a), dtype=torch.float64)
        for _ in range(s["n_layers"]):
            power = power @ step
            matrix = matrix + power
        z = [
            matrix @ torch.cat(pair) / (s["n_layers"] + 1)
            for pair in zip(users, items, strict=True)
        ]
        return [x[: case.n_users] for x in z], [x[case.n_users :] for x in z]
    towers = []
    for who, vectors in (("user", users), ("item", items)):
        out = []
        for p, x in enumerate(vectors):
            for k in range(s["n_layers"]):
                x = linear(x.clamp_min(0) if k else x, params, f"tower.{who}.{p}.{k}")
            out.append(x)
        towers.append(out)
    return towers[0], towers[1]


def scores(params: Parameters, case: Case) -> Tensor:
    s = settings(case)
    users, items = (parts(params, case, who) for who in ("user", "item"))
    asked = s["query"] == "user" and s["fusion"] != "late" and len(items) > 1
    if s["fusion"] == "early":
        users = [gamma(params, case, "user", users)]
        items = items if asked else [gamma(params, case, "item", items)]
    users, items = rho(params, case, users, items)
    if s["fusion"] == "intermediate":
        users = [gamma(params, case, "user", users)]
        items = items if asked else [gamma(params, case, "item", items)]
    if asked:
        z = torch.stack(items, 1)  # (n_items, P, d)
        question = users[0] @ params["question"].T / s["embedding_dim"] ** 0.5
        e = torch.exp(torch.einsum("ud,ipd->uip", question, z))
        return (e / e.sum(2, keepdim=True) * torch.einsum("ud,ipd->uip", users[0], z)).sum(2)
    each = torch.stack([u @ i.T for u, i in zip(users, items, strict=True)])  # (P, users, items)
    if len(each) == 1:
        return each[0]
    if s["operator"] in ("weighted", "attention"):
        who, own = ("user", users) if s["query"] == "user" else ("item", items)
        a = shares(params, case, who, own).T  # (P, n)
        return (each * (a[:, :, None] if who == "user" else a[:, None, :])).sum(0)
    if s["operator"] == "product":
        return -torch.log1p(torch.exp(-each)).sum(0)
    if s["operator"] == "max":
        return each.max(0).values
    return each.sum(0) if s["operator"] == "sum" else each.mean(0)


def loss_terms(params: Parameters, case: Case, batch: Batch) -> dict[str, Tensor]:
    s = settings(case)
    u, i, j = batch["users"], batch["pos"], batch["neg"]
    all_scores = scores(params, case)
    rows = [x[u] for x in parts(params, case, "user")]
    rows += [x[k] for x in parts(params, case, "item") for k in (i, j)]
    terms = {
        "bpr": common.bpr(all_scores[u, i] - all_scores[u, j]),
        "l2": s["reg_weight"] / (2 * len(u)) * common.sum_of_squares(*rows),
    }
    if s["alignment_weight"]:
        unit = [rn(content(params, case, "item", m)) for m in case.modalities]
        total = torch.zeros((), dtype=torch.float64)
        for x in unit:
            for y in unit:
                if x is y:
                    continue
                for b, item in enumerate(i):
                    others = [k for c, k in enumerate(i) if c == b or k != item]
                    e = torch.exp(y[others] @ x[item] / s["temperature"])
                    total = total - torch.log(
                        torch.exp(y[item] @ x[item] / s["temperature"]) / e.sum()
                    )
        n_pairs = len(unit) * (len(unit) - 1)
        terms["alignment"] = s["alignment_weight"] * total / (n_pairs * len(i))
    return terms


def run(
    params: Parameters,
    case: Case,
    epochs: Sequence[Sequence[Batch]],
    lr: float,
    after: Iterable[int] = (1, 2, 30),
) -> dict[int, Parameters]:
    steps = (
        (lambda now, batch=batch: loss_terms(now, case, batch), lr)
        for epoch in epochs
        for batch in epoch
    )
    return common.adam(params, sorted(params), steps, after)
