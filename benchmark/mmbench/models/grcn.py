"""GRCN: content decides how much each user-item edge counts; an id network runs on that graph.

Paper: Wei, Wang, Nie, He, Chua: Graph-Refined Convolutional Network for Multimedia Recommendation
with Implicit Feedback, ACM MM 2020, https://doi.org/10.1145/3394171.3413556 (arXiv 2008.10085).

    rn(X)   = rows divided by max(their L2 norm, 1e-12) ;   LR(x) = max(x, 0.01 x)
for each modality m with raw features F; its index is left out up to r:
    p       = rn(preference) ;   f = rn(LR(F W^T + c))         users' and items' content, width k
    T times:  a_ui = softmax over i in N(u) of <p_u, f_i>                       T = `n_routings`
              p_u <- rn(p_u + sum_i a_ui f_i)
    s_ui    = <p_u, f_i>
    α_ui    = softmax of s over the items of u ;    α_iu = softmax of s over the users of i
    r_u     = p_u + sum_i α_ui f_i ;                r_i  = f_i + sum_u α_iu p_u
the id network on the refined graph:
    w_ui    = relu(max_m α_m,ui confidence_u,m) ;   w_iu = relu(max_m α_m,iu confidence_i,m)
                                                                         see `confidence_of`
    x_0     = rn([user_embedding ; item_embedding]) ;   x_(l+1) = rn(w x_l)
    x       = x_0 + … + x_L                                                       L = `n_layers`
    s(u, i) = <x_u, x_i> + sum_m <r_m,u, r_m,i>                           `fusion_mode` concat
    L       = mean over the batch of -log sigmoid(s(u, i) - s(u, j))                       (bpr)
              + reg_weight [ 1/(d B) sum |user_embedding_u|²
                + 1/(2 d B) sum (|item_embedding_i|² + |item_embedding_j|²) ]            (id_l2)
              + b sum_m 1/(k B) sum |preference_m,u|²                            (preference_l2)

Presets (`preset`), see PRESETS; where they differ, and from what the paper says
    paper      what produced the tables of arXiv 2309.05273. `edge_order` elliot: the scores on the
               items' side stay in the users' order, so that the k-th edge by item gets the score
               and the confidence of the k-th edge by user, and items gather their users with
               weights of unrelated edges. An edge counts by the confidence of its receiver, so that
               a user whose confidences start negative gets no message for all of the training. b is
               1, not reg_weight. x is normalised after each layer.
    original   the authors' code as it runs: edges in their places; the sender's confidence;
               b = reg_weight; x normalised at the start only. Its routing has no effect, for its
               edges point away from the users, hence T = 0. Xavier-normal start, one draw for the
               ids of all nodes; k = 64.
    corrected  `paper` with edges in their places and b = reg_weight.

Always: the derivative of relu at 0 is 0. (The rows of nodes without any message are 0, where that
of rn is 1e12.) Users are ranked by fresh embeddings; `stale_inference` ranks by those of the
epoch's last batch, before its optimiser step, as both codes do.

How it is computed, equal up to rounding: all routings of a user, and the softmax of an item's
edges, in one fused pass each with a backward of its own, see `mmbench.ops.routing`; the score as a
sum over parts, without concatenating them.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d), confidence (n_users + n_items,
n_modalities), and for each modality preference.<m> (n_users, k), projection.<m>.weight (k, dim),
projection.<m>.bias (k,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init, Triples
from mmbench.errors import UsageError
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss, mean_square
from mmbench.models.cells import Cell
from mmbench.ops.dense import linear, normalise_rows
from mmbench.ops.routing import EdgeOrder, RoutingGraph, confident_weights, routing
from mmbench.ops.rows import grouped, pair_scores, take
from mmbench.ops.sparse import weighted_product

Start = Literal["xavier_uniform", "xavier_normal"]
Pair = tuple[Tensor, Tensor]
"""Something of all users and the same of all items."""


@dataclass(frozen=True)
class Variant:
    """What the presets set: fields of `GRCNConfig` that are None there."""

    content_dim: int
    routing: bool
    edge_order: EdgeOrder
    confidence_of: Literal["receiver", "sender"]
    scaled_preference_reg: bool
    normalise_layers: bool
    start: Start


PRESETS = {
    "paper": Variant(128, True, "elliot", "receiver", False, True, "xavier_uniform"),
    "original": Variant(64, False, "aligned", "sender", True, False, "xavier_normal"),
    "corrected": Variant(128, True, "aligned", "receiver", True, True, "xavier_uniform"),
}


class GRCNConfig(ModelConfig):
    """Settings of GRCN; the defaults are the published best values of Amazon Office.

    None: what the preset says.
    """

    preset: Literal["paper", "original", "corrected"] = Field("paper", description="whose GRCN")
    reg_weight: float = Field(1e-5, ge=0, description="weight of the mean squares of a batch's ids")
    n_layers: int = Field(2, ge=0, le=10, description="L, layers of the id network")
    n_routings: int = Field(3, ge=0, le=100, description="T, routings of each user among its items")
    weight_mode: Literal["confid", "mean", "max"] = Field(
        "confid",
        description="an edge's weight from its modalities: largest confident one, mean, largest",
    )
    pruning: bool = Field(True, description="edges of negative weight count nothing")
    fusion_mode: Literal["concat", "id", "mean"] = Field(
        "concat",
        description="ids and contents: side by side, ids alone, mean (content_dim = embedding_dim)",
    )
    content_dim: int | None = Field(None, ge=1, description="k, width of preferences and content")
    routing: bool | None = Field(None, description="route at all; if not, T is 0")
    edge_order: EdgeOrder | None = Field(None, description="whose score an item's slot gets")
    confidence_of: Literal["receiver", "sender"] | None = Field(
        None, description="whose confidence weighs an edge"
    )
    scaled_preference_reg: bool | None = Field(None, description="b is reg_weight instead of 1")
    normalise_layers: bool | None = Field(None, description="x is normalised after each layer")
    start: Start | None = Field(None, description="initial values of the tables")
    stale_inference: bool = Field(False, description="rank by what the epoch's last batch saw")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        "num_layers": "n_layers",
        "num_routings": "n_routings",
        "factors_multimod": "content_dim",
    }

    @property
    def variant(self) -> Variant:
        """The preset's values; where a field is given, that."""
        return self.over(PRESETS[self.preset])


