"""EGCF: a network of ids beside one whose edges are weighed by reviews.

Paper: Anelli, Deldjoo, Di Noia, Di Sciascio, Ferrara, Malitesta, Pomo: Reshaping Graph
Recommendation with Edge Graph Collaborative Filtering and Customer Reviews, DL4SR at CIKM 2022,
https://ceur-ws.org/Vol-3317/Paper7.pdf. Code: sisinflab/Edge-Graph-Collaborative-Filtering.

    A, D    = training pairs over users and items, and the degrees, both without self loops
    x_0     = [user_embedding; item_embedding]
    x_(l+1) = D^-1/2 A D^-1/2 x_l                                                 the network of ids
    p_ui    = P e_ui + b                          e_ui: the vector of the review of the pair (u, i)
    y_0     = [user_review_embedding; item_review_embedding]
    w_ui    = sigmoid(cos(y_l,u * p_ui, y_l,i * p_ui))              anew in each layer; w_iu = w_ui
    y_(l+1) = D^-1/2 (W + I) D^-1/2 y_l                                       the network of reviews
    x, y    = sum over l = 0 … L of x_l / (l + 1), y_l / (l + 1)                      L = `n_layers`
    s(u, i) = <x_u, x_i> + <y_u, y_i>
    L       = sum over the batch of -log sigmoid(s(u, i) - s(u, j))                            (bpr)
              + reg_weight * (sum of the four tables' Frobenius norms, not squared)           (norm)

Several sets of vectors of the same pairs stand side by side in e_ui, which adds up a P_m e_m of
each. A pair without a vector has what the recipe's `missing` puts there.

Presets (`preset`)
    paper      as above.
    original   the authors' code as it runs. It computes a weight of each pair in the order of users
               and hands the same list to the entries of both directions, of which torch-sparse has
               sorted the second by item: there the k-th entry by item gets the weight of the k-th
               pair by user, so that items gather their users with weights of unrelated reviews.

Differences from the authors' code: positives are every training pair once per epoch instead of a
random item of a random user; the score's difference is not cut at -80, since the loss does not
overflow; reviews are joined by the ids of user and item instead of by position. (The regulariser's
range in their configuration files, uniform in 1e-4 … 10 rounded to multiples of 100, is always 0.)

Exact, and fast: w is computed once per pair, not per direction, and by a fused pass with a backward
of its own, see `mmbench.ops.edges`; of the ids' last layer only the batch's rows are computed. On
the CPU reviews are projected, and weights computed, for the edges within L steps of the batch only
(preset `paper`): P e is most of a step.

Trainable: user_embedding, user_review_embedding (n_users, d), item_embedding, item_review_embedding
(n_items, d), projection.weight (d, k), projection.bias (d,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet
from mmbench.models.cells import Cell
from mmbench.ops import gpu
from mmbench.ops.dense import linear
from mmbench.ops.edges import EdgeGraph, edge_weights, near
from mmbench.ops.graph import bipartite, symmetric_normalised
from mmbench.ops.norms import norm
from mmbench.ops.rows import Grouped, distinct, grouped, pair_scores, take

_WORTHWHILE = 0.5  # share of the edges above which picking some costs more than it saves


class EGCFConfig(ModelConfig):
    """Settings of EGCF; the defaults are those of the authors' code, but for `n_layers`."""

    batch_size: int = Field(256, ge=1, description="triples per optimiser step")
    lr: float = Field(5e-4, gt=0, description="Adam's step size")
    preset: Literal["paper", "original"] = Field("paper", description="whose EGCF")
    reg_weight: float = Field(0.01, ge=0, description="weight of the tables' norms, not squared")
    n_layers: int = Field(2, ge=1, description="L, propagations")

    ALIASES: ClassVar[Mapping[str, str]] = {**ModelConfig.ALIASES, "emb": "embedding_dim"}


