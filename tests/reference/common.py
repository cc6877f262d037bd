"""What the six references share: the case, initialisers, graphs, kNN, losses, dense Adam.

The files of this folder state the six recommenders plainly: dense float64 matrices, loops where
they are clearest, gradients by autograd, and no import of the package under test. Each model file
exports

    PRESETS      the switches of `paper`, `original` and `corrected`, every field of every preset
    parameters   fresh parameters with the documented distributions
    trainable    the names the optimiser owns
    scores       (n_users, n_items) inference scores, before any masking
    loss_terms   named scalar terms of one batch; the loss is their sum
    run          the parameters after chosen numbers of optimiser steps
    GRADIENTS    per preset, the tensors whose gradient is not identically zero (two-modality cases)

and lists, under "Choices", what its sources leave open and what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Batch = Mapping[
    str, Any
]  # users, pos and, where the model samples negatives, neg: int64 arrays of equal length


@dataclass(frozen=True)
class Case:
    """One fixed problem: a train graph, item features and hyper-parameters.

    Args:
        n_users: Users; each occurs in train.
        n_items: Items; each occurs in train.
        train_users: (n_edges,) int64, sorted by (user, item), pairs unique.
        train_items: (n_edges,) int64, aligned with `train_users`.
        features: modality -> (n_items, k_m) float64; the order of the dict is the order of the
            modalities.
        config: hyper-parameters and switches; what is given here wins over the preset.
    """

    n_users: int
    n_items: int
    train_users: np.ndarray
    train_items: np.ndarray
    features: dict[str, np.ndarray]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.features)

    @property
    def n_edges(self) -> int:
        return len(self.train_users)

    @property
    def positives(self) -> list[set[int]]:
        """N(u) for every user."""
        sets: list[set[int]] = [set() for _ in range(self.n_users)]
        for u, i in zip(self.train_users, self.train_items, strict=True):
            sets[int(u)].add(int(i))
        return sets

    def feature(self, modality: str) -> Tensor:
        return torch.tensor(self.features[modality], dtype=torch.float64)


# ------------------------------------------------------------------------------------- initialisers


def xavier_uniform(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """xu: U(-a, a) with a = sqrt(6 / (rows + columns))."""
    a = sqrt(6.0 / (rows + columns))
    return torch.tensor(rng.uniform(-a, a, (rows, columns)))


def xavier_normal(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """xn: N(0, 2 / (rows + columns))."""
    return torch.tensor(rng.normal(0.0, sqrt(2.0 / (rows + columns)), (rows, columns)))


def standard_normal(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    """N01."""
    return torch.tensor(rng.normal(0.0, 1.0, (rows, columns)))


def linear_weight(rng: np.random.Generator, n_out: int, n_in: int) -> Tensor:
    """lin: U(-1/sqrt(n_in), 1/sqrt(n_in)), shape (n_out, n_in)."""
    return torch.tensor(rng.uniform(-1.0 / sqrt(n_in), 1.0 / sqrt(n_in), (n_out, n_in)))


def linear_bias(rng: np.random.Generator, n_out: int, n_in: int) -> Tensor:
    """lin: the bias has the range of the weight, U(-1/sqrt(n_in), 1/sqrt(n_in))."""
    return torch.tensor(rng.uniform(-1.0 / sqrt(n_in), 1.0 / sqrt(n_in), n_out))


# ------------------------------------------------------------------------------------------------
# small functions


def rn(x: Tensor) -> Tensor:
    """Rows divided by max(L2 norm, 1e-12)."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def leaky_relu(x: Tensor) -> Tensor:
    """LR: max(x, 0.01 x)."""
    return torch.where(x > 0, x, 0.01 * x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without overflow."""
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def bpr(difference: Tensor) -> Tensor:
    """Mean of -log sigmoid(difference)."""
    return softplus(-difference).sum() / len(difference)


def sum_of_squares(*tensors: Tensor) -> Tensor:
    """Sum of all squared entries of all tensors."""
    return torch.stack([(t * t).sum() for t in tensors]).sum()


def linear(x: Tensor, params: Parameters, name: str) -> Tensor:
    """x W^T + b, with the bias left out where there is none."""
    y = x @ params[f"{name}.weight"].T
    return y + params[f"{name}.bias"] if f"{name}.bias" in params else y


# ------------------------------------------------------------------------------------------- graphs


def adjacency(case: Case, edges: np.ndarray | None = None) -> Tensor:
    """A, symmetric 0/1 over users, then items, of all train edges or the given ones."""
    n = case.n_users + case.n_items
    a = torch.zeros((n, n), dtype=torch.float64)
    for e in range(case.n_edges) if edges is None else edges:
        u, i = int(case.train_users[e]), case.n_users + int(case.train_items[e])
        a[u, i] = a[i, u] = 1.0
    return a


def symmetric_normalised(a: Tensor) -> Tensor:
    """a_rc / sqrt((d_r + 1e-7) (d_c + 1e-7)), d the row sums of `a`."""
    d = a.sum(1) + 1e-7
    return a / torch.sqrt(d[:, None] * d[None, :])


def cosines(x: Tensor) -> Tensor:
    """All pairs of rows; a zero row has cosine 0 to the others and 1 to itself."""
    norm = x.norm(dim=1)
    zero = norm == 0
    unit = x / torch.where(zero, torch.ones_like(norm), norm)[:, None]
    # Not a matrix product: a sum over the last axis gives equal rows exactly equal cosines,
    # wherever they stand.
    c = (unit[:, None, :] * unit[None, :, :]).sum(2)
    return torch.where(torch.diag(zero), torch.ones_like(c), c)


def nearest(c: Tensor, k: int) -> list[list[int]]:
    """Per row the k columns of largest value, itself included; ties go to the smaller index."""

    def best(row: list[float]) -> list[int]:
        return sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]

    return [best(row) for row in c.detach().tolist()]


# ---------------------------------------------------------------------------------------- optimiser


def adam(
    params: Parameters,
    names: Sequence[str],
    losses: Iterable[tuple[Callable[[Parameters], Mapping[str, Tensor]], float]],
    after: Iterable[int],
    *,
    zero_for_missing: bool = False,
) -> dict[int, Parameters]:
    """Dense Adam: every entry of every named tensor moves at every step, at zero gradient too.

    Args:
        params: Initial values; not changed.
        names: The tensors the optimiser owns.
        losses: One (terms of the loss, learning rate) per step.
        after: The numbers of steps after which the parameters are kept.
        zero_for_missing: What a step does to a tensor that its loss does not depend on: False
            leaves it and its own step counter alone; True (the older `zero_grad`) takes a step with
            a gradient of zeros.
    Returns:
        Number of steps -> all parameters (also those not owned).
    """
    wanted = set(after)
    current = {name: value.clone() for name, value in params.items()}
    m = {name: torch.zeros_like(current[name]) for name in names}
    v = {name: torch.zeros_like(current[name]) for name in names}
    t = dict.fromkeys(names, 0)
    kept: dict[int, Parameters] = {}
    for step, (terms, lr) in enumerate(losses, start=1):
        for name, gradient in gradients(current, names, terms).items():
            if gradient is None:
                if not zero_for_missing:
                    continue
                gradient = torch.zeros_like(current[name])
            t[name] += 1
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient * gradient
            denominator = torch.sqrt(v[name]) / sqrt(1.0 - 0.999 ** t[name]) + 1e-8
            current[name] = current[name] - lr / (1.0 - 0.9 ** t[name]) * m[name] / denominator
        if step in wanted:
            kept[step] = {name: value.clone() for name, value in current.items()}
        if step == max(wanted):
            return kept
    raise ValueError(f"not enough batches for {max(wanted)} steps")


def gradients(
    params: Parameters, names: Sequence[str], terms: Callable[[Parameters], Mapping[str, Tensor]]
) -> dict[str, Tensor | None]:
    """Gradient of the summed terms for each named tensor; None where the loss ignores it."""
    leaves = {
        name: value.detach().clone().requires_grad_(name in names) for name, value in params.items()
    }
    loss = torch.stack([term for term in terms(leaves).values()]).sum()
    found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    return dict(zip(names, found, strict=True))
