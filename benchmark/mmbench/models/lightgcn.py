"""LightGCN: embeddings averaged over propagations on the user-item graph; no content, a control.

Paper: He, Deng, Wang, Li, Zhang, Wang: LightGCN: Simplifying and Powering Graph Convolution Network
for Recommendation, SIGIR 2020, https://arxiv.org/abs/2002.02126.

    x       = [user_embedding; item_embedding]
    Â       = D^-1/2 A D^-1/2                                A: training pairs, no self loops
    z       = mean of x, Â x, …, Â^L x                                            L = `n_layers`
    s(u, i) = <z_u, z_i>
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))
              + reg_weight / (2 B) * sum over the batch of (|x_u|² + |x_i|² + |x_j|²)
                                                                   the rows before propagation

Differences from the authors' code: Xavier-uniform start, as in the models with content, instead of
N(0, 0.1²); positives are every training edge once per epoch instead of user-uniform draws; batches
of 1024 instead of 2048.

With `penalty=norm` the penalty is MMRec's, reg_weight / B * (|X_u| + |X_i| + |X_j|), norms of the
matrices of the batch's rows.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples
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
from mmbench.ops.graph import bipartite, propagate, symmetric_normalised
from mmbench.ops.rows import grouped, take


class LightGCNConfig(ModelConfig):
    """Settings of LightGCN; the defaults are the paper's."""

    reg_weight: float = Field(
        1e-4, ge=0, description="weight of the squared norms of a batch's rows"
    )
    n_layers: int = Field(3, ge=0, description="L, propagations")
    penalty: Penalty = Field("squared", description=PENALTY)

    ADDED: ClassVar[frozenset[str]] = frozenset({"penalty"})


class LightGCN(Recommender):
    """Linear graph convolution without content."""

    Config = LightGCNConfig
    uses_features = False
    cell = Cell(backbone="lightgcn")

    def __init__(
        self, train: TrainSet, content: Content, config: LightGCNConfig, init: Init
    ) -> None:
        super().__init__()
        self.config, self.n_users, d = config, train.n_users, config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        # Â is symmetric: its own rows serve the backward, without a transpose.
        self.graph = symmetric_normalised(bipartite(train), dtype=self.item_embedding.dtype)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        items = torch.cat([batch.pos, batch.neg]) + self.n_users
        nodes = grouped(torch.cat([batch.users, items]))  # (3 B,)
        # Of the last layer only the batch's rows are computed.
        z = propagate(self.graph, x, self.config.n_layers, rows=nodes)  # (3 B, d)
        # s(u, i) and s(u, j) from the propagated rows.
        user, pos, neg = z.chunk(3)
        bpr = bpr_loss((user * pos).sum(1), (user * neg).sum(1))
        # The layer-0 embeddings are penalised, not the propagated ones.
        rows = take(x, nodes)
        kind, weight = self.config.penalty, self.config.reg_weight
        l2 = penalty(kind, weight, len(user), *(rows.chunk(3) if kind == "norm" else [rows]))
        return {"bpr": bpr, "l2": l2}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Z_u and z_i."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        z = propagate(self.graph, x, self.config.n_layers)
        return z[: self.n_users], z[self.n_users :]
