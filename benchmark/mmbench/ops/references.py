"""The fused operations, each beside its formula in plain torch operations.

Nothing here is fast and nothing runs in a training: a formula says what its fused operation
computes, with gradients by autograd. `tests/mmbench/ops/test_fused.py` holds every entry of `FUSED`
against its formula; a fused operation without an entry is not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mmbench.ops.dense import cosines, leaky_mix, linear, normalise_rows
from mmbench.ops.graph import propagate
from mmbench.ops.knn import cosine_knn, gathered_cosines
from mmbench.ops.norms import norm, squared_norm
from mmbench.ops.routing import confident_weights, plain_confident_weights, plain_routing, routing
from mmbench.ops.row_table import BETA1, BETA2, EPSILON, RowTable
from mmbench.ops.rows import grouped, pair_scores, take
from mmbench.ops.sparse import SparseMatrix, SparsePattern, weighted_product


class FusedOp(NamedTuple):
    """A fused operation and its formula, which take the same arguments and return the same."""

    fused: Callable[..., Any]
    plain: Callable[..., Any]


def dense(pattern: SparsePattern, values: Tensor) -> Tensor:
    """The matrix with these values at the entries of a pattern, differentiable."""
    return values.new_zeros(pattern.shape).index_put((pattern.row, pattern.indices), values)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def plain_leaky_mix(
    x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor, of: SparseMatrix | None = None
) -> Tensor:
    """LR(A X C) M^T + b."""
    sent = x if of is None else of.to_dense() @ x
    return functional.leaky_relu(sent @ inner, 0.01) @ outer.T + bias


def plain_propagate(
    matrix: SparseMatrix, x: Tensor, n_layers: int, *, rows: Tensor | None = None
) -> Tensor:
    """(x + A x + … + A^L x) / (L + 1), all rows or some."""
    layers = [x]
    for _ in range(n_layers):
        layers.append(matrix.to_dense() @ layers[-1])
    mean = torch.stack(layers).mean(0)
    return mean if rows is None else mean[rows]


def plain_knn(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each row; 1 to itself, 0 where a row is zero, ties by row."""
    # n x n cosines: what `cosine_knn` never holds.
    unit = functional.normalize(x, dim=1)
    # Rounding may leave [-1, 1] by one bit.
    cosines = (unit @ unit.T).fill_diagonal_(1.0).clamp(-1, 1)
    values, rows = cosines.sort(dim=1, descending=True, stable=True)
    return rows[:, :k], values[:, :k]


def plain_gathered_cosines(x: Tensor, neighbours: Tensor) -> Tensor:
    """cos(x_i, x_j) for each j that is listed for i; a zero row is similar to itself alone."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    zero = norm == 0
    # Zero rows are divided by 1: 0 / 0 would give a NaN gradient even where `where` drops it.
    unit = torch.where(zero, 0.0, x / torch.where(zero, 1.0, norm))
    itself = neighbours == torch.arange(len(x), device=x.device)[:, None]
    return (unit[:, None] * unit[neighbours]).sum(2).masked_fill(itself & zero, 1.0)


Step = tuple[Tensor, Tensor, Tensor, float]
"""Row numbers (k,), G (k, out) and W (out, dim), whose product is the rows' gradient, and lr."""


def deferred_adam(start: Tensor, steps: Sequence[Step]) -> Tensor:
    """A `RowTable` after some steps, each with a gradient for some of its rows."""
    table = RowTable(start.detach().clone(memory_format=torch.contiguous_format))
    for rows, upper, weight, lr in steps:
        # The derivative of this sum by the projection is G, that by the rows G W.
        loss: Any = (table.project(rows, weight.detach()) * upper).sum()
        loss.backward()
        table.step(lr)
    return table.read()


def plain_adam(start: Tensor, steps: Sequence[Step]) -> Tensor:
    """Dense Adam: every entry moves at every step. Kingma & Ba (ICLR 2015), algorithm 1."""
    p, m, v = start.detach().clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (rows, upper, weight, lr) in enumerate(steps, start=1):
        # The rows of the step get the gradient G W, all others zero: they move by momentum.
        g = torch.zeros_like(start).index_copy(0, rows, upper @ weight)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        # m and v start at 0, which biases them towards 0 in the first steps.
        unbiased = m / (1 - BETA1**t), v / (1 - BETA2**t)
        p = p - lr * unbiased[0] / (unbiased[1].sqrt() + EPSILON)
    return p


FUSED: dict[str, FusedOp] = {
    "linear": FusedOp(linear, plain_linear),
    "leaky_mix": FusedOp(leaky_mix, plain_leaky_mix),
    "cosines": FusedOp(
        cosines, lambda x, y: functional.cosine_similarity(x, y.detach(), dim=1, eps=1e-8)
    ),
    "pair_scores": FusedOp(
        lambda user, x, rows: pair_scores(user, x, grouped(rows)),
        lambda user, x, rows: (user.repeat(2, 1) * x[rows]).sum(1).chunk(2),
    ),
    "take": FusedOp(take, lambda x, index: x[index]),
    "normalise_rows": FusedOp(normalise_rows, functional.normalize),
    "squared_norm": FusedOp(squared_norm, lambda x, y: x.square().sum() + y.square().sum()),
    "norm": FusedOp(norm, torch.linalg.vector_norm),
    "sparse product": FusedOp(
        lambda matrix, x: matrix @ x, lambda matrix, x: matrix.to_dense() @ x
    ),
    "sparse rows": FusedOp(
        lambda matrix, rows, x: matrix.rows(rows) @ x,
        lambda matrix, rows, x: matrix.to_dense()[rows] @ x,
    ),
    "weighted_product": FusedOp(
        weighted_product, lambda pattern, values, x: dense(pattern, values) @ x
    ),
    "propagate": FusedOp(propagate, plain_propagate),
    "cosine_knn": FusedOp(cosine_knn, plain_knn),
    "gathered_cosines": FusedOp(gathered_cosines, plain_gathered_cosines),
    "routing": FusedOp(routing, plain_routing),
    "confident_weights": FusedOp(confident_weights, plain_confident_weights),
    "row_table": FusedOp(deferred_adam, plain_adam),
}
