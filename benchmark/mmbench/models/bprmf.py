"""BPR-MF: matrix factorisation trained by pairwise ranking; the control without content.

Paper: Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian Personalized Ranking from
Implicit Feedback, UAI 2009, https://arxiv.org/abs/1205.2618.

    s(u, i) = b_i + <p_u, q_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|p_u|² + |q_i|² + |q_j|² + b_i² + b_j²)

Differences from the paper: Adam instead of plain SGD; positives are every training edge once per
epoch instead of draws with replacement; the regulariser has one weight instead of one per group.

`biases=false` and `penalty=norm` make it the BPR of MMRec, to whose published numbers its own are
then comparable; the penalty is reg_weight / B * (|P| + |Q| + |Q'|), P, Q and Q' the batch's rows.

Trainable: user_factors (n_users, d), item_factors (n_items, d), item_bias (n_items,) with biases.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples, zeros
from mmbench.models.base import (
    PENALTY,
    Content,
    ModelConfig,
    Penalty,
    Recommender,
    TrainSet,
    bpr_loss,
    penalty,
)
from mmbench.models.cells import Cell
from mmbench.ops.id_table import batch_rows, id_table, whole
from mmbench.ops.rows import grouped, take


class BPRMFConfig(ModelConfig):
    """Settings of BPR-MF."""

    reg_weight: float = Field(
        1e-2, ge=0, description="weight of the squared norms of a batch's rows"
    )
    biases: bool = Field(True, description="whether items have a bias b_i")
    penalty: Penalty = Field("squared", description=PENALTY)

    ADDED: ClassVar[frozenset[str]] = frozenset({"biases", "penalty"})


class BPRMF(Recommender):
    """Matrix factorisation with item biases under the BPR loss."""

    Config = BPRMFConfig
    uses_features = False
    cell = Cell(backbone="dot, with item biases")

    def __init__(self, train: TrainSet, content: Content, config: BPRMFConfig, init: Init) -> None:
        super().__init__()
        self.config = config
        d = config.embedding_dim
        self.user_factors = id_table(init.xavier_uniform("user_factors", train.n_users, d))
        self.item_factors = id_table(init.xavier_uniform("item_factors", train.n_items, d))
        self.item_bias = zeros(train.n_items) if config.biases else None

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        items = grouped(torch.cat([batch.pos, batch.neg]))  # (2 B,)
        user = batch_rows(self.user_factors, grouped(batch.users))  # (B, d)
        pos, neg = batch_rows(self.item_factors, items).chunk(2)  # (B, d)
        scores = [(user * pos).sum(1), (user * neg).sum(1)]
        rows = [user, pos, neg]
        if self.item_bias is not None:
            # Only items have a bias: that of a user would cancel in s(u, i) - s(u, j).
            biases = take(self.item_bias[:, None], items).flatten().chunk(2)  # (B,) each
            scores = [score + bias for score, bias in zip(scores, biases, strict=True)]
            rows += biases
        # Only the batch's rows, and their biases, are regularised in a step.
        l2 = penalty(self.config.penalty, self.config.reg_weight, len(user), *rows)
        return {"bpr": bpr_loss(*scores), "l2": l2}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[p_u | 1] and [q_i | b_i], both of width d + 1; without biases p_u and q_i."""
        users, items = whole(self.user_factors), whole(self.item_factors)
        if self.item_bias is None:
            return users, items
        # <[p_u | 1], [q_i | b_i]> = <p_u, q_i> + b_i.
        ones = torch.ones_like(users[:, :1])
        return torch.cat([users, ones], 1), torch.cat([items, self.item_bias[:, None]], 1)