class EGCF(Recommender):
    """Graph convolution of ids, and one whose edges are weighed by reviews."""

    Config = EGCFConfig
    content_of = "interaction"
    cell = Cell(
        modalities="any of interactions; reviews in 2022",
        representation="coordinate",
        fusion="late",
        operator="sum of scores; reviews weigh edges",
        side="both",
        backbone="lightgcn, twice",
    )

    features: Tensor

    def __init__(self, train: TrainSet, content: Content, config: EGCFConfig, init: Init) -> None:
        super().__init__()
        self.config, self.n_users, d = config, train.n_users, config.embedding_dim
        # (n_edges, k), in the order of the training pairs.
        self.register_buffer("features", torch.cat([*content.edges.values()], 1), persistent=False)
        for name, n in (("user", train.n_users), ("item", train.n_items)):
            for kind in ("embedding", "review_embedding"):
                key = f"{name}_{kind}"
                self.register_parameter(key, init.xavier_normal(key, n, d))
        self.projection = init.linear("projection", self.features.shape[1], d)
        dtype = self.features.dtype
        self.graph = symmetric_normalised(bipartite(train), dtype=dtype)
        degree = self.graph.pattern.degree.double()
        inverse = torch.where(degree > 0, 1 / degree.clamp(min=1), 0.0).to(dtype)
        self.edges = EdgeGraph.of(
            torch.from_numpy(train.users),
            torch.from_numpy(train.items),
            inverse,
            train.n_users,
            aligned=config.preset == "paper",
        )

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr` and `norm`."""
        size = len(batch.users)
        items, places = distinct(torch.cat([batch.pos, batch.neg]))
        nodes = grouped(torch.cat([batch.users, items + self.n_users]))  # (B + n,)
        scores = [
            pair_scores(z[:size], z[size:], places)
            for z in (self._ids(nodes), self._reviews(nodes))
        ]
        pos, neg = (torch.stack(side).sum(0) for side in zip(*scores, strict=True))  # (B,)
        norms = [norm(table) for table in self._tables()]
        return {
            # A sum over the batch, as the authors have it: not a mean.
            "bpr": functional.softplus(neg - pos).sum(),
            "norm": torch.stack(norms).sum() * self.config.reg_weight,
        }

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """[x | y] of users and items."""
        z = torch.cat([self._ids(), self._reviews()], 1)
        return z[: self.n_users], z[self.n_users :]

    def _tables(self) -> list[Tensor]:
        names = (
            "user_embedding",
            "item_embedding",
            "user_review_embedding",
            "item_review_embedding",
        )
        return [self.get_parameter(name) for name in names]

    def _ids(self, nodes: Grouped | None = None) -> Tensor:
        """Sum over l of x_l / (l + 1), of some nodes or all."""
        x, n_layers = torch.cat(self._tables()[:2]), self.config.n_layers
        # From the inside: x + A (x / 2 + A (x / 3 + …)).
        total = x / (n_layers + 1)
        for place in range(n_layers, 1, -1):
            total = self.graph @ total + x / place
        if nodes is None:
            return self.graph @ total + x
        return self.graph.rows(nodes.rows) @ total + take(x, nodes)

    def _reviews(self, nodes: Grouped | None = None) -> Tensor:
        """Sum over l of y_l / (l + 1), of some nodes or all."""
        y = torch.cat(self._tables()[2:])
        edges, features = self._edges_near(nodes)
        p = linear(features, self.projection.weight, self.projection.bias)
        total = y
        for place in range(2, self.config.n_layers + 2):
            # With fewer edges, rows that no node of the batch looks at differ.
            y = edges.propagate(y, edge_weights(y, p, edges))
            total = total + y / place
        return total if nodes is None else take(total, nodes)

    def _edges_near(self, nodes: Grouped | None) -> tuple[EdgeGraph, Tensor]:
        """The edges that the rows of some nodes depend on, and what stands on them."""
        edges = self.edges
        aligned = self.config.preset == "paper"
        if nodes is None or gpu.static(self.features) or not aligned:
            return edges, self.features
        chosen = near(edges, nodes.rows, self.config.n_layers)
        if len(chosen) > _WORTHWHILE * edges.n_edges:
            return edges, self.features
        ends = edges.users[chosen], edges.items[chosen]
        some = EdgeGraph.of(*ends, edges.loops[:, 0], self.n_users, aligned=True)
        return some, self.features[chosen]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EGCF:
        super()._apply(fn, recurse)
        self.edges = self.edges.to(fn(torch.empty(0)).device)
        return self
