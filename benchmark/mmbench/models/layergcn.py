"""LayerGCN: propagations weighed by their likeness to the ids, on a graph pruned anew each epoch.

Paper: Zhou, Lin, Liu, Miao: Layer-refined Graph Convolutional Networks for Recommendation, ICDE
2023, https://arxiv.org/abs/2207.11088. No content, a control.

    x       = [user_embedding; item_embedding]
    n       = floor(n_edges (1 - edge_dropout)) edges per epoch, drawn without replacement,
              P(u, i) ~ (d_u d_i)^-1/2
    Â'      = those edges, D'^-1/2 A' D'^-1/2 with their own degrees, 1e-7 added to each
    y_0     = x ;   h_k = Â' y_(k-1) ;   y_k = cos(h_k, x) h_k, node by node      norms >= 1e-8
    z       = y_1 + … + y_L, without x itself                                     L = `n_layers`
    L       = sum over the batch of -log sigmoid <z_u, z_i - z_j>
              + reg_weight / 2 * sum over the batch of (|x_u|² + |x_i|² + |x_j|²)
    s(u, i) = <z_u, z_i> with the full graph in the place of Â'

Presets (`preset`)
    paper      every epoch draws its edges by their degrees.
    original   the authors' code in MMRec: epochs 1, 3, 5, … draw by degrees, the others uniformly.

The defaults are the authors' number of layers, and within their grid a middle: their best values of
a dataset are not published.

Exact, and fast: of the last layer only the rows of the batch are computed, forward and backward,
and one backward in closed form goes through all layers (`mmbench.ops.refinement`).

Differences from the authors' code: with edge_dropout 0 each epoch takes the same full graph.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples, epoch_stream
from mmbench.models.base import Content, ModelConfig, TrainSet, bpr_loss, squared_norm
from mmbench.models.cells import Cell
from mmbench.models.pruning import PrunesEdges
from mmbench.ops.graph import EdgePruning
from mmbench.ops.refinement import refine
from mmbench.ops.rows import grouped, take


class LayerGCNConfig(ModelConfig):
    """Settings of LayerGCN."""

    preset: Literal["paper", "original"] = Field("paper", description="how edges are drawn")
    reg_weight: float = Field(
        1e-3, ge=0, description="weight of the squared norms of a batch's rows"
    )
    n_layers: int = Field(4, ge=1, description="L, propagations")
    edge_dropout: float = Field(0.1, ge=0, lt=1, description="share of edges an epoch leaves out")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        **dict.fromkeys(["drop", "dropout"], "edge_dropout"),
    }


class LayerGCN(PrunesEdges):
    """Refined graph convolution without content, degree-sensitive pruning."""

    Config = LayerGCNConfig
    config: LayerGCNConfig
    uses_features = False
    cell = Cell(backbone="lightgcn, pruned, layers weighed by likeness to the ids")

    def __init__(
        self, train: TrainSet, content: Content, config: LayerGCNConfig, init: Init
    ) -> None:
        super().__init__()
        self.config, d = config, config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self._add_graphs(train, self.item_embedding.dtype)

    def _kept_edges(self, pruning: EdgePruning, epoch: int, seed: int) -> Tensor:
        stream = epoch_stream(seed, "pruning", epoch, pruning.users.device)
        return pruning.draw(stream, uniform=self.config.preset == "original" and epoch % 2 == 0)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `l2`."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        items = torch.cat([batch.pos, batch.neg]) + self.train_set.n_users
        nodes = grouped(torch.cat([batch.users, items]))  # (3 B,)
        z = refine(self.epoch_graph, x, self.config.n_layers, rows=nodes)  # (3 B, d)
        user, pos, neg = z.chunk(3)
        # Both terms are sums over the batch, hence the factor on the mean.
        bpr = bpr_loss((user * pos).sum(1), (user * neg).sum(1)) * len(user)
        # The embeddings are penalised, not the propagated ones.
        return {"bpr": bpr, "l2": squared_norm(take(x, nodes)) * (self.config.reg_weight / 2)}

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Z_u and z_i on the full graph."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        z = refine(self.full_graph, x, self.config.n_layers)
        n_users = self.train_set.n_users
        return z[:n_users], z[n_users:]