class GRCN(Recommender):
    """Graph-refined convolution over any modalities."""

    Config = GRCNConfig
    learns_absent = True
    id_weights = (*Recommender.id_weights, "preference.*", "confidence", "stale_*")
    cell = Cell(
        modalities="any; pictures, sounds and texts in 2020",
        representation="coordinate",
        fusion="intermediate",
        operator="concat; max of the edges' weights",
        side="item",
        backbone="graph of ids, edges weighed by content",
    )

    confident: Tensor

    def __init__(self, train: TrainSet, content: Content, config: GRCNConfig, init: Init) -> None:
        super().__init__()
        self.config, self.variant, self.n_users = config, config.variant, train.n_users
        d, k = config.embedding_dim, self.variant.content_dim
        n_nodes = train.n_users + train.n_items
        if config.fusion_mode == "mean" and k != d:
            raise UsageError(
                f"grcn: fusion_mode mean needs content_dim = embedding_dim (got {k} and {d})"
            )
        start: Callable[[str, int, int], nn.Parameter] = getattr(init, self.variant.start)
        if self.variant.start == "xavier_uniform":
            self.user_embedding = start("user_embedding", train.n_users, d)
            self.item_embedding = start("item_embedding", train.n_items, d)
        else:
            # One draw for all nodes: Xavier's variance depends on the number of rows.
            both = start("embedding", n_nodes, d).data
            self.user_embedding = nn.Parameter(both[: train.n_users].clone())
            self.item_embedding = nn.Parameter(both[train.n_users :].clone())
        self.stand_ins = content.stand_ins()
        self.preference, self.projection = nn.ParameterDict(), nn.ModuleDict()
        for m, vectors in content.vectors.items():
            self.register_buffer(f"features_{m}", vectors, persistent=False)
            self.preference[m] = start(f"preference.{m}", train.n_users, k)
            self.projection[m] = init.linear(f"projection.{m}", vectors.shape[1], k)
        self.graph = RoutingGraph.of(train, edge_order=self.variant.edge_order)
        if config.weight_mode == "confid":
            # Xavier draws both signs: pruning cuts an edge whose confidences are all negative.
            self.confidence = start("confidence", n_nodes, len(content))
            self.register_buffer("confident", self._confident_nodes(), persistent=False)
        self._see_start()

    def start_from(self, carried: Mapping[str, Tensor]) -> None:
        """See `Recommender.start_from`."""
        super().start_from(carried)
        self._see_start()

    def _see_start(self) -> None:
        """Until the first epoch's last batch, stale ranking sees the initial tables."""
        if self.config.stale_inference:
            with torch.no_grad():
                users, items = self._concatenated()
            self.register_buffer("stale_users", users)
            self.register_buffer("stale_items", items)

    def _confident_nodes(self) -> Tensor:
        """The node whose confidence weighs each entry of the graph, (2 n_edges,)."""
        graph = self.graph
        if self.variant.confidence_of == "receiver":
            return graph.confident
        # The senders: items of the messages to users, then users of the messages to items.
        return torch.cat([self.n_users + graph.items, graph.users[graph.source]])

    def content(self, m: str) -> tuple[Tensor, Tensor, Tensor]:
        """R of the users (n_users, k) and items (n_items, k), α of the entries (2 n_edges,)."""
        projection = cast(nn.Linear, self.projection[m])
        # f of all items: within two hops a batch reaches most nodes.
        projected = linear(self.get_buffer(f"features_{m}"), projection.weight, projection.bias)
        projected = self.stand_ins.put_in(
            m, projected, lambda token: linear(token, projection.weight, projection.bias)
        )
        f = normalise_rows(functional.leaky_relu(projected, inplace=True))
        # With T = 0 the preferences stay rn(preference).
        n_routings = self.config.n_routings * self.variant.routing
        return routing(normalise_rows(self.preference[m]), f, self.graph, n_routings)

    def edge_weights(self, alphas: list[Tensor]) -> Tensor:
        """W of the graph's entries, (2 n_edges,), from the α of each modality."""
        alpha, mode, pruning = torch.stack(alphas), self.config.weight_mode, self.config.pruning
        if mode == "confid":
            return confident_weights(alpha, self.confidence, self.confident, pruning=pruning)
        # Without confidence all weights are positive, and pruning changes nothing.
        weights = alpha.mean(0) if mode == "mean" else alpha.max(0).values
        return functional.relu(weights) if pruning else weights

    def representation(self) -> list[Pair]:
        """The parts whose inner products add up to the scores."""
        # Refinement per modality: r of all nodes, α of both directions of each edge.
        contents = [self.content(m) for m in self.projection]
        weights = self.edge_weights([alpha for _, _, alpha in contents])
        # The id network. w is not symmetric: the softmax of an edge runs over its receiver's edges.
        x = normalise_rows(torch.cat([self.user_embedding, self.item_embedding]))  # (n_nodes, d)
        total = x
        for _ in range(self.config.n_layers):
            # A node whose messages are all pruned gets 0 and keeps x_0 in the sum over layers.
            x = weighted_product(self.graph.adjacency, weights, x)
            x = normalise_rows(x) if self.variant.normalise_layers else x
            total = total + x
        # Parts in place of [x | r]: an inner product of concatenations is the sum over the parts.
        parts = [(total[: self.n_users], total[self.n_users :])]
        parts += [(users, items) for users, items, _ in contents]
        if self.config.fusion_mode == "mean":
            users, items = (torch.stack(side).mean(0) for side in zip(*parts, strict=True))
            return [(users, items)]
        return parts if self.config.fusion_mode == "concat" else parts[:1]

    def _concatenated(self) -> Pair:
        users, items = (torch.cat(side, 1) for side in zip(*self.representation(), strict=True))
        return users, items

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `id_l2` and `preference_l2`."""
        parts, batch_users = self.representation(), grouped(batch.users)
        if self.config.stale_inference and batch.last:
            # Before the optimiser step: what both codes rank by.
            self.stale_users, self.stale_items = (
                torch.cat(side, 1).detach() for side in zip(*parts, strict=True)
            )
        pair = grouped(torch.cat([batch.pos, batch.neg]))  # (2 B,)

        # An inner product of [x | r] is the sum over the parts.
        scores = [pair_scores(take(u, batch_users), i, pair) for u, i in parts]
        pos, neg = (torch.stack(side).sum(0) for side in zip(*scores, strict=True))  # (B,)
        user_ids = take(self.user_embedding, batch_users)
        item_ids = take(self.item_embedding, pair)
        id_l2 = mean_square(user_ids) + mean_square(item_ids)
        # The raw preferences are penalised; rn(preference) has a constant norm.
        tables = self.preference.values()
        rows = [take(table, batch_users).square().mean() for table in tables]
        b = self.config.reg_weight if self.variant.scaled_preference_reg else 1.0
        return {
            "bpr": bpr_loss(pos, neg),
            "id_l2": id_l2 * self.config.reg_weight,
            "preference_l2": torch.stack(rows).sum() * b,
        }

    def embeddings(self) -> Pair:
        """[x | r of each modality] of all users and items."""
        if self.config.stale_inference:
            return self.stale_users, self.stale_items
        return self._concatenated()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GRCN:
        super()._apply(fn, recurse)
        self.graph = self.graph.to(fn(torch.empty(0)).device)
        return self
