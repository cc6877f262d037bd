"""How several vectors of one user or item become one, or several scores: gamma of the schema.

    concat     [p_1; p_2; …]                            sum        sum_k p_k
    mean       1/K sum_k p_k                            product    p_1 * p_2 * …, entry by entry
    max        max_k p_k, entry by entry                weighted   sum_k softmax(w)_k p_k
    attention  sum_k softmax_k(<q, tanh(A p_k + a)>) p_k
    gate       sum_k sigmoid(G_k p_k + g_k) * p_k

Scores s_k of late fusion have sum, mean and max; product is sum_k log sigmoid(s_k), which orders as
the product of the sigmoids; weighted and attention weigh the vectors that the scores are made of.

Sources: weighted as in LATTICE (Zhang et al., ACM MM 2021), which weighs its graphs so; attention
as the semantic-level one of HAN (Wang et al., WWW 2019), for each row by itself; gate after the
gated multimodal units of Arevalo et al. (arXiv 1702.01992), each vector with a gate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init, zeros
from mmbench.ops.dense import linear

Operator = Literal["concat", "sum", "mean", "product", "max", "weighted", "attention", "gate"]


class Fusion(nn.Module):
    """One operator over K vectors of width d each.

    Args:
        operator: Which; its trainable tensors are `logits` w (K,), or `query` q (d,) and `asking` A
            (d, d) with bias a (d,), or `gates.<k>` G_k (d, d) with bias g_k (d,).
        n_parts: K >= 1. One vector stays as it is, and nothing is trained for it.
        width: d.
        name: Prefix of the purposes of the initial values.
        init: Draws them.
    """

    def __init__(self, operator: Operator, n_parts: int, width: int, name: str, init: Init) -> None:
        super().__init__()
        self.operator: Operator = operator if n_parts > 1 else "concat"
        if self.operator == "weighted":
            self.logits = zeros(n_parts)
        elif self.operator == "attention":
            self.query = init.xavier_uniform(f"{name}.query", 1, width)
            self.asking = init.linear(f"{name}.asking", width, width)
        elif self.operator == "gate":
            self.gates = nn.ModuleList(
                init.linear(f"{name}.gates.{k}", width, width) for k in range(n_parts)
            )

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """The vectors of n rows, (n, d) each, as one: (n, d), or (n, K d) for concat."""
        if self.operator == "concat":
            return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
        if self.operator == "product":
            return reduce(torch.mul, parts)
        if self.operator == "max":
            return reduce(torch.maximum, parts)
        total = reduce(torch.add, self.weigh(parts))
        return total / len(parts) if self.operator == "mean" else total

    def weigh(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The summands of the operator, (n, d) each; those of sum and mean are the vectors."""
        if self.operator == "gate":
            opened = [
                torch.sigmoid(linear(part, gate.weight, gate.bias))
                for part, gate in zip(parts, cast("list[nn.Linear]", self.gates), strict=True)
            ]
            return [part * gate for part, gate in zip(parts, opened, strict=True)]
        if self.operator == "weighted":
            shares = torch.softmax(self.logits, 0)[None]  # (1, K)
        elif self.operator == "attention":
            asked = [
                torch.tanh(linear(part, self.asking.weight, self.asking.bias)) for part in parts
            ]
            shares = torch.softmax(torch.cat([linear(x, self.query) for x in asked], 1), 1)
        else:
            return list(parts)
        return [part * shares[:, k : k + 1] for k, part in enumerate(parts)]  # (n, 1) or (1, 1)


def fused_scores(operator: Operator, scores: Sequence[Tensor]) -> Tensor:
    """The scores of several parts, of equal shape, as one; one alone stays as it is."""
    if len(scores) == 1:
        return scores[0]
    if operator == "product":
        return reduce(torch.add, [functional.logsigmoid(s) for s in scores])
    if operator == "max":
        return reduce(torch.maximum, scores)
    total = reduce(torch.add, scores)
    return total / len(scores) if operator == "mean" else total


def asked(scores: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """The sum over parts k of softmax_k(logits) * scores, all of equal shape."""
    shares = torch.softmax(torch.stack(list(logits)), 0)
    return (shares * torch.stack(list(scores))).sum(0)
