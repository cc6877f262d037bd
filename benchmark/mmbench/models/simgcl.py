"""SimGCL: LightGCN with a contrast of two views, whose layers are moved by uniform noise.

Paper: Yu, Yin, Xia, Chen, Cui, Nguyen: Are Graph Augmentations Necessary? Simple Graph Contrastive
Learning for Recommendation, SIGIR 2022, https://arxiv.org/abs/2112.08679. No content, a control.

    x       = [user_embedding; item_embedding]
    Â       = D^-1/2 A D^-1/2                                A: training pairs, no self loops
    h_k     = Â h_(k-1), h_0 = x ;   z = mean of h_1, …, h_L, without x itself   L = `n_layers`
    h'_k    = Â h'_(k-1) + `noise` sign(Â h'_(k-1)) * u / |u|   row by row, u ~ U(0, 1)^d
    z'      = mean of h'_1, …, h'_L ;   z'' likewise, with noise of its own
    L       = mean over the batch of -log sigmoid <z_u, z_i - z_j>
              + cl_weight * (C(distinct users) + C(distinct positives))
              + reg_weight / (2 B) * sum over the batch of (|x_u|² + |x_i|² + |x_j|²)
    C(rows) = mean over rows r of -log(exp(cos(z'_r, z''_r) / `temperature`)
              / sum over rows c of exp(cos(z'_r, z''_c) / `temperature`))
    s(u, i) = <z_u, z_i>

Presets (`preset`)
    paper      as above; the paper sums the ranking loss and the contrast where means are meant.
    original   the authors' code in SELFRec penalises the propagated rows of users and positives, by
               norms: reg_weight (|Z_u| + |Z_i|).

Defaults: the authors' configuration of Yelp2018 (noise, temperature, reg_weight, layers, batches),
but for a lighter contrast: 0.5, theirs, is too strong where a batch holds most users.

Exact, and fast: noise has no gradient and propagation is linear, so a view is z plus an offset that
is a constant to the gradient. One backward serves all three; the first product Âx is shared; and of
the last layer only the rows of the batch are computed and moved.

Trainable: user_embedding (n_users, d), item_embedding (n_items, d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmbench.core.sampling import Init, Triples
from mmbench.models.base import Content, ModelConfig, Recommender, TrainSet, bpr_loss, penalty
from mmbench.models.cells import Cell
from mmbench.ops.contrast import first_of_equals, info_nce
from mmbench.ops.dense import normalise_rows
from mmbench.ops.draws import between
from mmbench.ops.graph import bipartite, propagate, symmetric_normalised
from mmbench.ops.rows import distinct, grouped, take

VIEWS = ("first", "second")


class SimGCLConfig(ModelConfig):
    """Settings of SimGCL."""

    preset: Literal["paper", "original"] = Field("paper", description="whose penalty")
    batch_size: int = Field(2048, ge=1, description="triples per optimiser step")
    reg_weight: float = Field(1e-4, ge=0, description="weight of the penalty of a batch's rows")
    n_layers: int = Field(2, ge=1, description="L, propagations")
    cl_weight: float = Field(0.1, ge=0, description="weight of the contrast")
    noise: float = Field(0.1, ge=0, description="length of what moves a row in each layer")
    temperature: float = Field(0.2, gt=0, description="of the contrast")

    ALIASES: ClassVar[Mapping[str, str]] = {
        **ModelConfig.ALIASES,
        **dict.fromkeys(["lambda", "cl_rate", "lambda_coeff"], "cl_weight"),
        **dict.fromkeys(["n_layer", "n_ui_layers"], "n_layers"),
        **dict.fromkeys(["eps", "epsilon"], "noise"),
        **dict.fromkeys(["temp", "tau"], "temperature"),
    }


class SimGCL(Recommender):
    """Linear graph convolution, contrast of views with noise in them."""

    Config = SimGCLConfig
    uses_features = False
    cell = Cell(backbone="lightgcn without the ids' own layer, contrast of noisy views")

    def __init__(self, train: TrainSet, content: Content, config: SimGCLConfig, init: Init) -> None:
        super().__init__()
        self.config, self.n_users, d = config, train.n_users, config.embedding_dim
        self.user_embedding = init.xavier_uniform("user_embedding", train.n_users, d)
        self.item_embedding = init.xavier_uniform("item_embedding", train.n_items, d)
        self.graph = symmetric_normalised(bipartite(train), dtype=self.item_embedding.dtype)

    def loss(self, batch: Triples) -> dict[str, Tensor]:
        """`bpr`, `contrast` and `l2`."""
        config, size = self.config, len(batch.users)
        x = torch.cat([self.user_embedding, self.item_embedding])
        users, of_users = distinct(batch.users)
        items, of_items = distinct(batch.pos)
        sizes = [len(users), len(items), size]
        nodes = torch.cat([users, items + self.n_users, batch.neg + self.n_users])
        first = self.graph @ x  # h_1, (n, d): shared by all three
        # The mean of h_1 … h_L is that of h_1 and its first L - 1 propagations.
        z = propagate(self.graph, first, config.n_layers - 1, rows=nodes)
        user, item, neg = torch.split(z, sizes)
        user, pos = take(user, of_users), take(item, of_items)  # (B, d) each
        terms = {"bpr": bpr_loss((user * pos).sum(1), (user * neg).sum(1))}
        if config.cl_weight:
            rows = slice(0, sizes[0] + sizes[1])
            layers = self._layers(first, nodes[rows])
            seen = nodes[rows], sizes[:2]
            views = [z[rows] + self._offset(v, layers, *seen, batch) for v in VIEWS]
            pairs = zip(*(torch.split(view, sizes[:2]) for view in views), strict=True)
            contrasts = [
                info_nce(a, b, config.temperature, first_of_equals(known))
                for (a, b), known in zip(pairs, (users, items), strict=True)
            ]
            terms["contrast"] = (contrasts[0] + contrasts[1]) * config.cl_weight
        if config.preset == "original":
            # Norms of the propagated rows, not divided by their number.
            terms["l2"] = penalty("norm", config.reg_weight, 1, user, pos)
        else:
            items = torch.cat([batch.pos, batch.neg]) + self.n_users
            own = take(x, grouped(torch.cat([batch.users, items])))
            terms["l2"] = penalty("squared", config.reg_weight, size, own)
        return terms

    @torch.no_grad()
    def _layers(self, first: Tensor, nodes: Tensor) -> list[Tensor]:
        """h_1, …, h_L: all nodes' (n, d), of the last one the given nodes' (k, d)."""
        layers = [first]
        for _ in range(self.config.n_layers - 2):
            layers.append(self.graph @ layers[-1])
        last = layers.pop() if self.config.n_layers == 1 else layers[-1]
        return [*layers, last[nodes] if not layers else self.graph.rows(nodes) @ last]

    @torch.no_grad()
    def _offset(
        self, view: str, layers: list[Tensor], nodes: Tensor, sizes: list[int], batch: Triples
    ) -> Tensor:
        """Rows of z' - z, (k, d): what the noise of all layers makes of them."""
        whole = [len(layers[0])] if len(layers) > 1 else sizes
        moved = self._noise(view, 1, torch.sign(layers[0]), whole, batch)  # h'_k - h_k
        total = moved
        for k, h in enumerate(layers[1:], 2):
            last = k == len(layers)
            moved = (self.graph.rows(nodes) if last else self.graph) @ moved
            parts = sizes if last else whole
            moved += self._noise(view, k, torch.sign(h + moved), parts, batch)
            total = (total[nodes] if last else total) + moved
        return total / len(layers)

    def _noise(
        self, view: str, layer: int, sign: Tensor, sizes: list[int], batch: Triples
    ) -> Tensor:
        """What is added to the rows of a layer, of the signs' shape (n, d)."""
        drawn = self._uniform(view, layer, sign, sizes, batch)
        return normalise_rows(drawn).mul_(sign).mul_(self.config.noise)

    def _uniform(
        self, view: str, layer: int, like: Tensor, sizes: list[int], batch: Triples
    ) -> Tensor:
        """U ~ U(0, 1) of a layer's rows; in the last layer those of the batch's distinct nodes.

        Users and items are drawn apart, so that copies at the end of either change nothing.
        """
        parts = enumerate(torch.split(like, sizes))
        drawn = [
            between(batch.stream(f"noise.{view}.{layer}.{k}"), part.shape, part.dtype)
            for k, part in parts
        ]
        return torch.cat(drawn) if len(drawn) > 1 else drawn[0]

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Z_u and z_i."""
        x = torch.cat([self.user_embedding, self.item_embedding])
        z = propagate(self.graph, self.graph @ x, self.config.n_layers - 1)
        return z[: self.n_users], z[self.n_users :]
