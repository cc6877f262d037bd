"""BPR-MF: matrix factorisation trained by pairwise ranking; the control without content.

Paper: Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian Personalized Ranking from
Implicit Feedback, UAI 2009, https://arxiv.org/abs/1205.2618.

    s(u, i) = b_i + <p_u, q_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|p_u|² + |q_i|² + |q_j|² + b_i² + b_j²)

Differences from the paper: Adam instead of plain SGD; positives are every training edge once per
epoch instead of draws with replacement; the regulariser has one weight instead of one per group.

Trainable: user_factors (n_users, d), item_factors (n_items, d), item_bias (n_items,).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples, zeros
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss, squared_norm
from mmbench.models.cells import Cell
from mmbench.ops.rows import grouped, take


class BPRMFConfig(ModelConfig):
    """Settings of BPR-MF."""

    reg_weight: float = Field(
        1e-2, ge=0, description="weight of the squared norms of a batch's rows"
    )


class BPRMF(Recommender):
    """Matrix factorisation with item biases under the BPR loss."""

    Config = BPRMFConfig
    uses_features = False
    cell = Cell(backbone="dot, with item biases")

    def __init__(self, train: TrainSet, content: Content, config: BPRMFConfig, init: Init) -> None:
        super().__init__()
        self.reg_weight = config.reg_weight
        self.user_factors = init.xavier_uniform("user_factors", train.n_users, config.embedding_dim)
        self.item_factors = init.xavier_uniform("item_factors", train.n_items, config.embedding_dim)
        self.item_bias = zeros(train.n_items)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        items = grouped(torch.cat([batch.pos, batch.neg]))  # (2 B,)
        user = take(self.user_factors, batch.users)  # (B, d)
        pos, neg = take(self.item_factors, items).chunk(2)  # (B, d)
        pos_bias, neg_bias = take(self.item_bias[:, None], items).flatten().chunk(2)  # (B,)
        # Only items have a bias: that of a user would cancel in s(u, i) - s(u, j).
        bpr = bpr_loss((user * pos).sum(1) + pos_bias, (user * neg).sum(1) + neg_bias)
        # Only the batch's rows, and their biases, are regularised in a step.
        l2 = squared_norm(user, pos, neg, pos_bias, neg_bias) * (self.reg_weight / (2 * len(user)))
        return {"bpr": bpr, "l2": l2}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[p_u | 1] and [q_i | b_i], both of width d + 1."""
        # <[p_u | 1], [q_i | b_i]> = <p_u, q_i> + b_i.
        ones = torch.ones_like(self.user_factors[:, :1])
        return torch.cat([self.user_factors, ones], 1), torch.cat(
            [self.item_factors, self.item_bias[:, None]], 1
        )
